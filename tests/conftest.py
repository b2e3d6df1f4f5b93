"""Settings that all tests share."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A shell that starts the tests in the background makes them and all their processes ignore SIGINT, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared with engines: how long an example takes says nothing. Examples are the same everywhere, so that
# what passes here passes on another machine; RLTOP_TEST_EXPLORE=1 looks for new ones.
settings.register_profile("rltop", deadline=None, derandomize="RLTOP_TEST_EXPLORE" not in os.environ)
settings.load_profile("rltop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with engines come first: in a parallel run they take longest."""
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("own_engine", "engine")])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one worker, where fixtures of a module are made once.

    The files that run an engine in the test's own process share one worker, too: vLLM affects whatever else its process
    starts, and no two of these engines compete for a core. (xdist's own groups need a pytest before 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByFile(config, log)


@functools.cache
def _scope(file: Path) -> str:
    return "own engine" if "pytest.mark.own_engine" in file.read_text() else str(file)


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day read the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
