"""What the core takes, asks for again and acknowledges, and what a hub makes of the messages that the last one had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rltop.backend import api
from rltop.backend.fleet.engines import SILENT_S
from rltop.backend.hub.outputs import Effect, Renew, SendControl
from rltop.backend.ingest.acknowledgement import PERIOD_S
from rltop.backend.ingest.sources import RECONNECT_S
from rltop.backend.steps.steps import GRACE_S, RESENT_S
from rltop.backend.store.store import Store
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub, sent
from tests.support.hub_messages import Source, Trained, Written, engine_state, rollouts, sequences
from tests.support.training import Training

VALUES = ("partial", "values", "engines", "unjoined", "trainer", "joins", "reused", "copies", "missing_rows", "lost")


class Sender:
    """A collector that keeps all it sent, and does as it is told."""

    def __init__(self, name: str) -> None:
        self.source = Source(name, oldest=0)
        self.sent: list[list[bytes]] = []
        self.acknowledged = -1
        self.next = 0

    def keep(self, body: wire.DataBody, arrays: wire.Arrays | None = None) -> None:
        self.sent.append(self.source.frames(body, arrays))

    def hear(self, message: wire.Body) -> None:
        if isinstance(message, wire.Resend):
            self.next = message.seq
        elif isinstance(message, wire.Acknowledged):
            self.acknowledged = message.seq


class Run:
    """Collectors, a store in ``directory``, and the hubs that die one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.senders: dict[str, Sender] = {}
        self._lives = 0
        self.hub, self.store = self._next(1000.0)

    def start(self) -> None:
        """A new hub takes over from what is stored."""
        self.store.end()
        self.hub, self.store = self._next(self.hub.now)

    def _next(self, now: float) -> tuple[Hub, Store]:
        self._lives += 1
        epoch = f"hub-{self._lives}"
        store = Store(self._directory, "run", epoch, now)
        hub = Hub(epoch, past=store.past(), stored=store.aggregates(), now=now)
        store.start()
        return hub, store

    def send(self, name: str, body: wire.DataBody, arrays: wire.Arrays | None = None) -> None:
        """Keep a message, and send what is due."""
        self.senders.setdefault(name, Sender(name)).keep(body, arrays)
        self.pump(name)

    def pump(self, name: str) -> None:
        sender = self.senders[name]
        while sender.next < len(sender.sent):
            sender.next += 1
            self._perform(self.hub.state.data(sender.sent[sender.next - 1], self.hub.now))

    def _perform(self, effects: list[Effect]) -> None:
        for sender in self.senders.values():
            for kind in (wire.Resend, wire.Acknowledged):
                for message in sent([e for e in effects if getattr(e, "to", "") == sender.source.identity], kind):
                    sender.hear(message)

    def later(self, seconds: float = 0.2, *, stored: bool = True) -> None:
        """Time passes: what is done is stored, unless the hub dies before, and senders are told."""
        hub, state = self.hub, self.hub.state
        hub.now += seconds
        self._perform(state.tick(hub.now))
        frame = state.next_frame(hub.now, heartbeat=True)
        assert frame is not None
        if stored:
            assert self.store.put(frame, state.frames.aggregates(frame))
            assert self.store.settle(20) == 0
            self._perform(state.stored())
        for name in self.senders:
            self.pump(name)

    @property
    def steps(self) -> dict[int, api.Step]:
        return self.hub.steps


