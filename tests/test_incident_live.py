"""Faults on a live fleet, end to end: the demo has one, an alarm names it, its remedy is applied, the alarm is over.

The four are those that a published migration from one vLLM to the next met in turn: what a recorded logprob means, what
the caches do, what an update does to requests in flight, in what precision the head computes. Here as real engines have
them, without a word to the diagnosis but what collectors tell it. Two run always; RLTOP_ALL_INCIDENTS=1 runs all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.client import Client
from rltop.backend.demo.faults import BY_NAME
from rltop.backend.demo.run import Demo, DemoOptions
from rltop.backend.diagnosis.alarm import CLEAR_AFTER, Alarm
from rltop.backend.diagnosis.verdict import FAULT, HEALTHY, Verdict
from tests.test_demo_run import home, running, until

__all__ = ["home"]  # the fixture

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

STEPS = 200
"""More than are looked at: a demo is stopped when all was seen."""

RAISED_WITHIN, HEALED_WITHIN, CLEARED_WITHIN = 14, 12, 3
"""Steps from the fault's first rows until an alarm names its cause; from the order until the verdict is healthy again,
of which two or three were sampled before it; and until the alarm is over, beyond the healthy verdicts that it takes."""

CLI_S = 60.0


@dataclass(frozen=True)
class Incident:
    """A fault, and what is to come of it.

    Attributes:
        fault: as ``rltop demo --fault`` has it. at: its step.
        code: the cause that is to be named.
        command: the order that its remedy is.
        always: it also runs where time is short.
    """

    fault: str
    code: str
    command: str
    at: int = 0
    always: bool = False

    @property
    def first(self) -> int:
        """The first step whose rows have it."""
        return self.at + BY_NAME[self.fault].first


INCIDENTS = (
    Incident("raw-logprobs", "A1", "rltop set logprobs_mode processed", always=True),
    Incident("stale-prefix", "C1", "rltop set update_clears_cache on", at=2),
    Incident("kept-kv", "C2", "rltop set update_clears_cache on", at=2, always=True),
    Incident("head-fp32-trainer", "D2", "rltop set lm_head_fp32 on"),
)


class Watched:
    """A run whose verdict is asked for after every step."""

    def __init__(self, demo: Demo, client: Client) -> None:
        self.demo = demo
        self.client = client
        self.verdicts: dict[int, Verdict] = {}

    @property
    def last(self) -> int:
        """The latest step."""
        return max(self.verdicts, default=-1)

    @property
    def alarm(self) -> Alarm | None:
        """The one that is open."""
        return self.client.view.alarm if self.client.view is not None else None

    def next(self) -> Verdict:
        """The verdict after the next step."""
        until(self.demo, self.client, lambda: self.client.view and self.last + 1 in self.client.view.steps)
        self.verdicts[self.last + 1] = found = self.client.diagnosis(self.last + 1)
        return found

    def told(self) -> str:
        """Every verdict so far, a line each."""
        lines = []
        for step, verdict in self.verdicts.items():
            causes = ", ".join(f"{cause.code} {cause.confidence:.2f}" for cause in verdict.causes)
            lines.append(f"step {step}: {verdict.verdict} {causes}")
        return "\n".join(lines)


def rltop(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "rltop.tui.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=CLI_S)


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


def raised(run: Watched, incident: Incident) -> tuple[int, Alarm]:
    """When the verdict first names the right cause, and the alarm that does."""
    named = None
    while run.last < incident.first + RAISED_WITHIN:
        verdict, alarm = run.next(), run.alarm
        if run.last < incident.first:
            assert (verdict.verdict, alarm) == (HEALTHY, None), run.told()
        if verdict.verdict == FAULT and verdict.causes[0].code == incident.code:
            named = run.last if named is None else named
            if alarm is not None and alarm.code == incident.code:
                return named, alarm
    raise AssertionError(f"no alarm named {incident.code}:\n{run.told()}")


def healed(run: Watched, ordered: int) -> int:
    """The step from which on the verdict is healthy, and stays so until the alarm is over."""
    since = None
    while run.alarm is not None:
        verdict = run.next()
        if verdict.verdict != HEALTHY:
            assert since is None, f"healthy at step {since}, and then not:\n{run.told()}"
            assert run.last < ordered + HEALED_WITHIN, f"not healthy again:\n{run.told()}"
        elif since is None:
            since = run.last
        assert since is None or run.last <= since + CLEAR_AFTER + CLEARED_WITHIN, f"the alarm stays:\n{run.told()}"
    assert since is not None, run.told()
    return since


def chosen() -> list[Incident]:
    return [one for one in INCIDENTS if one.always or os.environ.get("RLTOP_ALL_INCIDENTS")]


@pytest.mark.parametrize("incident", chosen(), ids=lambda incident: incident.fault)
def test_a_fault_is_named_its_remedy_is_applied_live_and_it_is_over(home: Path, incident: Incident) -> None:
    with watched(incident) as run:
        named, alarm = raised(run, incident)
        rung = answer("alarms", incident.fault, code=1)["alarms"][0]
        assert (rung["id"], rung["code"], rung["cleared"]) == (alarm.id, incident.code, None)
        printed = answer("diagnose", incident.fault, code=1)
        cause = printed["causes"][0]
        assert (printed["verdict"], cause["code"]) == (FAULT, incident.code), printed
        assert cause["command"].startswith(incident.command), cause
        done = rltop(*shlex.split(cause["command"])[1:], "--run", incident.fault, "--reason", cause["id"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert run.client.view is not None
        ordered = max(run.client.view.steps)
        healthy = healed(run, ordered)
        over = answer("alarms", incident.fault)["alarms"]
        assert [one["id"] for one in over] == [alarm.id]
        print(
            f"\n| `{incident.fault}` | {incident.first} | {named}, {alarm.raised_step} | {incident.code} {cause['id']} "
            f"| `{cause['command']}` | {ordered} | {healthy} | {over[0]['cleared_step']} |\n{run.told()}"
        )
        assert answer("diagnose", incident.fault)["verdict"] == HEALTHY
        log = rltop("audit", incident.fault).stdout
        assert cause["id"] in log and "applied" in log
