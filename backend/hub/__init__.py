"""The hub process: sockets, worker thread, state."""
