"""Estimates the effect of a flag switch on the run."""
