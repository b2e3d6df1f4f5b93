"""Widgets and drawing primitives. They know nothing of a run."""
