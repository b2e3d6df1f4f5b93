"""What is kept of a run, and what is made of it: store, replay, record, export, parity."""
