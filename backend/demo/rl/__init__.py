"""The demo's reinforcement learning: task, policy, objective, trainer."""
