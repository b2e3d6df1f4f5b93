"""Compares a run with reference runs."""
