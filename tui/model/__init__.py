"""State of the dashboard and data of its views, computed from the snapshot. No widgets."""
