"""The hub's second thread: what goes wrong in one message stays there, and no queue grows without bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from rltop.backend import core, view
from rltop.backend.commands.audit import AuditFile
from rltop.backend.state import Effect, State
from rltop.collectors.guard import MAX_FAULTS
from tests.harness import PATIENT_S
from tests.hub_messages import Source, engine_state

PATIENT_MS = int(PATIENT_S * 1000)


class Faulty(State):
    """A core with a bug: messages of source ``bad`` and questions of viewer ``bad`` are too much for it."""

    def data(self, frames: list[bytes], now: float) -> list[Effect]:
        if b"bad" in frames[0]:
            raise RuntimeError("a bug in data")
        return super().data(frames, now)

    def ask(self, client: bytes, frame: bytes, now: float) -> list[Effect]:
        if client == b"bad":
            raise RuntimeError("a bug in ask")
        return super().ask(client, frame, now)

    def tick(self, now: float) -> list[Effect]:
        if "bad" in self.snapshot.engines:
            raise RuntimeError("a bug in tick")
        return super().tick(now)


class Bench:
    """A core thread, not yet started, and the end of its outbox."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.outbox = self.context.socket(zmq.PULL)
        self.outbox.bind("inproc://outbox")
        self.now = 1000.0
        state = Faulty("run", "h", self.now, lambda: "c")
        self.core = core.Core(state, self._clock, self.context, "inproc://outbox", AuditFile(Path("/dev/null")))
        self.counters: dict[str, int] = {}
        self.engines: set[str] = set()

    def _clock(self) -> float:
        self.now += 0.01  # time passes by being looked at
        return self.now

    def answer(self, question: view.Question) -> view.Answer:
        """Ask, and take in frames until the answer comes."""
        self.core.put_question(b"viewer", view.encode(question))
        while True:
            where, *frames = self._next()
            if where == core.QUERY:
                return view.decode_answer(frames[1])

    def end(self) -> None:
        """End the core; the last frame has every counter."""
        self.core.end()
        while self._next()[0] != core.STOP:
            pass
        self.core.join()

    def _next(self) -> list[bytes]:
        assert self.outbox.poll(PATIENT_MS), "the core has nothing more to say"
        frames = self.outbox.recv_multipart()
        if frames[0] == core.VIEW:
            frame = view.decode_frame(frames[1])
            self.counters.update(frame.counters)
            self.engines.update(frame.engines)
        return frames


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    if made.core.is_alive():
        made.core.end()
        made.core.join()
    made.outbox.close()
    made.context.term()


def test_however_often_one_message_goes_wrong_the_others_are_heard(bench: Bench) -> None:
    bench.core.start()
    faults = 2 * MAX_FAULTS
    for _ in range(faults):
        bench.core.put_data(Source("bad").frames(engine_state("bad")))
        bench.core.put_question(b"bad", b"")
    bench.core.put_data(Source("e0").frames(engine_state("e0")))
    assert bench.answer(view.AskSnapshot("q")).snapshot is not None
    while not bench.engines:  # questions go first; what still waits at the end is let go
        bench._next()
    bench.end()
    assert bench.engines == {"e0"}
    assert bench.counters["faults"] == 2 * faults
    assert not bench.core.failed


def test_a_flood_of_questions_is_bounded_and_counted(bench: Bench) -> None:
    for _ in range(core.MAX_URGENT + 7):
        bench.core.put_counter("asked")
    bench.core.start()
    bench.core.put_data(Source("e0").frames(engine_state("e0")))
    bench.core.put_viewer()
    while not bench.engines:
        bench._next()
    bench.end()
    assert bench.counters["shed"] >= 7
    assert bench.counters["asked"] == core.MAX_URGENT


def test_the_data_lane_is_bounded_for_small_messages_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "DATA_LANE_BYTES", 100_000)
    taken = 0
    while bench.core.has_room() and taken < 10_000:
        bench.core.put_data([b"", b""])
        taken += 1
    assert taken < 1000
