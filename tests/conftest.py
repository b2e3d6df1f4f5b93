"""Settings that all tests share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The machine is shared with engines: how long an example takes says nothing.
settings.register_profile("rltop", deadline=None)
settings.load_profile("rltop")


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day read the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
