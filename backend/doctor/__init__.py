"""Inspects an installation and a run: facts of the machine and of a snapshot, and what is wrong with them."""
