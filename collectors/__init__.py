"""Collectors: the part of rltop that runs inside engines and trainers. Light, and never in the way."""
