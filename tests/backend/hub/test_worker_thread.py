"""The hub's second thread: what goes wrong in one message stays there, and no queue grows without bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rltop.backend import api
from rltop.backend.commands.audit import AuditFile
from rltop.backend.hub import worker_thread
from rltop.backend.hub.handover import Handover
from rltop.backend.hub.outputs import Effect
from rltop.backend.hub.peers import Peer
from rltop.backend.hub.state import HubState
from rltop.backend.steps import steps
from rltop.collectors.contract import wire
from rltop.collectors.transport.error_boundary import MAX_FAULTS
from tests.support.harness import PATIENT_S
from tests.support.hub_messages import Source, Trained, Written, engine_state, rollouts, sequences

PATIENT_MS = int(PATIENT_S * 1000)


class Faulty(HubState):
    """A core with a bug: messages of source ``bad`` and questions of viewer ``bad`` are too much for it."""

    def data(self, frames: list[bytes], now: float, peer: Peer | None = None) -> list[Effect]:
        if b"bad" in frames[0]:
            raise RuntimeError("a bug in data")
        return super().data(frames, now, peer)

    def ask(self, viewer: bytes, frame: bytes, now: float, *caller: Any) -> list[Effect]:
        if viewer == b"bad":
            raise RuntimeError("a bug in ask")
        return super().ask(viewer, frame, now, *caller)

    def tick(self, now: float) -> list[Effect]:
        if "bad" in self.snapshot.engines:
            raise RuntimeError("a bug in tick")
        return super().tick(now)


class Bench:
    """A core thread, not yet started, and the end of its outbox."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.outbox = Handover(self.context)
        self._taken: list[list[bytes]] = []
        self.now = 1000.0
        state = Faulty("run", "h", self.now, lambda: "c")
        self.core = worker_thread.WorkerThread(state, self._clock, self.outbox, AuditFile(Path("/dev/null")))
        self.counters: dict[str, int] = {}
        self.engines: set[str] = set()

    def _clock(self) -> float:
        self.now += 0.01  # time passes by being looked at
        return self.now

    def answer(self, question: api.Question) -> api.Answer:
        """Ask, and take in frames until the answer comes."""
        self.core.put_question(b"viewer", api.encode(question))
        while True:
            where, *frames = self._next()
            if where == worker_thread.QUERY:
                return api.decode_answer(frames[1])

    def end(self) -> None:
        """End the core; the last frame has every counter."""
        self.core.end()
        while self._next()[0] != worker_thread.STOP:
            pass
        self.core.join()

    def _next(self) -> list[bytes]:
        if not self._taken:
            assert self.outbox.bell.poll(PATIENT_MS), "the core has nothing more to say"
            self._taken = self.outbox.take()
        frames = self._taken.pop(0)
        if frames[0] == worker_thread.VIEW:
            frame = api.decode_frame(frames[1])
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
    made.outbox.bell.close()
    made.context.term()


def test_repeated_exceptions_do_not_affect_other_messages(bench: Bench) -> None:
    bench.core.start()
    faults = 2 * MAX_FAULTS
    for _ in range(faults):
        bench.core.put_data(Source("bad").frames(engine_state("bad")))
        bench.core.put_question(b"bad", b"")
    bench.core.put_data(Source("e0").frames(engine_state("e0")))
    assert bench.answer(api.AskSnapshot("q")).snapshot is not None
    while not bench.engines:  # questions go first; what still waits at the end is let go
        bench._next()
    bench.end()
    assert bench.engines == {"e0"}
    assert bench.counters["faults"] == 2 * faults
    assert not bench.core.failed


def test_what_is_put_before_the_start_comes_before_the_first_frame(bench: Bench) -> None:
    bench.core.put_counter("restored")
    bench.core.put_viewer()
    bench.core.start()
    bench._next()
    assert bench.counters["restored"] == 1


