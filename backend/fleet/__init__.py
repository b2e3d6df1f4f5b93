"""The engines and what they compute with."""
