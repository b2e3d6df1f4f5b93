"""What collectors and hub agree on: messages, run directory, flags, actions, probes, preconditions, facts, digests."""
