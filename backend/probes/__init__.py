"""Probes: what is sent to engines for them, what came back, and what that says."""
