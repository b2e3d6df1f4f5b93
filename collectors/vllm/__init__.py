"""The engine collector: a vLLM plugin, dormant unless it is told where the hub is."""