def test_a_flood_of_questions_is_bounded_and_counted(bench: Bench) -> None:
    for _ in range(worker_thread.MAX_URGENT + 7):
        bench.core.put_counter("asked")
    bench.core.start()
    bench.core.put_data(Source("e0").frames(engine_state("e0")))
    bench.core.put_viewer()
    while not bench.engines:
        bench._next()
    bench.end()
    assert bench.counters["shed"] >= 7
    assert bench.counters["asked"] == worker_thread.MAX_URGENT


def test_the_data_queue_is_bounded_for_small_messages_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_thread, "DATA_QUEUE_BYTES", 100_000)
    taken = 0
    while bench.core.has_room() and taken < 10_000:
        bench.core.put_data([b"", b""])
        taken += 1
    assert taken < 1000


def test_questions_are_answered_while_a_step_is_half_measured_and_data_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked, and sent, each time a part of it was measured."""
    monkeypatch.setattr(steps, "PART_TOKENS", 1)
    made = [Written([7, at], [at, 2, 3], [-1.0, -2.0, -0.5], [3] * 3) for at in range(9)]
    trainer, state = Source("trainer/0"), bench.core._state
    for w in made:
        row = Trained([*w.prompt, *w.tokens], [0, 0, 1, 1, 1], w.logprobs, w.logprobs)
        bench.core.put_data(trainer.frames(*sequences([row])))
    bench.core.put_data(trainer.frames(wire.StepClosed(0, 0, 1)))
    bench.core.put_data(Source("e0").frames(*rollouts(made)))
    late, tick, data = Source("late"), state.tick, state.data
    happened: list[str] = []

    def ticked(now: float) -> list[Effect]:
        effects = tick(now)
        if state.unfinished:
            happened.append("part")
            bench.core.put(lambda _: happened.append("answer"))
            bench.core.put_data(late.frames(engine_state("late")))
        return effects

    def taken(frames: list[bytes], now: float, peer: Peer | None = None) -> list[Effect]:
        happened.append("data")
        return data(frames, now, peer)

    monkeypatch.setattr(state, "tick", ticked)
    monkeypatch.setattr(state, "data", taken)
    bench.core.start()
    while "late" not in bench.engines:
        bench._next()
    bench.end()
    parts = happened[happened.index("part") :]
    measured = len(parts) - 1 - parts[::-1].index("part")
    assert parts.count("part") >= len(made) - 1
    assert parts[: measured + 2] == ["part", "answer"] * (measured // 2 + 1)
    assert "data" in parts[measured:]


class Counted(zmq.Socket[bytes]):
    """A real socket that counts what gives the interpreter's lock away."""

    sends = recvs = 0

    def send(self, *args: Any, **options: Any) -> Any:
        type(self).sends += 1
        return super().send(*args, **options)

    def recv(self, *args: Any, **options: Any) -> Any:
        type(self).recvs += 1
        return super().recv(*args, **options)


def test_queued_messages_are_handed_over_in_order_with_one_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq.Context, "_socket_class", Counted)
    monkeypatch.setattr(Counted, "sends", 0)
    monkeypatch.setattr(Counted, "recvs", 0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    handover = Handover(context)
    handover.begin()
    for number in range(100):
        handover.put(b"view", b"%d" % number)
    assert handover.bell.poll(PATIENT_MS)
    assert [int(frame) for _, frame in handover.take()] == list(range(100))
    assert (Counted.sends, Counted.recvs) == (1, 1)
    assert handover.take() == []
    assert Counted.recvs == 1
    handover.end()
    handover.bell.close()
    context.term()


def test_no_message_is_left_behind_between_two_threads() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    handover = Handover(context)

    def put() -> None:
        handover.begin()
        for number in range(5000):
            handover.put(b"%d" % number)
        handover.end()

    putting = threading.Thread(target=put)
    putting.start()
    found: list[int] = []
    while len(found) < 5000:
        assert handover.bell.poll(PATIENT_MS), "what was put rang no bell"
        found += [int(frames[0]) for frames in handover.take()]
    putting.join()
    assert found == list(range(5000))
    handover.bell.close()
    context.term()
