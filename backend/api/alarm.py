"""Alarms and their changes as viewers get them. Pure data; ``rltop.backend.alarms.rules`` raises and clears them."""

from __future__ import annotations

import msgspec

from rltop.backend.api.verdict import percent
from rltop.backend.util.durations import span

CLEAR_AFTER = 5
"""Consecutive healthy verdicts that clear an alarm."""

MAX_EVIDENCE = 3
"""Most sentences of evidence in an alarm."""

MAX_ALARMS = 200
"""Most alarms that are kept; the oldest are dropped first."""

RAISED, RENAMED, REOPENED, CLEARED = "raised", "renamed", "reopened", "cleared"
"""Changes of an alarm."""


class AlarmCandidate(msgspec.Struct, frozen=True):
    """A cause that may be behind an alarm: its slug and code, and its share, 0 to 1."""

    cause: str
    code: str
    share: float


class Alarm(msgspec.Struct, frozen=True):
    """A problem of the run; over once ``cleared`` is set.

    Attributes:
        id: of this alarm, for ``rltop ack``.
        cause: slug of the cause that names it; empty while no cause stands out. code, title: of that cause.
        layer: of that cause; the layers of ``candidates``, joined by "or", while no cause stands out.
        sure: a single cause stands out; otherwise ``candidates``, between which ``probe`` decides.
        engines: affected engines; empty for all. since_step: the first step that shows it.
        raised, raised_step: wall clock and step at which it was raised.
        cleared, cleared_step: wall clock and step at which it was cleared; None while open.
        again: number of times it was reopened.
        acknowledged, acknowledged_at: who acknowledged it, and when; an acknowledged alarm sends no notifications.
        silenced_until: wall clock until which notifications are suppressed.
        evidence, remedy, command: of the cause, from when it gave the alarm its name. Without a cause: the evidence of
            the most likely one, the next step, and the live command that covers most.
        well: consecutive healthy verdicts so far; ``CLEAR_AFTER`` of them clear it.
        candidates: the causes that fit, most likely first, while none stands out.
        probe: name of the probe that distinguishes them or confirms the cause; empty if none is needed.
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
    candidates: list[AlarmCandidate] = []
    probe: str = ""

    def is_muted(self, now: float) -> bool:
        """Whether notifications are suppressed."""
        return bool(self.acknowledged) or (self.silenced_until is not None and now < self.silenced_until)


def name(alarm: Alarm) -> str:
    """The cause with its code; the layers and the shares of their causes while none stands out."""
    if alarm.candidates:
        return f"{alarm.layer}: " + ", ".join(f"{c.cause} ({c.code}) {percent(c.share)}" for c in alarm.candidates)
    if not alarm.cause:
        return alarm.layer
    return f"{'' if alarm.sure else 'possibly '}{alarm.cause} ({alarm.code})"


def short_name(alarm: Alarm) -> str:
    """``name`` for a line with little space: codes instead of names, and two of them at most."""
    if not alarm.candidates:
        return name(alarm)
    more = ", ..." if len(alarm.candidates) > 2 else ""
    return f"{alarm.layer}: " + ", ".join(f"{c.code} {percent(c.share)}" for c in alarm.candidates[:2]) + more


def same_family(one: Alarm, other: Alarm) -> bool:
    """Whether the names of two alarms have a layer in common."""
    return not set(one.layer.split(" or ")).isdisjoint(other.layer.split(" or "))


def same_causes(one: Alarm, other: Alarm) -> bool:
    """Whether two alarms may have the same cause."""
    first, second = ({alarm.cause, *(c.cause for c in alarm.candidates)} for alarm in (one, other))
    return not first.isdisjoint(second) and bool(first | second)


def summary_line(alarm: Alarm) -> str:
    """Cause, engines and first step in one line; without a cause, those that fit and the probe."""
    where = ", ".join(alarm.engines) or "all engines"
    since = "" if alarm.since_step is None else f" since step {alarm.since_step}"
    again = f", reopened {alarm.again} time{'s' * (alarm.again > 1)}" if alarm.again else ""
    probe = f"; probe {alarm.probe} distinguishes them" if alarm.candidates and alarm.probe else ""
    return f"{name(alarm)} on {where}{since}: {alarm.title}{probe}{again}"


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
    """A change of an alarm, one of the constants above.

    Attributes:
        notifies: it sends notifications.
        was: the name that a renamed alarm had before.
    """

    what: str
    alarm: Alarm
    notifies: bool
    was: str = ""


def change_line(change: AlarmChange) -> str:
    """The change and the alarm in one line."""
    was = f" (before: {change.was})" if change.was else ""
    return f"alarm {change.alarm.id} {change.what}: {summary_line(change.alarm)}{was}"
