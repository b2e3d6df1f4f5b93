"""A signal handler may call a collector in the middle of a call; a lack of threads or memory ends nothing for good."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.wire import Counts
from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary
from rltop.collectors.transport.send_queue import SendQueue
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import ended
from tests.support.hub_messages import engine_state
from tests.support.receiver import Receiver, run_directory, wait_until

SIGNALS = """
import os, signal, sys, threading
from rltop.collectors import TrainerCollector
trainer = TrainerCollector(hub=sys.argv[1], start_hub=False)
handled, inside, done = 0, False, threading.Event()
def handler(*_):
    global handled, inside
    if inside:
        return
    inside = True
    handled += 1
    trainer.step(10**6 + handled, metrics={"loss": 1.0})
    inside = False
signal.signal(signal.SIGUSR1, handler)
def shoot():
    while not done.wait(0.0005):
        os.kill(os.getpid(), signal.SIGUSR1)
threading.Thread(target=shoot, daemon=True).start()
steps = 0
while handled < 300:
    trainer.step(steps)
    steps += 1
done.set()
trainer.close(1)
"""


class Interrupted(SendQueue[int]):
    """A queue in which a handler runs in the middle of every call of a host thread."""

    def __init__(self, handler_calls: list[tuple[str, int]]) -> None:
        super().__init__(1000, frozenset())
        self._calls = handler_calls
        self._depth = 0

    def _fits(self, kind: str, nbytes: int) -> bool:
        if self._depth == 0 and self._calls:
            self._depth += 1
            name, number = self._calls.pop(0)
            self.offer("item", number, number) if name == "offer" else self.count_dropped("item", number)
            self._depth -= 1
        return super()._fits(kind, nbytes)


calls = st.lists(st.tuples(st.sampled_from(["offer", "dropped"]), st.integers(1, 200)), max_size=8)


@given(calls, st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_a_call_within_a_call_is_counted_like_any_other(handler: list[tuple[str, int]], sizes: list[int]) -> None:
    left = list(handler)
    queue = Interrupted(left)
    for size in sizes:
        queue.offer("item", size, size)
    made = handler[: len(handler) - len(left)]
    expected = sum(number if name == "dropped" else 1 for name, number in made)
    assert made or not handler
    counts = queue.counts()["item"]
    assert counts.offered == len(sizes) + expected
    assert counts.offered == counts.sent + counts.dropped + counts.queued
    batch = queue.pop_batch()
    assert (len(batch.items) if batch else 0) == counts.queued
    assert queue.nbytes == (batch.nbytes if batch else 0) <= 1000


def test_a_signal_handler_that_calls_the_collector_does_not_block_the_trainer() -> None:
    with run_directory() as rundir:
        process = subprocess.Popen([sys.executable, "-c", SIGNALS, str(rundir.path)])
        assert ended(process) == 0


def test_without_a_thread_nothing_is_raised_and_a_later_call_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuses(thread: threading.Thread) -> None:
        if len(refused) < 2 and thread.name.startswith("rltop-"):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with run_directory() as rundir, Receiver(rundir) as receiver:
        monkeypatch.setattr(threading.Thread, "start", refuses)
        sender = Sender[Message](rundir, "e0", "engine", lambda _, items: items)
        sender.start()
        assert refused

        def delivered() -> bool:
            sender.offer("state", 100, (engine_state("e0"), {}))
            return bool(receiver.messages)

        wait_until(delivered)
        assert len(refused) == 2
        assert sender.health().counts["state"] != Counts()
        sender.close(5)


def fails(error: type[Exception]) -> Any:
    raise error("a defect")


def test_a_lack_of_memory_does_not_switch_a_place_off_and_a_defect_does() -> None:
    guard = ErrorBoundary()
    for _ in range(3 * MAX_FAULTS):
        guard.run("copy", fails, MemoryError)
    assert not guard.is_off("copy")
    assert guard.faults["copy"] == 3 * MAX_FAULTS
    assert guard.run("copy", lambda: "works") == "works"
    for _ in range(MAX_FAULTS):
        guard.run("copy", fails, ValueError)
    assert guard.is_off("copy")
