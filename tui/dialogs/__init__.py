"""Dialogs and panels in front of a view, and requests to the hub."""
