"""What arrives from collectors: order, gaps, acknowledgement."""
