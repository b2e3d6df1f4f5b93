"""Messages from collectors: order, holes, acknowledgement."""
