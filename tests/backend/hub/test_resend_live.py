"""Real senders, a real hub that is killed or cut off in the middle of a step: in the end nothing is missing."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.steps.steps import GRACE_S
from rltop.backend.store.read import Reader
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import wait_shown
from tests.support.hub_core import Hub
from tests.support.link import Link
from tests.support.receiver import run_directory, wait_until
from tests.support.store_load import start_hub
from tests.support.training import Training

ROLES = {"e0": "engine", "e1": "engine", "trainer/0": "trainer"}
# Not ``reused``: which of two steps that share rollouts finds them later, and whether a hub lived that long, is chance.
EXACT = ("partial", "unjoined", "trainer", "joins", "copies", "missing_rows", "lost")


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


class Live:
    """A run whose collectors are real, with a hub that can be killed; ``near`` is where collectors look for it."""

    def __init__(self, rundir: RunDir, near: RunDir | None = None, limit_bytes: int = 64 << 20) -> None:
        self._rundir = rundir
        self.training = Training()
        self.client = Client(rundir)
        self.hub: subprocess.Popen[bytes] | None = None
        self.senders = {
            name: Sender[Message](near or rundir, name, role, lambda _, items: items, limit_bytes=limit_bytes)
            for name, role in ROLES.items()
        }

    def start(self) -> None:
        self.hub = start_hub(self._rundir)

    def kill(self) -> None:
        assert self.hub is not None
        self.hub.kill()
        self.hub.wait()

    def step(self) -> Iterator[None]:
        """Send one more step, and stop after every message."""
        for name, body, arrays in self.training.step():
            nbytes = 500 + sum(array.nbytes for array in arrays.values())
            assert self.senders[name].offer("all", nbytes, (body, arrays))
            yield

    def steps(self, count: int, pause_s: float = 0.0) -> None:
        for _ in range(count):
            for _ in self.step():
                time.sleep(pause_s)

    def shown(self, step: int) -> api.Snapshot:
        """The picture, once the hub has measured ``step`` and stored it."""
        wait_shown(self.client, lambda c: c.view is not None and step in c.view.steps)
        wait_until(lambda: step in {one.step for one in stored(self._rundir)})
        assert self.client.view is not None
        return self.client.view

    def close(self) -> None:
        for sender in self.senders.values():
            sender.close(5)
        if self.hub is not None:
            self.kill()
        self.client.close()


@contextlib.contextmanager
def live(rundir: RunDir, near: RunDir | None = None, limit_bytes: int = 64 << 20) -> Iterator[Live]:
    run = Live(rundir, near, limit_bytes)
    try:
        yield run
    finally:
        run.close()


def measured(steps: int) -> dict[int, api.Step]:
    """What a hub that was never killed makes of the same run."""
    hub, training = Hub(), Training()
    for _ in range(steps):
        for message in training.step():
            hub.send(*message)
        hub.later(0.5)
    hub.later(GRACE_S)
    return hub.steps


def stored(rundir: RunDir) -> list[api.Step]:
    with Reader(rundir.path) as reader:
        return list(reader.steps())


def assert_close(ours: dict[str, float | None], theirs: dict[str, float | None]) -> None:
    """Sums may have been added in another order."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = theirs[name]
        assert value is None if other is None else value == pytest.approx(other, rel=1e-12, abs=1e-12), name


def assert_same(ours: list[api.Step], theirs: dict[int, api.Step]) -> None:
    assert sorted(step.step for step in ours) == list(theirs)  # one that waits for its rollouts may close later
    for step in ours:
        other = theirs[step.step]
        assert {name: getattr(step, name) for name in EXACT} == {name: getattr(other, name) for name in EXACT}
        assert_close(step.values, other.values)
        assert step.engines.keys() == other.engines.keys()
        for engine, values in step.engines.items():
            assert_close(values, other.engines[engine])
        assert step.values["joined_fraction"] == 1.0


def test_a_hub_killed_within_a_step_stores_the_same_as_an_uninterrupted_one(rundir: RunDir) -> None:
    rng = random.Random(3)
    with live(rundir) as run:
        run.start()
        for _ in range(3):
            run.steps(6, pause_s=0.02)
            if rng.random() < 0.7:
                run.shown(run.training.steps - 2)
            half = run.step()
            for _ in range(rng.randrange(1, 5)):
                next(half)
            time.sleep(rng.uniform(0, 0.3))  # the hub has these, and has measured some of them, and not all
            run.kill()
            for _ in half:
                pass  # sent to nobody
            run.steps(rng.randrange(3))
            run.start()
        run.steps(3, pause_s=0.02)
        picture = run.shown(run.training.steps - 1)
        assert picture.counters["resends"] > 0
        assert not picture.counters.get("lost_messages")
        assert not any(event.kind in ("gap", "lost") for event in picture.events)
        steps = run.training.steps
        wait_until(lambda: len(stored(rundir)) == steps)
    assert_same(stored(rundir), measured(steps))


def test_records_beyond_the_bound_are_counted_reported_and_marked(rundir: RunDir) -> None:
    with live(rundir, limit_bytes=30_000) as run:
        run.start()
        run.steps(4, pause_s=0.02)
        run.shown(3)
        run.kill()
        for _ in range(10):  # none of it arrives: what does not fit is shed, the rest waits
            for name, body, arrays in run.training.step():
                run.senders[name].offer("all", 500 + sum(array.nbytes for array in arrays.values()), (body, arrays))
        run.start()
        wait_until(lambda: not any(sender.health().queue_bytes for sender in run.senders.values()))
        first = run.training.steps
        for _ in range(3):
            run.steps(1, pause_s=0.02)
        shed = sum(sender.health().counts["all"].dropped for sender in run.senders.values())
        assert shed > 0
        for sender in run.senders.values():  # a step without its end stays open for a minute, or to the trainer's end
            sender.close(5)

        def accounted(client: Client) -> bool:
            """Each step is measured, or told as a gap."""
            if client.view is None:
                return False
            return len(client.view.steps) + client.view.counters.get("missing_steps", 0) == first + 3

        wait_shown(run.client, accounted)
        picture = run.client.view
        assert picture is not None
    steps = picture.steps
    assert {0, 1, 2, 3, first + 2} <= steps.keys()
    partial = [step for step in steps.values() if step.partial]
    missing = picture.counters.get("missing_steps", 0)
    assert missing or partial
    assert all(step.missing_rows or step.lost for step in partial)
    assert any(event.kind == "gap" for event in picture.events) == bool(missing)
    for step in steps.values():  # never as if all were well
        whole = step.values.get("joined_fraction") == 1.0 and not step.partial
        assert whole or step.partial or step.lost


def test_a_cut_link_loses_nothing(rundir: RunDir) -> None:
    with run_directory() as near:
        link = Link(near, rundir)
        try:
            with live(rundir, near) as run:
                run.start()
                run.steps(3, pause_s=0.02)
                run.shown(2)
                for _ in range(2):
                    half = run.step()
                    next(half)
                    next(half)
                    with link.cut():
                        for _ in half:
                            pass
                        run.steps(2)
                    run.steps(1, pause_s=0.02)
                picture = run.shown(run.training.steps - 1)
                assert not picture.counters.get("lost_messages")
                steps = run.training.steps
        finally:
            link.close()
    assert_same(stored(rundir), measured(steps))
