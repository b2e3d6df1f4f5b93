"""Settings that all tests share."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The machine is shared with engines: how long an example takes says nothing.
settings.register_profile("rltop", deadline=None)
settings.load_profile("rltop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with engines come first: in a parallel run they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one worker, where fixtures of a module are made once; all files with engines stay in one.

    So there are never more engines at a time than one test starts. (xdist's own groups need a pytest before 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByFile(config, log)


@functools.cache
def _scope(file: Path) -> str:
    return "engines" if "pytest.mark.engine" in file.read_text() else str(file)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day read the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
