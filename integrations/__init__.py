"""Adapters: connect the training frameworks that people use to rltop, one module per framework."""
