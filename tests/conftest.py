"""Settings that all tests share."""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

LANES = 2
"""Processes that files with engines are divided among, in a run with as many workers."""

# A shell that starts the tests in the background makes them and all their processes ignore SIGINT, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared with engines: how long an example takes says nothing.
settings.register_profile("rltop", deadline=None)
settings.load_profile("rltop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with engines come first: in a parallel run they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one worker, where fixtures of a module are made once; files with engines form two lanes.

    A process that has loaded vLLM affects engines that it starts, so the lanes are processes of their own; see also
    ``one_file_with_engines_at_a_time``. (xdist's own groups need a pytest before 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return ByFile(config, log)


@functools.cache
def _scope(file: Path) -> str:
    if "pytest.mark.engine" not in file.read_text():
        return str(file)
    return f"engines {zlib.crc32(file.name.encode()) % LANES}"


@pytest.fixture(scope="module", autouse=True)
def one_file_with_engines_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that need requests in flight at a certain moment need a core for their engine."""
    if not _scope(request.path).startswith("engines"):
        yield
        return
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "alone")
    with (Path(tempfile.gettempdir()) / f"rltop-engines-{run}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of day read the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
