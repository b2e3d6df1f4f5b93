"""An alarm and its changes as viewers get them. Pure data; ``rltop.backend.alarms.rules`` decides on them."""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend.api.verdict import Cause
from rltop.backend.util.durations import span

CLEAR_AFTER = 5
"""Healthy verdicts in a row that end an alarm."""

MAX_EVIDENCE = 3
"""Sentences of evidence that go with an alarm."""

MAX_ALARMS = 200
"""That are kept; the oldest go."""

RAISED, RENAMED, REOPENED, CLEARED = "raised", "renamed", "reopened", "cleared"
"""What can become of an alarm."""


class Alarm(msgspec.Struct, frozen=True):
    """Something is wrong, or was, until ``cleared``.

    Attributes:
        id: of this alarm, for ``rltop ack``.
        cause: slug of the cause that it is called by; code, layer, title: of that cause.
        sure: a fault was named; otherwise only its family, and a probe would tell.
        engines: on which; empty of all. since_step: the first step at which it shows.
        raised, raised_step: when it was told of, wall clock, and after which step.
        cleared, cleared_step: when it was over; None while it is not.
        again: how often it was opened again.
        acknowledged: who has taken note of it, and when ``acknowledged_at``; such an alarm is not told anew.
        silenced_until: wall clock until which nothing is told of it.
        evidence, remedy, command: of that cause, as when it was called by it.
        well: healthy verdicts in a row by now; ``CLEAR_AFTER`` of them end it.
    """

    id: str
    cause: str
    code: str
    layer: str
    title: str
    sure: bool
    raised: float
    raised_step: int
    engines: list[str] = []
    since_step: int | None = None
    cleared: float | None = None
    cleared_step: int | None = None
    again: int = 0
    acknowledged: str = ""
    acknowledged_at: float | None = None
    silenced_until: float | None = None
    evidence: list[str] = []
    remedy: str = ""
    command: str = ""
    well: int = 0

    def quiet(self, now: float) -> bool:
        """Whether nobody is to be told."""
        return bool(self.acknowledged) or (self.silenced_until is not None and now < self.silenced_until)


def named_after(cause: Cause) -> dict[str, Any]:
    """The fields of an alarm that come from the cause that it is called by."""
    return {
        "cause": cause.id, "code": cause.code, "layer": cause.layer, "title": cause.title, "engines": cause.engines,
        "since_step": cause.since_step, "evidence": cause.evidence[:MAX_EVIDENCE], "remedy": cause.remedy,
        "command": cause.command,
    }  # fmt: skip


def about(alarm: Alarm) -> str:
    """What is wrong, where and since when, in a line."""
    sure = "" if alarm.sure else "perhaps "
    where = ", ".join(alarm.engines) or "all engines"
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    again = f", opened again {alarm.again} time{'s' * (alarm.again > 1)}" if alarm.again else ""
    return f"{sure}{alarm.cause} ({alarm.code}) on {where}{since}: {alarm.title}{again}"


def standing(alarm: Alarm, now: float) -> str:
    """How it stands, in a few words."""
    if alarm.cleared is not None:
        return f"over since step {alarm.cleared_step}"
    said = f"acknowledged by {alarm.acknowledged}" if alarm.acknowledged else "open"
    if alarm.well:
        said += f", healthy for {alarm.well} of {CLEAR_AFTER} steps"
    if alarm.silenced_until is not None and now < alarm.silenced_until:
        said += f", silent for {span(alarm.silenced_until - now)}"
    return said


class AlarmChange(msgspec.Struct, frozen=True):
    """What became of an alarm: one of the words above. ``told``: it is worth a bell, a message, a command."""

    what: str
    alarm: Alarm
    told: bool
