"""Faults on a live fleet, end to end and from the screen: it names what the demo has, a key takes the offered remedy,
the switch is confirmed, what becomes of it is shown, and the alarm is over.

The four are those that a published migration from one vLLM to the next met in turn: what a recorded logprob means, what
the caches do, what an update does to requests in flight, in what precision the head computes. Here as real engines have
them, without a word to the diagnosis but what collectors tell it. Two run always; RLTOP_ALL_INCIDENTS=1 runs all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from rltop.backend.api import Change
from rltop.backend.api.alarm import CLEAR_AFTER, Alarm
from rltop.backend.api.verdict import HEALTHY, Verdict
from rltop.backend.client.live import Client
from rltop.backend.demo.faults import BY_NAME
from rltop.backend.demo.supervisor import Demo, DemoOptions
from rltop.tui.app import RltopApp
from tests.live.test_demo_run import home, running
from tests.support.harness import until
from tests.support.screens import screen_text

__all__ = ["home"]  # the fixture

pytestmark = pytest.mark.engine

STEPS = 200
"""More than are looked at: a demo is stopped when all was seen."""

RAISED_WITHIN, HEALED_WITHIN, CLEARED_WITHIN = 14, 12, 3
"""Steps from the fault's first rows until an alarm names its cause; from the order until the verdict is healthy again,
of which two or three were sampled before it; and until the alarm is over, beyond the healthy verdicts that it takes."""

SHOWN_WITHIN = 3
"""Steps until what one of them brings is on the screen."""

SIZE = (120, 40)


@dataclass(frozen=True)
class Incident:
    """A fault, and what is to come of it.

    Attributes:
        fault: as ``rltop demo --fault`` has it. at: its step.
        code: the cause that is to be named.
        flag, value: what its remedy switches, and to what.
        always: it also runs where time is short.
    """

    fault: str
    code: str
    flag: str
    value: str
    at: int = 0
    always: bool = False

    @property
    def first(self) -> int:
        """The first step whose rows have it."""
        return self.at + BY_NAME[self.fault].first


INCIDENTS = (
    Incident("raw-logprobs", "A1", "logprobs_mode", "processed", always=True),
    Incident("stale-prefix", "C1", "update_clears_cache", "on", at=2),
    Incident("kept-kv", "C2", "update_clears_cache", "on", at=2, always=True),
    Incident("head-fp32-trainer", "D2", "lm_head_fp32", "on"),
)


class Watched:
    """A run whose verdict is asked for after every step, beside the screen and by a client of its own."""

    def __init__(self, demo: Demo, client: Client) -> None:
        self.demo = demo
        self.client = client
        self.verdicts: dict[int, Verdict] = {}

    @property
    def last(self) -> int:
        """The latest step."""
        return max(self.verdicts, default=-1)

    @property
    def newest(self) -> int:
        """The latest step that the hub has."""
        return max(self.client.view.steps, default=-1) if self.client.view is not None else -1

    @property
    def alarm(self) -> Alarm | None:
        """The one that is open."""
        return self.client.view.alarm if self.client.view is not None else None

    async def until(self, condition: Callable[[], object], what: str, steps: float = math.inf) -> None:
        """Poll until the condition holds. Fails if the dashboard ends, the demo fails, or it reaches the step limit."""
        first = self.newest

        def holds() -> bool:
            self.client.poll()
            assert self.demo.exit_code in (None, 0), self.demo.log.read_text()
            assert self.newest <= first + steps, f"not within {steps} steps: {what}\n{self.told()}"
            return bool(condition())

        await until(holds, what, poll_s=0.05)

    async def next(self) -> Verdict:
        """The verdict after the next step."""
        await self.until(lambda: self.client.view and self.last + 1 in self.client.view.steps, "the next step")
        self.verdicts[self.last + 1] = found = self.client.diagnosis(self.last + 1)
        return found

    def changes(self, incident: Incident) -> list[Change]:
        """What became of the remedy, by engine."""
        seen = self.client.view.changes.values() if self.client.view is not None else ()
        return [change for change in seen if (change.flag, change.wanted) == (incident.flag, incident.value)]

    def told(self) -> str:
        """Every verdict so far, a line each."""
        lines = []
        for step, verdict in self.verdicts.items():
            causes = ", ".join(f"{cause.code} {cause.confidence:.2f}" for cause in verdict.causes)
            lines.append(f"step {step}: {verdict.verdict} {causes}")
        return "\n".join(lines)


class Person:
    """Somebody before the dashboard, who knows of the run what the screen says and does what keys can do."""

    def __init__(self, run: Watched, app: RltopApp, pilot: Pilot[int]) -> None:
        self._run, self._app, self._pilot = run, app, pilot

    async def sees(self, *texts: str) -> list[str]:
        """Wait until all of these are on the screen at once; its lines."""

        def missing() -> list[str]:
            return [text for text in texts if text not in screen_text(self._app)]

        with contextlib.suppress(AssertionError):
            await self._run.until(lambda: not missing(), "the screen", SHOWN_WITHIN)
        assert not missing(), f"{missing()} not on the screen:\n{screen_text(self._app)}\n{self._run.told()}"
        return screen_text(self._app).splitlines()

    async def press(self, *keys: str) -> None:
        """One after the other."""
        await self._pilot.press(*keys)


@contextlib.asynccontextmanager
async def before_the_screen(run: Watched, name: str) -> AsyncIterator[Person]:
    """The real dashboard on the run's real hub."""
    with Client(run.demo.rundir) as client:
        app = RltopApp(client, name, control=True)
        async with app.run_test(size=SIZE) as pilot:
            yield Person(run, app, pilot)


