"""Probes on a live engine: scoring requests and weight digests."""
