"""Text and JSON that the command line and the dashboard share."""
