"""What an open alarm is about: the plot that shows it and its engines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import Alarm
from rltop.backend.diagnosis.causes import BY_ID

MAX_LINES = 3
"""Most lines in a plot by engine: a terminal has few colours that can be told apart."""

CHART_OF_CHECK = {
    "mean_ratio": "ratio", "sign": "gap", "one_sided": "gap", "calibration": "ratio", "nll_minus_entropy": "gap",
    "slope": "gap", "copies": "gap", "record": "gap", "lag_slope": "lag", "versions": "lag", "lag": "lag",
    "entropy": "entropy", "reward": "reward", "clip": "clip", "tail": "gap",
}  # fmt: skip
"""Check -> the plot whose figure it tests; the other checks of the gap test the version-matched gap."""


@dataclass(frozen=True)
class AlarmFocus:
    """The part of the screen that an open alarm is about.

    Attributes:
        alarm: its id.
        charts: ids of the plots that show it, the most telling first.
        engines: the affected engines; all engines of the run if it affects all.
        lines: the engines to draw, at most ``MAX_LINES``; ``more``: there are others.
    """

    alarm: str
    charts: tuple[str, ...]
    engines: frozenset[str]
    lines: tuple[str, ...]
    more: bool


def focus(alarm: Alarm | None, snapshot: Snapshot) -> AlarmFocus | None:
    """The focus of an alarm; None without one."""
    if alarm is None:
        return None
    causes = [BY_ID[cause] for cause in (alarm.cause, *(c.cause for c in alarm.candidates[:1])) if cause in BY_ID]
    checks = (symptom.split()[0] for cause in causes for need in cause.needs for symptom in need.split(" | "))
    charts = tuple(dict.fromkeys(CHART_OF_CHECK.get(check, "matched") for check in checks))
    affected = [name for name in alarm.engines if name in snapshot.engines] or list(snapshot.engines)
    others = [name for name in snapshot.engines if name not in affected]
    fits = len(snapshot.engines) <= MAX_LINES
    lines = tuple([*affected, *others] if fits else affected[: MAX_LINES - 1])
    return AlarmFocus(alarm.id, charts or ("matched",), frozenset(alarm.engines or snapshot.engines), lines, not fits)


def alarm_at(snapshot: Snapshot, step: int | None) -> Alarm | None:
    """The alarm that was open after ``step``; None for ``step``: the one that is open now."""
    if step is None:
        return snapshot.alarm
    return next((alarm for alarm in reversed(snapshot.alarms.values()) if alarm.raised_step <= step and
                 (alarm.cleared_step is None or alarm.cleared_step > step)), None)  # fmt: skip
