"""Commands to engines: from a wish to a closed record on every engine, and the log of it all."""
