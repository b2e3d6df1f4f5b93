"""The views of the dashboard. ``registry.VIEWS`` is the table of all."""
