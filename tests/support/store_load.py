"""A hub under load: collectors that send continuously, and a viewer that remembers every step it was shown."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rltop.backend import api
from rltop.backend.api.downsample import BLOCK, ROOM, headline
from rltop.backend.client.live import Client
from rltop.backend.store.read import Reader
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.harness import wait_shown
from tests.support.hub_messages import engine_state

SCALARS = {f"scalar_{number}": number / 7 for number in range(40)}


def start_hub(rundir: RunDir, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a hub process; what it logs is appended to ``log``."""
    with Path(log or os.devnull).open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", str(rundir.path)], stderr=file)


def child_of(hub: subprocess.Popen[bytes]) -> int:
    """Return the pid of the one child of a hub: its store's writer."""
    found = [children.read_text().split() for children in Path(f"/proc/{hub.pid}/task").glob("*/children")]
    ((child,),) = (children for children in found if children)
    return int(child)


class Fleet:
    """A trainer that closes ``steps_per_s`` steps a second for as long as it lives, and ``engines`` engines."""

    def __init__(self, rundir: RunDir, steps_per_s: float, engines: int) -> None:
        self.steps = 0
        self._pause = 1 / steps_per_s
        self._next = time.monotonic()
        self._trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items, tick=self._tick)
        self._engines = [Sender[Message](rundir, f"e{n}", "engine", lambda _, items: items) for n in range(engines)]
        for place, engine in enumerate(self._engines):
            engine._periodic = lambda e=engine, n=place: self._report(e, n)
            engine.start()
        self._trainer.start()

    def _report(self, engine: Sender[Message], place: int) -> None:
        state = engine_state(engine.source, step=self.steps, generated_tokens=self.steps * 100 + place)
        engine.offer("state", 500, (state, {}))

    def pause(self) -> None:
        """Close no more steps."""
        self._next = float("inf")

    def _tick(self) -> None:
        while time.monotonic() >= self._next and not self._trainer._closing.is_set():
            self._next += self._pause
            body = wire.StepClosed(self.steps, 0, 1, self.steps, {**SCALARS, "number": float(self.steps)})
            self._trainer.offer("all", 1000, (body, {}))
            self.steps += 1

    def close(self) -> None:
        for sender in (self._trainer, *self._engines):
            sender.close(5)


@contextlib.contextmanager
def fleet(rundir: RunDir, *, steps_per_s: float, engines: int = 2) -> Iterator[Fleet]:
    made = Fleet(rundir, steps_per_s, engines)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Witness:
    """Every step that a viewer was shown as stored, to the bit; ``fresh`` are those since the last check."""

    shown: dict[int, api.Step] = field(default_factory=dict)
    fresh: dict[int, api.Step] = field(default_factory=dict)

    def look(self, client: Client) -> None:
        if client.view is not None and not client.view.counters.get("unstored"):
            for number in reversed(client.view.steps):
                if number in self.shown:
                    break
                self.shown[number] = self.fresh[number] = client.view.steps[number]

    def check(self, rundir: RunDir) -> None:
        """Nothing that was shown since the last check is missing from the file or other than it was."""
        if self.fresh:
            with Reader(rundir.path) as reader:
                bounds = min(self.fresh), max(self.fresh)
                stored = {step.step: step for step in reader.steps("step >= ? AND step <= ?", bounds)}
            self._compare(self.fresh, stored)
        self.fresh = {}

    def check_all(self, rundir: RunDir) -> None:
        """The same of everything, and the file is sound."""
        with Reader(rundir.path) as reader:
            assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            stored = {step.step: step for step in reader.steps()}
        self._compare(self.shown, stored)

    def _compare(self, shown: dict[int, api.Step], stored: dict[int, api.Step]) -> None:
        lost = sorted(set(shown) - set(stored))
        assert lost == [], f"acknowledged and lost: {lost}"
        # What a viewer first sees when it is old, it sees the headline of.
        other = [number for number, step in shown.items() if step not in (stored[number], headline(stored[number]))]
        assert other == [], f"other than shown: {other}"


def kill_often(rundir: RunDir, kills: int, seed: int, *, longest_s: float, steps_per_s: float) -> tuple[Witness, int]:
    """Kill the hub ``kills`` times, each at a random moment after it showed something; a new one follows each time.

    At the end nothing that was sent is missing.

    Returns:
        What was shown, and how many steps the trainer had closed.
    """
    rng = random.Random(seed)
    witness = Witness()
    with fleet(rundir, steps_per_s=steps_per_s) as load, Client(rundir) as client:
        for _ in range(kills):
            hub = start_hub(rundir)
            try:
                before = client.view.epoch if client.view else ""
                wait_shown(client, lambda c: c.view is not None and c.view.epoch != before)  # noqa: B023
                picture = client.view
                assert picture is not None
                last = max(witness.shown, default=0)
                # Older steps of a snapshot are downsampled; after a long backlog those are all that was shown before.
                oldest = max(last - 1000, max(picture.steps, default=0) - ROOM[0] + BLOCK)
                newest = {number for number in range(oldest, last + 1) if number in witness.shown}
                missing = newest - set(picture.steps)
                assert not missing, f"the next hub does not know {sorted(missing)[:5]}"
                end = time.monotonic() + rng.uniform(0, longest_s)
                while (left := end - time.monotonic()) > 0:
                    client.poll(min(left, 0.05))
                    witness.look(client)
            finally:
                hub.kill()
                hub.wait()
            client.poll(0)  # what it had sent before it died has been shown too
            witness.look(client)
            witness.check(rundir)
        witness.check_all(rundir)
        load.pause()
        hub = start_hub(rundir)
        try:
            last = load.steps - 1
            wait_shown(
                client,
                lambda c: c.view is not None and last in c.view.steps and not c.view.counters.get("unstored"),
            )
            assert client.view is not None
            assert not client.view.counters.get("lost_messages")
        finally:
            hub.kill()
            hub.wait()
        _check_whole(rundir, load.steps)
        return witness, load.steps


def _check_whole(rundir: RunDir, steps: int) -> None:
    """All that was sent is there, once: no step is missing, none is partial, none came a second time."""
    with Reader(rundir.path) as reader:
        stored = reader.execute("SELECT step, partial FROM step ORDER BY id").fetchall()
        assert stored == [(number, 0) for number in range(steps)]
        assert reader.execute("SELECT text FROM event WHERE kind IN ('gap', 'lost')").fetchall() == []


__all__ = ["Fleet", "Witness", "api", "fleet", "kill_often", "start_hub"]
