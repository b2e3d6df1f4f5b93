"""The events of a run that plots mark and keys jump to. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rltop.backend.api import Change, Event, Snapshot, is_over
from rltop.backend.api.alarm import Alarm
from rltop.collectors.contract.actions import PROBE
from rltop.tui.model.changes import label
from rltop.tui.model.step_columns import StepColumns, XAxis
from rltop.tui.widgets.canvas import Marker


@dataclass(frozen=True)
class MarkKind:
    """A kind of mark and the events that belong to it.

    Attributes:
        sign: one cell.
        name: one word.
        help: one line.
        events: kinds of events (``backend.api.Event.kind``).
        words: regular expression that the event's text must match; empty matches all.
        trouble: only events above severity ``info``.
    """

    sign: str
    name: str
    help: str
    events: tuple[str, ...] = ()
    words: str = ""
    trouble: bool = False

    def has(self, event: Event) -> bool:
        """Whether the event is of this kind."""
        if event.kind not in self.events or (self.trouble and event.severity == "info"):
            return False
        return re.search(self.words, event.text) is not None


SWITCH = MarkKind(
    "▲", "switch", "a switch or an action took effect: its initials, + on, - off; or the reference diverges"
)
ALARM = MarkKind("◆", "alarm", "an alarm was raised: its id; with ✔: it cleared")
KINDS: tuple[MarkKind, ...] = (
    SWITCH,
    MarkKind("↻", "start", "an engine, the trainer or the hub started, reconnected or recovered from silence",
             ("engine", "trainer", "hub"),
             r"\b(appeared|connected|reconnected|restarted|returned|is back|goes on|resumed|continues)\b"),
    MarkKind("✖", "loss", "an engine or the trainer went silent or disconnected",
             ("engine", "trainer"), r"\b(is silent|said goodbye|disconnected)\b"),
    MarkKind("◇", "update", "weight updates are in trouble: live engines have different versions", ("skew",)),
    MarkKind("≢", "facts", "engines and trainer started to differ in their configuration", ("facts",), trouble=True),
    MarkKind("∅", "gap", "steps that were not measured, or that lack messages lost in transit", ("gap", "lost")),
    ALARM,
)  # fmt: skip
"""All kinds of marks, in the order in which marks of one step are listed. The words match older stores too."""


@dataclass(frozen=True)
class TimelineMark:
    """An event after ``step`` closed (-1: before the first step), with a short label."""

    step: int
    kind: MarkKind
    label: str

    @property
    def text(self) -> str:
        """Sign and label."""
        return f"{self.kind.sign}{self.label}"


def marks(snapshot: Snapshot, history: StepColumns) -> tuple[TimelineMark, ...]:
    """The marks of a run in step order, one per step, kind and label however many engines share it.

    Events before the first known step are left out: a restarted hub has lost the older steps.
    """
    if not history.steps:
        return ()
    over = is_over(snapshot)
    found = {
        *_switch_marks(snapshot.changes.values(), history),
        *_event_marks(event for event in snapshot.events if not _is_end(event, over)),
        *_alarm_marks(snapshot.alarms.values()),
    }
    if history.reference is not None and history.reference.since is not None:
        found.add(TimelineMark(history.reference.since - 1, SWITCH, "≠reference"))
    first = history.steps[0].step
    order = {kind: index for index, kind in enumerate(KINDS)}
    known = (mark for mark in found if mark.step >= first - 1)
    return tuple(sorted(known, key=lambda mark: (mark.step, order[mark.kind], mark.label)))


def _switch_marks(changes: Iterable[Change], history: StepColumns) -> Iterator[TimelineMark]:
    for change in changes:
        if change.state == "applied" and change.verb not in ("keep", PROBE):  # these change nothing
            yield TimelineMark(_step_of(change, history), SWITCH, label(change))


def _step_of(change: Change, history: StepColumns) -> int:
    """The last step closed before the change, -1 if none: an engine's auto-revert carries no step."""
    if change.step is not None:
        return change.step
    earlier = (step.step for step in history.steps if step.closed <= change.requested)
    return max(earlier, default=-1)


def _is_end(event: Event, over: bool) -> bool:
    """Whether the event is part of the end of a finished run, which is no loss."""
    return over and event.kind in ("engine", "trainer") and event.text.endswith("said goodbye")


def _event_marks(events: Iterable[Event]) -> Iterator[TimelineMark]:
    """Marks of events after the first step: the start of a run is not marked."""
    sources: dict[tuple[int, MarkKind], list[str]] = {}
    for event in events:
        kind = next((kind for kind in KINDS if kind.has(event)), None)
        if kind is not None and event.step is not None:
            names = sources.setdefault((event.step, kind), [])
            names += [name for name in (event.engine or event.kind,) if name not in names]
    for (step, kind), names in sources.items():
        yield TimelineMark(step, kind, names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}")


def _alarm_marks(alarms: Iterable[Alarm]) -> Iterator[TimelineMark]:
    for alarm in alarms:
        yield TimelineMark(alarm.raised_step, ALARM, alarm.id)
        if alarm.cleared_step is not None:
            yield TimelineMark(alarm.cleared_step, ALARM, f"{alarm.id}✔")


def updates(history: StepColumns, axis: XAxis) -> tuple[float, ...]:
    """Weight updates on the x axis; empty for a run that updates at more than half of its steps."""
    versions, x = history.x("version"), history.x(axis)
    rises = np.flatnonzero(np.diff(versions) > 0) + 1
    rises = rises[np.isfinite(x[rises])]
    return tuple(x[rises].tolist()) if 2 * rises.size < versions.size else ()


def markers(all_marks: Iterable[TimelineMark], history: StepColumns, axis: XAxis) -> tuple[Marker, ...]:
    """One marker per mark, between its step and the next."""
    x, numbers = history.x(axis), history.numbers()
    known = np.isfinite(x)
    if not known.any():
        return ()
    return tuple(
        Marker(float(np.interp(mark.step + 0.5, numbers[known], x[known])), mark.label, mark.kind.sign)
        for mark in all_marks
    )


def first_step_after(mark: TimelineMark, history: StepColumns) -> int:
    """The first step that closed after the mark; the latest if none has."""
    index = history.index(mark.step)
    return history.steps[min(-1 if index is None else index, len(history.steps) - 2) + 1].step


def next_mark(
    all_marks: Iterable[TimelineMark], history: StepColumns, cursor: int | None, *, forward: bool
) -> int | None:
    """The step of the next mark after the cursor, or of the previous one; None if there is none."""
    at = float("inf") if cursor is None else cursor
    steps = {first_step_after(mark, history) for mark in all_marks}
    if forward:
        return min((step for step in steps if step > at), default=None)
    return max((step for step in steps if step < at and step != history.steps[-1].step), default=None)


def marks_before(all_marks: Iterable[TimelineMark], history: StepColumns, step: int) -> str:
    """The marks right before ``step``, in one line."""
    return " ".join(mark.text for mark in all_marks if first_step_after(mark, history) == step)
