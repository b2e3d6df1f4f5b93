"""Tokens and sequences as text."""
