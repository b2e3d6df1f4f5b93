"""Assembles the engine's step outputs into finished rollouts."""
