"""Helpers without knowledge of a run."""
