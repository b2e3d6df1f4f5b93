"""Probes on a live engine: requests of our own and weight digests."""
