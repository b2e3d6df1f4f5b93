"""Joins trainer rows with the engines' rollouts, and compares the trainer's logprobs with the engine's."""
