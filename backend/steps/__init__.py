"""From rows to the measured step."""
