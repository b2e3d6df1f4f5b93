"""The demo's rollout engines and their weight updates."""
