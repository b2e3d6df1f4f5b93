"""Commands to engines: validation, the lifecycle of each change, and the audit log."""
