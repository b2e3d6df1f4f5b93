"""Settings that all tests share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The machine is shared with engines: how long an example takes says nothing.
settings.register_profile("rltop", deadline=None)
settings.load_profile("rltop")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For parallel runs: a file stays in one worker, and so do all tests with engines, which begin first.

    Then there are never more engines at a time than in one test, and fixtures of a module are made once.
    """
    for item in items:
        group = "engines" if item.get_closest_marker("engine") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day read the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
