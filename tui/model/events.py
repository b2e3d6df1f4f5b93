"""The events that are shown: all, or at a step of the past those before it. Pure."""

from __future__ import annotations

from rltop.backend.api import Event, Snapshot
from rltop.backend.util.durations import time_of_day
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column


def _severity(event: Event) -> theme.Part:
    sign, style = theme.SEVERITY.get(event.severity, ("?", theme.WARN))
    return sign, style


EVENTS: tuple[Column[Event], ...] = (
    Column("time", 8, lambda e: (time_of_day(e.time), theme.FAINT), right=False),
    Column("step", 5, lambda e: (theme.whole(e.step), theme.FAINT)),
    Column("", 1, _severity, right=False),
    Column("engine", 7, lambda e: (e.engine or "", theme.PLAIN), rank=1, right=False),
    Column("event", 20, lambda e: (e.text, theme.SEVERITY.get(e.severity, ("?", theme.PLAIN))[1]), right=False),
)


def shown_events(snapshot: Snapshot, history: StepColumns, cursor: int | None) -> list[Event]:
    """The events, newest first; with a cursor only those before its step closed."""
    events = snapshot.events[::-1]
    last = last_before(events, cursor, history.closed(cursor))
    return events if last is None else events[events.index(last) :]


def last_before(events: list[Event], step: int | None, closed: float) -> Event | None:
    """The last event before ``step`` closed; None follows the newest. ``events`` are ordered newest first.

    Several steps can close at the same time, so step numbers count; a restarted trainer reuses step numbers, so time
    counts too.
    """
    if step is None:
        return None
    before = (e for e in events if e.time <= closed and (e.step is None or e.step < step))
    return next(before, events[-1] if events else None)
