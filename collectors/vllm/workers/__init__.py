"""What runs inside the worker processes of an engine, one per rank."""