def messages(steps: int, **about: Any) -> list[list[tuple[str, wire.DataBody, wire.Arrays]]]:
    training = Training(**about)
    return [list(training.step()) for _ in range(steps)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.store.end()


def told(step: api.Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in VALUES}


def test_missing_messages_are_requested_and_all_are_taken_in_order_and_once() -> None:
    hub = Hub()
    trainer = Source("trainer/0", oldest=0)
    frames = [trainer.frames(wire.StepClosed(number, 0, 1, number)) for number in range(4)]
    hub.state.data(frames[0], hub.now)
    assert sent(hub.state.data(frames[2], hub.now), wire.Resend) == [wire.Resend("life-1", 1)]
    assert not sent(hub.state.data(frames[3], hub.now), wire.Resend)  # it was asked just now
    hub.later(0.2)
    assert list(hub.steps) == [0]
    for number in (1, 1, 2, 3, 2):
        assert not sent(hub.state.data(frames[number], hub.now), wire.Resend)
    hub.later(0.2)
    assert list(hub.steps) == [0, 1, 2, 3]
    assert not any(step.partial for step in hub.steps.values())
    assert (hub.counters["duplicates"], hub.counters["resends"], hub.counters.get("lost_messages")) == (4, 1, None)


def test_requests_are_repeated_without_an_answer_and_before_a_disconnect() -> None:
    hub = Hub()
    source = Source("e0", oldest=0)
    frames = [source.frames(engine_state("e0")) for _ in range(3)]
    hub.state.data(frames[1], hub.now)
    assert sent(hub.later(1.2), wire.Resend) == [wire.Resend("life-1", 0)]
    hub.state.data(frames[0], hub.now)
    hub.state.data(frames[1], hub.now)
    hub.sources["e0"] = source
    hub.say("e0", wire.Bye("e0", "life-1", 3, 0))  # the last message is lost, and none shows it
    assert sent(hub.later(0.5), wire.Resend) == [wire.Resend("life-1", 2)]
    hub.state.data(frames[2], hub.now)
    assert sent(hub.later(), wire.ByeAck)
    assert not hub.counters.get("lost_messages")


def test_an_undelivered_request_is_repeated_at_once() -> None:
    hub = Hub()
    source = Source("e0", oldest=0)
    frames = [source.frames(engine_state("e0")) for _ in range(2)]
    (asked,) = [
        e
        for e in hub.state.data(frames[1], hub.now)
        if isinstance(e, SendControl) and e.message != wire.Welcome("hub-1")
    ]
    hub.undelivered(asked)
    assert sent(hub.later(0.1), wire.Resend) == [wire.Resend("life-1", 0)]


def test_current_states_are_used_while_earlier_messages_are_missing() -> None:
    hub = Hub()
    source = Source("e0", oldest=0)
    source.seq = 5
    hub.state.data(source.frames(engine_state("e0", policy_version=9)), hub.now)
    hub.later()
    assert hub.picture.engines["e0"].policy_version == 9
    source.seq = 0
    for _ in range(6):
        hub.state.data(source.frames(wire.Passed()), hub.now)
    hub.later()
    assert hub.picture.engines["e0"].policy_version == 9
    assert source.seq == 6
    assert not hub.counters.get("lost_messages")


def test_dropped_messages_are_lost_and_attributed_to_open_steps() -> None:
    hub = Hub()
    trainer, engine = Source("trainer/0", oldest=0), Source("e0", oldest=0)
    hub.state.data(trainer.frames(wire.StepClosed(0, 0, 1, 0, rows=0)), hub.now)
    hub.state.data(engine.frames(engine_state("e0")), hub.now)
    hub.later()
    engine.seq = engine.oldest = 4
    hub.state.data(engine.frames(engine_state("e0")), hub.now)
    hub.state.data(trainer.frames(wire.StepClosed(1, 0, 1, 1, rows=0)), hub.now)
    hub.later()
    trainer.seq = trainer.oldest = 3
    hub.state.data(trainer.frames(wire.StepClosed(2, 0, 1, 2)), hub.now)
    hub.later()
    hub.state.data(trainer.frames(wire.StepClosed(3, 0, 1, 3)), hub.now)
    hub.later()
    assert [(step.lost, step.partial) for step in hub.steps.values()] == [
        ({}, False),
        ({"e0": 3}, False),  # rows are all here; some may have lost their rollouts
        ({"trainer/0": 1}, True),  # nobody says how many rows there were
        ({}, False),
    ]
    assert hub.counters["lost_messages"] == 4


@pytest.mark.parametrize("lossy", [False, True])
def test_steps_whose_close_the_trainers_collector_dropped_are_reported_as_unmeasured(lossy: bool) -> None:
    hub = Hub()
    dropped = wire.Counts(4, 2, 2) if lossy else wire.Counts(2, 2)
    hub.send("trainer/0", wire.Health({"step": dropped}, 0, 1000))
    for number in (0, 1, 4, 5, 3):
        hub.send("trainer/0", wire.StepClosed(number, 0, 1, number))
        hub.later()
    assert hub.counters.get("missing_steps", 0) == (2 if lossy else 0)  # else it counts as it likes
    assert (
        any("steps 2 to 3 were not measured: the trainer's messages about them were lost" in text for text in hub.texts)
        == lossy
    )
    hub.sources["trainer/0"] = Source("trainer/0", "life-2")
    hub.send("trainer/0", wire.StepClosed(9, 0, 1, 9))
    hub.later()
    assert hub.counters.get("missing_steps", 0) == (2 if lossy else 0)


@pytest.mark.parametrize("rows", [2, 3, None])
def test_a_step_reports_how_many_rows_are_missing(rows: int | None) -> None:
    hub = Hub()
    made = [Trained([1, 5 + n], [0, 1], [-1.0], [-1.0]) for n in range(2)]
    hub.send("trainer/0", *sequences(made))
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, rows=rows))
    hub.later(GRACE_S + 0.5)
    assert (hub.steps[0].missing_rows, hub.steps[0].partial) == ((1, True) if rows == 3 else (0, False))
    assert any("partial: 1 rows are missing" in text for text in hub.texts) == (rows == 3)


