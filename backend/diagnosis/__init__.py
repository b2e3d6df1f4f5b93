"""Diagnosis of a run: checks of its evidence, causes that explain the findings, and a verdict."""
