"""The clients of a run: a live hub or a stored run."""
