"""Alarms: when a verdict raises one, and who is notified."""
