"""Clients of a run: of a live hub, or of a stored run."""
