"""Widgets and drawing primitives, independent of a run."""
