"""Alarms and their changes as viewers get them. Pure data; ``rltop.backend.alarms.rules`` raises and clears them."""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend.api.verdict import Cause
from rltop.backend.util.durations import span

CLEAR_AFTER = 5
"""Consecutive healthy verdicts that clear an alarm."""

MAX_EVIDENCE = 3
"""Most sentences of evidence in an alarm."""

MAX_ALARMS = 200
"""Most alarms that are kept; the oldest are dropped first."""

RAISED, RENAMED, REOPENED, CLEARED = "raised", "renamed", "reopened", "cleared"
"""Changes of an alarm."""


class Alarm(msgspec.Struct, frozen=True):
    """A problem of the run; over once ``cleared`` is set.

    Attributes:
        id: of this alarm, for ``rltop ack``.
        cause: slug of the cause that names it. code, layer, title: of that cause.
        sure: a single cause was found; otherwise a family of causes, between which a probe decides.
        engines: affected engines; empty for all. since_step: the first step that shows it.
        raised, raised_step: wall clock and step at which it was raised.
        cleared, cleared_step: wall clock and step at which it was cleared; None while open.
        again: number of times it was reopened.
        acknowledged, acknowledged_at: who acknowledged it, and when; an acknowledged alarm sends no notifications.
        silenced_until: wall clock until which notifications are suppressed.
        evidence, remedy, command: of the cause, from when it gave the alarm its name.
        well: consecutive healthy verdicts so far; ``CLEAR_AFTER`` of them clear it.
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

    def is_muted(self, now: float) -> bool:
        """Whether notifications are suppressed."""
        return bool(self.acknowledged) or (self.silenced_until is not None and now < self.silenced_until)


def fields_of(cause: Cause) -> dict[str, Any]:
    """The fields of an alarm that come from its cause."""
    return {
        "cause": cause.id, "code": cause.code, "layer": cause.layer, "title": cause.title, "engines": cause.engines,
        "since_step": cause.since_step, "evidence": cause.evidence[:MAX_EVIDENCE], "remedy": cause.remedy,
        "command": cause.command,
    }  # fmt: skip


def summary_line(alarm: Alarm) -> str:
    """Cause, engines and first step in one line."""
    sure = "" if alarm.sure else "possibly "
    where = ", ".join(alarm.engines) or "all engines"
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    again = f", reopened {alarm.again} time{'s' * (alarm.again > 1)}" if alarm.again else ""
    return f"{sure}{alarm.cause} ({alarm.code}) on {where}{since}: {alarm.title}{again}"


def status_text(alarm: Alarm, now: float) -> str:
    """The alarm's status in a few words."""
    if alarm.cleared is not None:
        return f"cleared at step {alarm.cleared_step}"
    text = f"acknowledged by {alarm.acknowledged}" if alarm.acknowledged else "open"
    if alarm.well:
        text += f", healthy for {alarm.well} of {CLEAR_AFTER} steps"
    if alarm.silenced_until is not None and now < alarm.silenced_until:
        text += f", silenced for {span(alarm.silenced_until - now)}"
    return text


class AlarmChange(msgspec.Struct, frozen=True):
    """A change of an alarm, one of the constants above. ``notifies``: it sends notifications."""

    what: str
    alarm: Alarm
    notifies: bool
