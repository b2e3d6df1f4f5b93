"""The trainer collector: validates arguments, copies arrays, packs messages."""
