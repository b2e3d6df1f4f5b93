"""What is wrong with a run, and why: evidence, tests, causes, verdict."""
