"""What the views draw, computed from the snapshot. No widgets."""
