"""Contract of collectors and hub: messages, run directory, flags, actions, probes, preconditions, facts, digests."""
