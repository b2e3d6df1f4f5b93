"""The hub: where truth is computed and kept."""
