"""Code that runs inside the worker processes of an engine, one per rank, and its counterpart in the engine core."""
