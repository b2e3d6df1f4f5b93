"""The evidence of a diagnosis: mergeable sums per step and engine, and tests on them."""
