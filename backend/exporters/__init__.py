"""Exports of a run: tables, recordings, other tools, alarm hooks."""
