"""Computes summaries from joined rows."""
