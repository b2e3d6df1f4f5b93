"""Messages from collectors: order, losses, acknowledgement."""
