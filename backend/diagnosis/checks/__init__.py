"""The checks of a diagnosis, by subject."""
