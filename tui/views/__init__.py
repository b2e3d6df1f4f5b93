"""The views and dialogs of the dashboard."""
