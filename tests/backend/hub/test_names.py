"""Engines that share a name get names of their own, a second trainer is refused, a restart keeps its name."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.fleet.engines import SILENT_S
from rltop.backend.hub.outputs import SendControl
from rltop.backend.ingest.sources import MAX_REMEMBERED, Sources
from rltop.backend.store.read import Reader
from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from tests.backend.hub.test_hub_process import collector, end, see, start_hub
from tests.support.hub_core import Hub, sent
from tests.support.hub_messages import Source, Written, engine_state, rollouts
from tests.support.receiver import run_directory, wait_until

NOTICE = "engines are named"


class Fleet:
    """Processes that send under names of their choice; each says hello once a second."""

    def __init__(self, hub: Hub | None = None) -> None:
        self.hub = hub or Hub()
        self.rollouts = 0

    def hello(self, process: Source, pid: int = 0) -> None:
        body: wire.DataBody = engine_state(process.name, pid=pid) if pid else wire.Health({}, 0, 1)
        self.hub.state.data(process.frames(body, sent=self.hub.now), self.hub.now)

    def sample(self, process: Source) -> None:
        """One rollout."""
        self.rollouts += 1
        made = Written([self.rollouts], [5], [-1.0], [3], engine=process.name, request_id=process.epoch)
        body, arrays = rollouts([made])
        self.hub.state.data(process.frames(body, arrays, sent=self.hub.now), self.hub.now)

    @property
    def pids(self) -> dict[str, int]:
        return {name: engine.pid for name, engine in self.hub.picture.engines.items()}

    @property
    def owners(self) -> Counter[tuple[str, str]]:
        """Rollouts by engine and the process that sampled them."""
        index = self.hub.state._hub.index
        return Counter((record.engine, record.rollout.request_id) for record in index._records)


@pytest.mark.parametrize("resends", [True, False])
def test_engines_that_share_a_name_get_names_of_their_own_and_one_event_says_so(resends: bool) -> None:
    oldest = 0 if resends else None
    fleet = Fleet()
    processes = [Source("e0", f"life-{pid}", oldest) for pid in (1, 2, 3)]
    for _ in range(12):
        for pid, process in enumerate(processes, 1):
            fleet.hello(process, pid)
        fleet.hub.later(1.0)
    assert fleet.pids == {"e0": 1, "e0-2": 2, "e0-3": 3}
    assert sum(NOTICE in text for text in fleet.hub.texts) == 2  # one for each that shares the first one's name
    assert not {"resends", "lost_messages", "duplicates", "invalid"} & fleet.hub.counters.keys()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=25, deadline=None)
def test_nothing_of_engines_that_share_a_name_is_lost_or_mixed(moves: list[tuple[int, bool]]) -> None:
    """In any order in which their messages arrive."""
    fleet = Fleet()
    processes = [Source("e0", f"life-{pid}", 0) for pid in (1, 2, 3)]
    sampled: Counter[str] = Counter()
    for number, samples in [*moves, *((n, False) for _ in range(4) for n in range(3))]:
        process = processes[number]
        if samples:
            fleet.sample(process)
            sampled[process.epoch] += 1
        else:
            fleet.hello(process, number + 1)
        fleet.hub.later(0.3)
    owners = fleet.owners
    assert sum(owners.values()) == sampled.total()
    assert len({engine for engine, _ in owners}) == len({life for _, life in owners}) == len(sampled)
    assert len(fleet.pids) == 3


def test_an_engine_that_restarts_keeps_its_name_and_a_quick_one_waits_until_the_old_one_is_silent() -> None:
    fleet, old, new = Fleet(), Source("e0", "life-1", 0), Source("e0", "life-2", 0)
    fleet.hello(old, 1)
    fleet.hub.later(0.2)
    for _ in range(round(SILENT_S) + 2):
        fleet.hello(new, 2)
        fleet.sample(new)
        fleet.hub.later(1.0)
    assert fleet.pids == {"e0": 2}
    assert fleet.owners == {("e0", "life-2"): round(SILENT_S) + 2}
    assert fleet.hub.texts == ["e0 connected", "e0 is silent", "e0 restarted"]


def test_a_restart_beside_a_living_engine_of_the_same_name_takes_the_name_of_the_dead_one() -> None:
    fleet = Fleet()
    a, b, c = (Source("e0", f"life-{pid}", 0) for pid in (1, 2, 3))
    for _ in range(4):
        fleet.hello(a, 1)
        fleet.hello(b, 2)
        fleet.hub.later(1.0)
    for _ in range(round(SILENT_S) + 3):  # b has ended
        fleet.hello(a, 1)
        fleet.hello(c, 3)
        fleet.hub.later(1.0)
    assert fleet.pids == {"e0": 1, "e0-2": 3}


def test_names_are_the_same_at_the_next_hub() -> None:
    fleet = Fleet()
    a, b = (Source("e0", f"life-{pid}", 0) for pid in (1, 2))
    for _ in range(3):
        fleet.hello(a, 1)
        fleet.hello(b, 2)
        fleet.hub.later(1.0)
    past = fleet.hub.picture
    fleet = Fleet(Hub("hub-2", past=past, now=fleet.hub.now + 1.0))
    for _ in range(3):
        fleet.hello(b, 2)
        fleet.hello(a, 1)
        fleet.hub.later(1.0)
    assert fleet.pids == {"e0": 1, "e0-2": 2}
    assert not any(NOTICE in text for text in fleet.hub.texts[len(past.events) :])


def test_commands_reach_the_engine_that_was_named_and_its_answer_counts_for_it() -> None:
    fleet = Fleet()
    a, b = (Source("e0", f"life-{pid}", 0) for pid in (1, 2))
    for _ in range(3):
        fleet.hello(a, 1)
        fleet.hello(b, 2)
        fleet.hub.later(1.0)
    answer, orders = fleet.hub.ask(api.AskSet("q", "prefix_caching", "off", ["e0-2"]))
    assert answer.error is None
    assert [order.to for order in orders] == [b.identity]
    done = wire.CommandUpdate(answer.command or "", "e0", "prefix_caching", "applied", new="off")
    fleet.hub.state.control(b.identity, wire.encode(done), fleet.hub.now)
    fleet.hub.later()
    assert [(change.engine, change.state) for change in fleet.hub.picture.changes.values()] == [("e0-2", "applied")]


def test_a_second_trainer_is_refused_and_the_first_one_is_not_disturbed() -> None:
    fleet, first, second = Fleet(), Source("trainer/0", "life-1", 0), Source("trainer/0", "life-2", 0)
    hub = fleet.hub
    refusals: list[wire.Refused] = []
    for step in range(8):
        for process, loss in ((first, 1.0), (second, 2.0)):
            closed = wire.StepClosed(step, 0, 1, step, {"loss": loss})
            hub.state.data(process.frames(closed, sent=hub.now), hub.now)
        refusals += sent(hub.later(1.0), wire.Refused)
    assert [hub.steps[step].trainer["loss"] for step in range(8)] == [1.0] * 8
    assert [refusal.epoch for refusal in refusals] == ["life-2"]
    assert sum("second one was refused" in text for text in hub.texts) == 1
    again = hub.state.control(second.identity, wire.encode(wire.Register(1, "trainer/0", "life-2", "trainer")), hub.now)
    assert [effect.to for effect in again if isinstance(effect, SendControl)] == [second.identity]
    assert sent(again, wire.Refused) == refusals


def test_ranks_of_one_trainer_are_no_second_trainer() -> None:
    fleet = Fleet()
    ranks = [Source(f"trainer/{rank}", f"life-{rank}", 0) for rank in range(4)]
    for step in range(4):
        for rank, process in enumerate(ranks):
            fleet.hub.state.data(
                process.frames(wire.StepClosed(step, rank, 4, step), sent=fleet.hub.now), fleet.hub.now
            )
        fleet.hub.later(1.0)
    assert list(fleet.hub.steps) == [0, 1, 2, 3]
    assert not any(step.partial for step in fleet.hub.steps.values())
    assert not any("refused" in text for text in fleet.hub.texts)


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        hub = start_hub(found)
        yield found
        end(hub)


def has_losses(losses: list[float], shown: api.Snapshot) -> bool:
    return [step.trainer["loss"] for step in shown.steps.values()] == losses


def test_a_run_name_used_again_begins_a_new_run_beside_the_old_one(rundir: RunDir) -> None:
    """With the real hub process: the earlier steps stay in a run of their own, the new trainer loses nothing."""
    moved = RunDir(rundir.path.with_name(f"{rundir.run}-1"))
    try:
        with Client(rundir) as client:
            for losses in ([1.0] * 3, [2.0] * 4):
                with TrainerCollector(hub=str(rundir.path), start_hub=False) as trainer:
                    for step, loss in enumerate(losses):
                        trainer.step(step, metrics={"loss": loss})
                    see(client, partial(has_losses, losses))
            shown = see(client, lambda view: view.events)
            assert any("this is a new run" in event.text and moved.run in event.text for event in shown.events)
        with Reader(moved.path) as reader:
            assert {number: step.trainer["loss"] for number, step in reader.snapshot().steps.items()} == dict.fromkeys(
                range(3), 1.0
            )
    finally:
        shutil.rmtree(moved.path, ignore_errors=True)


def test_real_collectors_that_share_names(rundir: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    """Two engines named e0 and two trainers, over real sockets: the hub takes all of the engines' messages."""
    row = np.zeros((1, 2))
    with Client(rundir) as client, collector(rundir, "e0") as a, collector(rundir, "e0") as b:
        a.state, b.state = {"pid": 1}, {"pid": 2}
        shown = see(client, lambda view: len(view.engines) == 2)
        assert {engine.pid for engine in shown.engines.values()} == {1, 2}
        assert set(shown.engines) in ({"e0", "e0-1"}, {"e0", "e0-2"})
        first = TrainerCollector(hub=str(rundir.path), start_hub=False)
        first.step(0)
        see(client, lambda view: 0 in view.steps)
        second = TrainerCollector(hub=str(rundir.path), start_hub=False)
        with caplog.at_level(logging.WARNING, "rltop"):
            second.step(7)
            wait_until(lambda: any("second one was refused" in record.message for record in caplog.records))
        second.sequences(8, token_ids=np.ones((1, 2), int), rollout_logprobs=row, trainer_logprobs=row, mask=row + 1)
        assert second.close() is False
        first.step(1)
        shown = see(client, lambda view: 1 in view.steps)
        assert set(shown.steps) == {0, 1}
        assert first.close()
        assert not {"resends", "lost_messages"} & shown.counters.keys()
        assert sum("refused" in record.message for record in caplog.records) == 1


def test_refusals_are_remembered_within_a_bound_and_a_forgotten_process_is_refused_again() -> None:
    sources = Sources()

    def say(epoch: str, sent_at: float) -> None:
        sources.receive(wire.Envelope(1, "trainer/0", epoch, 0, sent_at, 0), sent_at)

    say("first", 0.0)
    for number in range(MAX_REMEMBERED + 10):
        at = 1.0 + number
        say(f"second-{number}", at)
        sources.receive(wire.Envelope(1, "trainer/0", "first", number + 1, at + 0.5, 0), at + 0.5)
        assert sources.take_named(at + 0.5) == []
        assert sources.is_refused("trainer/0", f"second-{number}")
    assert len(sources.take_conflicts()) == MAX_REMEMBERED + 10
    assert len(sources._refused) == MAX_REMEMBERED
    assert not sources.is_refused("trainer/0", "second-0")
    say("second-0", 1e6)
    sources.receive(wire.Envelope(1, "trainer/0", "first", 10**6, 1e6 + 1, 0), 1e6 + 1)
    assert sources.take_named(1e6 + 1) == []
    assert sources.is_refused("trainer/0", "second-0")
