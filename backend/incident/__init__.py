"""A run as a file for an incident ticket: what is wrong, why that is thought, what was done."""