def rltop(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "rltop.tui.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def answer(*arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON, ended with ``code``."""
    done = rltop(*arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def watched(incident: Incident) -> Iterator[Watched]:
    options = DemoOptions(run=incident.fault, steps=STEPS, matched=64, fault=incident.fault, fault_at=incident.at)
    with running(options) as (demo, client):
        yield Watched(demo, client)


async def raised(run: Watched, incident: Incident) -> tuple[int, Alarm]:
    """When the verdict first names the right cause, and the alarm that does."""
    named = None
    while run.last < incident.first + RAISED_WITHIN:
        verdict, alarm = await run.next(), run.alarm
        if run.last < incident.first:
            assert (verdict.verdict, alarm) == (HEALTHY, None), run.told()
        if verdict.causes and verdict.causes[0].code == incident.code:
            named = run.last if named is None else named
            if alarm is not None and _first(alarm) == incident.code:
                return named, alarm
    raise AssertionError(f"no alarm named {incident.code}:\n{run.told()}")


def _first(alarm: Alarm) -> str:
    """The cause that names the alarm, or the most likely one while none stands out."""
    return alarm.candidates[0].code if alarm.candidates else alarm.code


async def healed(run: Watched, ordered: int) -> int:
    """The step from which on the verdict is healthy, and stays so until the alarm is over.

    Until then nothing is told that was not told when the order was given: its order would switch what is not wrong.
    """
    since, before = None, {cause.code for cause in run.verdicts[ordered].causes}
    while run.alarm is not None:
        verdict = await run.next()
        assert {cause.code for cause in verdict.causes} <= before, f"another cause after the order:\n{run.told()}"
        if verdict.verdict != HEALTHY:
            assert since is None, f"healthy at step {since}, and then not:\n{run.told()}"
            assert run.last < ordered + HEALED_WITHIN, f"not healthy again:\n{run.told()}"
        elif since is None:
            since = run.last
        assert since is None or run.last <= since + CLEAR_AFTER + CLEARED_WITHIN, f"the alarm stays:\n{run.told()}"
    assert since is not None, run.told()
    return since


async def remedied(run: Watched, person: Person, incident: Incident, alarm: Alarm) -> int:
    """Take the offered remedy with the keys that the screen shows; the step after which it was given."""
    order = f"rltop set {incident.flag} {incident.value}"
    await person.sees(f" {incident.code} ", f" {alarm.id} ", order, "(r)", "r fix")
    await person.press("r")
    await person.sees(f"Switch {incident.flag} from ", f"⟦{incident.value}⟧ ?", "y  Yes, switch")
    await person.press("y")
    lines = await person.sees("applied  ", f"{incident.flag} {incident.value} after step ", "✔ applied on all engines")
    await run.until(lambda: len(run.changes(incident)) == 2, "both engines switch", SHOWN_WITHIN)
    print("\n".join(lines).rstrip())
    steps = {change.step for change in run.changes(incident)}
    assert {change.state for change in run.changes(incident)} == {"applied"} and len(steps) == 1
    ordered = steps.pop()
    assert ordered is not None
    while run.last < ordered:
        await run.next()
    return ordered


def chosen() -> list[Incident]:
    return [one for one in INCIDENTS if one.always or os.environ.get("RLTOP_ALL_INCIDENTS")]


@pytest.mark.parametrize("incident", chosen(), ids=lambda incident: incident.fault)
async def test_a_fault_is_named_its_remedy_is_taken_from_the_screen_and_it_is_over(
    home: Path, incident: Incident
) -> None:
    with watched(incident) as run:
        async with before_the_screen(run, incident.fault) as person:
            await person.press("3")
            named, alarm = await raised(run, incident)
            ordered = await remedied(run, person, incident, alarm)
            healthy = await healed(run, ordered)
            lines = await person.sees("✔ HEALTHY", f"{alarm.id} ", "cleared at step ")
            assert alarm.id not in lines[0]
            print("\n".join(lines).rstrip())
        over = answer("alarms", incident.fault)["alarms"]
        assert [one["id"] for one in over] == [alarm.id]
        print(
            f"\n| `{incident.fault}` | {incident.first} | {named}, {alarm.raised_step} | {incident.code} "
            f"| {ordered} | {healthy} | {over[0]['cleared_step']} |\n{run.told()}"
        )
        log = rltop("audit", incident.fault).stdout
        assert f"{incident.code} " in log and "applied" in log
