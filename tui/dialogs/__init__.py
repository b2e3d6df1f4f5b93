"""Dialogs and pages in front of a view, and requests to the hub."""
