"""Views of a run: the dashboard and the command line."""