def test_a_lost_message_does_not_make_a_complete_step_partial() -> None:
    hub = Hub()
    hub.send("trainer/0", *sequences([Trained([1, 5], [0, 1], [-1.0], [-1.0])]))
    hub.source("trainer/0").seq += 1
    hub.send("trainer/0", wire.StepClosed(0, 0, 1, rows=1))
    hub.later(GRACE_S + 0.5)
    assert (hub.steps[0].lost, hub.steps[0].partial) == ({"trainer/0": 1}, False)


@pytest.mark.parametrize("kill", range(0, 60, 7))
def test_a_resumed_hub_measures_the_same_as_an_uninterrupted_one(tmp_path: Path, kill: int) -> None:
    found: list[dict[int, api.Step]] = []
    for name, when in (("lived", None), ("killed", kill)):
        (tmp_path / name).mkdir()
        run, number = Run(tmp_path / name), 0
        for step in messages(12):
            for message in step:
                run.send(*message)
                number += 1
                if number == when:
                    run.later(stored=False)  # it dies before that is stored
                    run.start()
            run.later()
        run.later(RECONNECT_S)
        found.append(run.steps)
        assert not run.hub.counters.get("lost_messages")
        assert not run.hub.counters.get("late_rows")
        run.store.end()
    lived, killed = found
    assert list(killed) == list(lived)
    for number, of_step in lived.items():
        assert told(killed[number]) == told(of_step)
        assert of_step.values["joined_fraction"] == 1.0
    unused = [sum(sum(step.unused.values()) for step in steps.values()) for steps in found]
    assert unused[1] <= unused[0]  # what came again is waited for anew, and counted once


def test_rollouts_received_together_with_their_step_are_retained_for_later_steps(run: Run) -> None:
    first, later = (lambda steps: (steps[:12], steps[12:]))(messages(14))
    for engines in (True, False):  # each socket is read to its end: all rollouts are here before the first step is done
        for step in first:
            for message in step:
                if (message[0] != "trainer/0") == engines:
                    run.send(*message)
    run.later()
    assert len(run.steps) == 12
    run.start()
    for step in later:
        for message in step:
            run.send(*message)
    run.later(RECONNECT_S)
    run.later(GRACE_S)
    assert [run.steps[number].values["joined_fraction"] for number in (12, 13)] == [1.0, 1.0]


