"""The kernel is compiled beside the core, once, and only when rows come."""

from __future__ import annotations

import threading

import pytest

from rltop.backend.summary import pieces
from rltop.backend.warmup import Warmup


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rltop-warmup"]


@pytest.mark.parametrize("fault", [None, RuntimeError("no compiler")])
def test_it_begins_when_first_asked_and_ends_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    go, calls = threading.Event(), []

    def warm() -> None:
        calls.append(1)
        assert go.wait(20)
        if fault is not None:
            raise fault

    monkeypatch.setattr(pieces, "warm", warm)
    warmup = Warmup()
    assert not threads()
    assert not warmup.ready()
    assert not warmup.ready()
    (thread,) = threads()
    go.set()
    thread.join(20)
    assert warmup.ready()
    assert calls == [1]
