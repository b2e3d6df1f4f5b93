"""Probes: their inputs, the engines' reports, and the verdicts."""
