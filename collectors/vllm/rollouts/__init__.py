"""From the engine's step outputs to finished rollouts."""
