"""Single tokens and sequences as text."""
