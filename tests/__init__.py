"""Tests, named after the behaviour they hold."""
