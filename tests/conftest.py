"""Settings that all tests share."""

from __future__ import annotations

from hypothesis import settings

# The machine is shared with engines: how long an example takes says nothing.
settings.register_profile("rltop", deadline=None)
settings.load_profile("rltop")
