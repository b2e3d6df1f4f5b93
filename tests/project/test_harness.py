"""Waits last as long as something moves, and fail when nothing does."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.support import harness
from tests.support.harness import STALL_S, Patience, cpu_s, wait_for


class Machine:
    """A clock, the CPU time that processes have used, and a counter that a test names as progress."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.cpu = 0.0
        self.counter = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(harness, "cpu_s", lambda: self.cpu)
        self.patience = Patience("the end", lambda: self.counter)

    def go(self, seconds: int, *, cpus: float = 0.0, counts: int = 0) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.cpu += cpus
            self.counter += counts
            self.patience.check()


@pytest.mark.parametrize("moves", [{"cpus": 0.1}, {"counts": 1}])
def test_a_wait_lasts_while_something_moves_and_fails_when_nothing_does(
    monkeypatch: pytest.MonkeyPatch, moves: dict[str, float]
) -> None:
    machine = Machine(monkeypatch)
    machine.go(3600, **moves)  # type: ignore[arg-type]
    machine.go(int(STALL_S) - 1)
    with pytest.raises(AssertionError, match="nothing has moved for 120 s: the end"):
        machine.go(10)


def test_heartbeats_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        Machine(monkeypatch).go(int(STALL_S) + 10, cpus=0.02)


def test_the_cpu_time_of_children_counts() -> None:
    before, own = cpu_s(), time.process_time()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        wait_for(lambda: cpu_s() - before > time.process_time() - own + 0.2, "the child computes")
    finally:
        child.kill()
        child.wait()