def test_rows_wait_for_resent_rollouts(run: Run) -> None:
    before, *rest = messages(3)
    for message in before:
        run.send(*message)
    run.later()
    for message in rest[0]:
        run.send(*message)
    run.start()
    run.pump("trainer/0")
    run.send("trainer/0", wire.Health({}, 0, 1000))  # what shows the trainer that there is a hub; the engines are late
    run.later(GRACE_S + 1)
    assert 1 not in run.steps
    for name in ("e0", "e1"):
        run.send(name, engine_state(name))
    run.later()
    assert run.steps[1].values["joined_fraction"] == 1.0
    assert RESENT_S > RECONNECT_S > GRACE_S


def test_the_wait_for_resent_rollouts_is_bounded(run: Run) -> None:
    for message in messages(1)[0]:
        run.send(*message)
    run.later()
    run.start()
    rows = sequences([Trained([1, 5], [0, 1], [-1.0], [-1.0])], step=1)
    run.send("trainer/0", *rows)
    run.send("trainer/0", wire.StepClosed(1, 0, 1, 2))
    run.later()
    assert 1 not in run.steps
    run.later(RECONNECT_S)
    assert run.steps[1].unjoined == {"no_prompt": 1}


def test_only_stored_messages_are_acknowledged(run: Run) -> None:
    step, *_ = messages(1)
    for message in step:
        run.send(*message)
    trainer = run.senders["trainer/0"]
    run.later(stored=False)
    assert trainer.acknowledged == -1
    run.start()
    run.send("trainer/0", wire.Health({}, 0, 1000))
    run.later(RECONNECT_S + GRACE_S)
    assert trainer.acknowledged == len(step) - 2  # all of it: two of the messages are the engines', one is news
    assert run.senders["e0"].acknowledged == -1  # what it wrote may yet be trained on
    run.send("e0", engine_state("e0"))
    run.later(PERIOD_S)
    assert run.senders["e0"].acknowledged == -1


def test_a_late_rank_does_not_reopen_a_stored_step(run: Run) -> None:
    def rows(step: int, rank: int) -> tuple[wire.Sequences, wire.Arrays]:
        return sequences([Trained([1, 5], [0, 1], [-1.0], [-1.0])], step=step, rank=rank)

    for step in (0, 1):
        for rank in (0, 1):
            run.send(f"trainer/{rank}", *rows(step, rank))
        run.send("trainer/0", wire.StepClosed(step, 0, 2, step, rows=1))
        if step == 0:
            run.send("trainer/1", wire.StepClosed(step, 1, 2, step, rows=1))
        run.later(GRACE_S)
    run.later(61.0)  # the other rank's word on step 1 does not come
    run.later(GRACE_S)
    assert run.steps[1].partial
    stored = run.steps[1]
    run.senders["trainer/1"].acknowledged = -1
    run.start()
    run.senders["trainer/1"].next = 0
    run.pump("trainer/1")  # all of it once more, and the word that came too late
    run.send("trainer/1", wire.StepClosed(1, 1, 2, 1, rows=1))
    run.later(GRACE_S)
    run.later(61.0)
    assert run.steps[1] == stored
    assert not run.hub.counters.get("late_rows")


