"""The trainer collector: checks arguments, copies arrays, packs messages."""
