"""What happened in a run, where plots mark it and keys go to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rltop.backend.api import Change, Event, Snapshot
from rltop.backend.api.alarm import Alarm
from rltop.collectors.contract.actions import PROBE
from rltop.tui.model.changes import label
from rltop.tui.model.step_columns import StepColumns, XAxis
from rltop.tui.widgets.canvas import Marker


@dataclass(frozen=True)
class MarkKind:
    """A kind of mark: its sign, its name, what it means, and which events are of it.

    Attributes:
        sign: one cell.
        name: a word.
        help: one line.
        events: kinds of events (``backend.view.Event.kind``).
        words: of these events, those whose text has one of these; empty for all.
        trouble: of these events, those that are more than information.
    """

    sign: str
    name: str
    help: str
    events: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    trouble: bool = False

    def has(self, event: Event) -> bool:
        """Whether the event is of this kind."""
        said = not self.words or any(word in event.text for word in self.words)
        return event.kind in self.events and said and not (self.trouble and event.severity == "info")


SWITCH = MarkKind(
    "▲", "switch", "a switch or an action took hold: its first letters, + on, - off; or the reference is left"
)
ALARM = MarkKind("◆", "alarm", "an alarm was raised: its id; with ✔: it ended")
KINDS: tuple[MarkKind, ...] = (
    SWITCH,
    MarkKind("↻", "start", "an engine, the trainer or the hub was started, or is back from silence",
         ("engine", "trainer", "hub"), ("appeared", "restarted", "returned", "is back", "goes on")),
    MarkKind("✖", "loss", "an engine or the trainer fell silent, or said goodbye",
         ("engine", "trainer"), ("is silent", "said goodbye")),
    MarkKind("◇", "update", "trouble with weight updates: live engines are versions apart", ("skew",)),
    MarkKind("≢", "facts", "engines and trainer began to disagree in what they compute with", ("facts",), trouble=True),
    MarkKind("∅", "gap", "steps that nobody measured, or that lack messages that were lost on the way", ("gap", "lost")),
    ALARM,
)  # fmt: skip
"""All kinds of marks, in the order in which they are told where several meet."""


@dataclass(frozen=True)
class TimelineMark:
    """Something that happened after ``step`` had closed (-1: before the first), told in ``label``, with its sign."""

    step: int
    kind: MarkKind
    label: str

    @property
    def text(self) -> str:
        """Sign and label."""
        return f"{self.kind.sign}{self.label}"


def marks(view: Snapshot, history: StepColumns) -> tuple[TimelineMark, ...]:
    """What happened, in order of steps, each once per step and kind however many engines it befell.

    What was before the steps that are known (a hub that was restarted has lost the older ones) has no place.
    """
    if not history.steps:
        return ()
    found = {*_switches(view.changes.values(), history), *_events(view.events), *_alarms(view.alarms.values())}
    if history.reference is not None and history.reference.since is not None:
        found.add(TimelineMark(history.reference.since - 1, SWITCH, "≠reference"))
    first = history.steps[0].step
    order = {kind: place for place, kind in enumerate(KINDS)}
    kept = (mark for mark in found if mark.step >= first - 1)
    return tuple(sorted(kept, key=lambda mark: (mark.step, order[mark.kind], mark.label)))


def _switches(changes: Iterable[Change], history: StepColumns) -> Iterator[TimelineMark]:
    for change in changes:
        if change.state == "applied" and change.verb not in ("keep", PROBE):  # these change nothing
            yield TimelineMark(_step_of(change, history), SWITCH, label(change))


def _step_of(change: Change, history: StepColumns) -> int:
    """The last step closed before the change, -1 if none was: what an engine takes back by itself names no step."""
    if change.step is not None:
        return change.step
    earlier = (step.step for step in history.steps if step.closed <= change.requested)
    return max(earlier, default=-1)


def _events(events: Iterable[Event]) -> Iterator[TimelineMark]:
    """Of events after the first step: how a run begins is no news."""
    whose: dict[tuple[int, MarkKind], list[str]] = {}
    for event in events:
        kind = next((kind for kind in KINDS if kind.has(event)), None)
        if kind is not None and event.step is not None:
            names = whose.setdefault((event.step, kind), [])
            names += [name for name in (event.engine or event.kind,) if name not in names]
    for (step, kind), names in whose.items():
        yield TimelineMark(step, kind, names[0] if len(names) == 1 else f"{names[0]}+{len(names) - 1}")


def _alarms(alarms: Iterable[Alarm]) -> Iterator[TimelineMark]:
    for alarm in alarms:
        yield TimelineMark(alarm.raised_step, ALARM, alarm.id)
        if alarm.cleared_step is not None:
            yield TimelineMark(alarm.cleared_step, ALARM, f"{alarm.id}✔")


def updates(history: StepColumns, axis: XAxis) -> tuple[float, ...]:
    """Where on the x axis new weights came, of a run in which that is no matter of every step; else empty."""
    versions, x = history.x("version"), history.x(axis)
    rises = np.flatnonzero(np.diff(versions) > 0) + 1
    rises = rises[np.isfinite(x[rises])]
    return tuple(x[rises].tolist()) if 2 * rises.size < versions.size else ()


def markers(found: Iterable[TimelineMark], history: StepColumns, axis: XAxis) -> tuple[Marker, ...]:
    """One marker per mark, between the step before it and the next."""
    x, numbers = history.x(axis), history.numbers()
    known = np.isfinite(x)
    if not known.any():
        return ()
    return tuple(
        Marker(float(np.interp(mark.step + 0.5, numbers[known], x[known])), mark.label, mark.kind.sign)
        for mark in found
    )


def lands(mark: TimelineMark, history: StepColumns) -> int:
    """The first step that closed after it, which shows it; the latest if none has."""
    place = history.index(mark.step)
    return history.steps[min(-1 if place is None else place, len(history.steps) - 2) + 1].step


def next_mark(found: Iterable[TimelineMark], history: StepColumns, cursor: int | None, *, forward: bool) -> int | None:
    """The step of the next mark after the cursor, or of the one before; None if there is none."""
    at = float("inf") if cursor is None else cursor
    steps = {lands(mark, history) for mark in found}
    if forward:
        return min((step for step in steps if step > at), default=None)
    return max((step for step in steps if step < at and step != history.steps[-1].step), default=None)


def told_at(found: Iterable[TimelineMark], history: StepColumns, step: int) -> str:
    """What happened right before ``step``, in few words."""
    return " ".join(mark.text for mark in found if lands(mark, history) == step)