@pytest.mark.parametrize("resumed", [True, False], ids=["next hub", "same hub"])
@pytest.mark.parametrize(("first", "begins"), [(0, True), (1, True), (2, True), (3, False), (9, False)])
def test_a_trainer_never_overwrites_stored_steps_but_continues_after_them(
    run: Run, first: int, begins: bool, resumed: bool
) -> None:
    for number in range(3):
        run.send("trainer/0", wire.StepClosed(number, 0, 1, number, {"loss": 1.0}))
        run.later()
    if resumed:
        run.start()
    run.later(SILENT_S + 0.1)
    sender = run.senders["trainer/0"] = Sender("trainer/0")
    sender.source.epoch = "life-2"
    sender.keep(wire.StepClosed(first, 0, 1, first, {"loss": 2.0}))
    effects = run.hub.state.data(sender.sent[0], run.hub.now)
    sender.next = 1
    reasons = [effect.reason for effect in effects if isinstance(effect, Renew)]
    carried = [frames for effect in effects if isinstance(effect, Renew) for frames in effect.carried]
    assert carried == (sender.sent if begins else [])
    run.later()
    run.send("trainer/0", wire.StepClosed(first + 1, 0, 1, first + 1, {"loss": 2.0}))
    run.later()
    if begins:
        assert reasons == [f"a trainer started at step {first}, and the stored run has steps 0 to 2"]
        assert [step.trainer["loss"] for step in run.steps.values()] == [1.0] * 3
        assert sender.acknowledged == -1  # the hub of the new run gets it all
    else:
        assert reasons == []
        assert {number: step.trainer["loss"] for number, step in run.steps.items()} == {
            0: 1.0, 1: 1.0, 2: 1.0, first: 2.0, first + 1: 2.0
        }  # fmt: skip


def test_a_trainer_with_other_facts_begins_another_run(run: Run) -> None:
    for step, (model, begins) in enumerate((("7b", False), ("7b", False), ("70b", True))):
        run.later(SILENT_S + 0.1)
        sender = run.senders["trainer/0"] = Sender("trainer/0")
        sender.source.epoch = f"life-{step}"
        run.send("trainer/0", wire.TrainerFacts(0, {"model": model, f"new {step}": "1"}))
        sender.keep(wire.StepClosed(step, 0, 1, step))
        effects = run.hub.state.data(sender.sent[-1], run.hub.now)
        sender.next = 2
        run.later()
        reasons = [effect.reason for effect in effects if isinstance(effect, Renew)]
        assert bool(reasons) == begins
    assert "other facts (model)" in reasons[0]
    assert list(run.steps) == [0, 1]


def test_rollouts_of_stored_steps_do_not_count_as_unused(run: Run) -> None:
    written = [Written([1, 2], [5, 6, 7 + n], [-0.5, -1.0, -1.5], [0, 0, 0]) for n in range(2)]
    run.send("e0", *rollouts(written))
    row = Trained([1, 2, 5, 6, 7], [0, 0, 1, 1, 1], [-0.5, -1.0, -1.5], [-0.5, -1.0, -1.5])
    for step in range(20):
        if step in (0, 3):
            run.send("trainer/0", *sequences([row], step=step))
        else:
            run.send("trainer/0", *sequences([Trained([9, 9], [0, 1], [-1.0], [-1.0])], step=step))
        run.send("trainer/0", wire.StepClosed(step, 0, 1, step))
        run.later(GRACE_S)
        if step == 2:
            run.start()
            run.send("e0", engine_state("e0"))
            run.later(RECONNECT_S)
    unused = [step.unused for step in run.steps.values() if step.unused]
    assert unused == [{"e0": 1}]
    assert run.steps[3].reused == 1


def test_a_lost_store_loses_only_acknowledged_messages(run: Run, tmp_path: Path) -> None:
    for number in range(3):
        run.send("trainer/0", wire.StepClosed(number, 0, 1, number))
        run.later()
    assert run.senders["trainer/0"].acknowledged == 2
    run.store.end()
    for path in tmp_path.iterdir():
        path.unlink()
    run.start()
    run.senders["trainer/0"].source.oldest = 3  # it has let go what was acknowledged
    run.send("trainer/0", wire.StepClosed(3, 0, 1, 3))
    run.later()
    assert list(run.steps) == [3]
    assert (run.steps[3].lost, run.steps[3].partial) == ({"trainer/0": 0}, True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(run.steps[3]), type=api.Step) == run.steps[3]
