"""The catalogue of checks, as data."""
