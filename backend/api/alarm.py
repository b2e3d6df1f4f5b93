"""An alarm and its changes as viewers get them. Pure data; ``rltop.backend.alarms.rules`` decides on them."""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend.api.verdict import Cause
from rltop.backend.util.durations import span

CLEAR_AFTER = 5
"""Consecutive healthy verdicts that end an alarm."""

MAX_EVIDENCE = 3
"""Sentences of evidence that go with an alarm."""

MAX_ALARMS = 200
"""Alarms that are kept; the oldest are dropped."""

RAISED, RENAMED, REOPENED, CLEARED = "raised", "renamed", "reopened", "cleared"
"""The changes of an alarm."""


class Alarm(msgspec.Struct, frozen=True):
    """An incident of a run, open until ``cleared``.

    Attributes:
        id: of this alarm, for ``rltop ack``.
        cause: id of the cause that it is named after; code, layer, title: of that cause.
        sure: the cause is certain; otherwise a probe is needed.
        engines: affected engines; empty for all. since_step: the first step with a symptom.
        raised, raised_step: wall clock and step of its start.
        cleared, cleared_step: wall clock and step of its end; None while it is open.
        again: how often it was reopened.
        acknowledged: who acknowledged it, at ``acknowledged_at``; such an alarm sends no notifications.
        silenced_until: wall clock until which it sends no notifications.
        evidence, remedy, command: of that cause, when the alarm was named after it.
        well: latest consecutive healthy verdicts; ``CLEAR_AFTER`` of them end it.
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
        """Whether it sends no notifications."""
        return bool(self.acknowledged) or (self.silenced_until is not None and now < self.silenced_until)


def named_after(cause: Cause) -> dict[str, Any]:
    """The fields of an alarm that come from its cause."""
    return {
        "cause": cause.id, "code": cause.code, "layer": cause.layer, "title": cause.title, "engines": cause.engines,
        "since_step": cause.since_step, "evidence": cause.evidence[:MAX_EVIDENCE], "remedy": cause.remedy,
        "command": cause.command,
    }  # fmt: skip


def about(alarm: Alarm) -> str:
    """The cause, the engines and the first step, in a line."""
    sure = "" if alarm.sure else "perhaps "
    where = ", ".join(alarm.engines) or "all engines"
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    again = f", reopened {alarm.again} time{'s' * (alarm.again > 1)}" if alarm.again else ""
    return f"{sure}{alarm.cause} ({alarm.code}) on {where}{since}: {alarm.title}{again}"


def standing(alarm: Alarm, now: float) -> str:
    """The state of the alarm, in a few words."""
    if alarm.cleared is not None:
        return f"over since step {alarm.cleared_step}"
    said = f"acknowledged by {alarm.acknowledged}" if alarm.acknowledged else "open"
    if alarm.well:
        said += f", healthy for {alarm.well} of {CLEAR_AFTER} steps"
    if alarm.silenced_until is not None and now < alarm.silenced_until:
        said += f", silent for {span(alarm.silenced_until - now)}"
    return said


class AlarmChange(msgspec.Struct, frozen=True):
    """A change of an alarm: one of the words above. ``told``: listeners are notified of it."""

    what: str
    alarm: Alarm
    told: bool
