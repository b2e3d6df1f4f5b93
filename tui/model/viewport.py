"""How all plots look at the run: what x counts, which stretch of it shows, which step is read out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from rltop.tui.model.step_columns import X_AXES, StepColumns, XAxis
from rltop.tui.widgets import canvas

WINDOWS: tuple[float | None, ...] = (None, 300.0, 100.0, 30.0)
"""Stretches that one key goes through, in units of the x axis; None is the whole run."""

NARROWEST = {"step": 5.0, "version": 5.0, "minutes": 0.1}
"""The shortest stretch to zoom in on, by x axis."""


@dataclass(frozen=True)
class Viewport:
    """How all plots look at the run.

    Attributes:
        axis: what x counts.
        window: length of the stretch that shows, in units of ``axis``; None for the whole run.
        log: values on a logarithmic scale.
        cursor: the step that is read out, whatever the axis; None for the latest.
    """

    axis: XAxis = "step"
    window: float | None = None
    log: bool = False
    cursor: int | None = None


def stretch(sight: Viewport, history: StepColumns) -> tuple[float, float]:
    """The part of the x axis that shows. It holds the cursor, and else the latest step.

    A cursor that leaves it turns a page, on which it stands in the middle half; so most of its moves leave the page
    as it is.
    """
    x = history.x(sight.axis)
    known = x[np.isfinite(x)]
    first, last = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    low, high = canvas.page(first, last, sight.window)
    at = cursor_x(sight, history)
    if sight.window is None or at is None or low <= at <= high:
        return low, high
    half = sight.window / 2
    start = max(math.floor(at / half) * half - half / 2, first)
    return start, start + sight.window


def cursor_x(sight: Viewport, history: StepColumns) -> float | None:
    """Where the cursor stands on the x axis; None if it is not set, or has no place there."""
    place = None if sight.cursor is None else history.index(sight.cursor)
    at = math.nan if place is None else float(history.x(sight.axis)[place])
    return at if math.isfinite(at) else None


def moved(sight: Viewport, history: StepColumns, by: int) -> Viewport:
    """The cursor so many steps on, within the run; at the latest step there is none, and it follows the run."""
    steps = history.steps
    if not steps:
        return sight
    place = len(steps) - 1 if sight.cursor is None else history.index(sight.cursor) or 0
    place = min(max(place + by, 0), len(steps) - 1)
    return replace(sight, cursor=steps[place].step if place < len(steps) - 1 else None)


def gone_to(sight: Viewport, history: StepColumns, step: int) -> Viewport:
    """The cursor on ``step``, or where there is none on the last before it, or on the first."""
    place = history.index(step)
    return moved(replace(sight, cursor=None), history, (place or 0) - len(history.steps) + 1)


def zoomed(sight: Viewport, history: StepColumns, *, closer: bool) -> Viewport:
    """A stretch of about half or twice the length, which holds the cursor; beyond the run's own it is all of it."""
    x = history.x(sight.axis)
    known = x[np.isfinite(x)]
    span = float(known.max() - known.min()) if known.size else 0.0
    now = span if sight.window is None else sight.window
    if closer:
        least = NARROWEST[sight.axis]
        return replace(sight, window=max(_round(now / 2), least)) if now > least else sight
    wider = None if sight.window is None else _round(now * 2)
    return replace(sight, window=wider if wider is not None and wider < span else None)


def _round(length: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length)) if length > 0 else 1.0
    return min(
        (m * power for m in (1, 2, 5, 10)), key=lambda near: abs(math.log(near / length)) if length > 0 else near
    )


def next_window(sight: Viewport) -> Viewport:
    """The next shorter one of ``WINDOWS``; after the shortest the whole run."""
    shorter = (w for w in WINDOWS if w is not None and (sight.window is None or w < sight.window))
    return replace(sight, window=next(shorter, None))


def next_axis(sight: Viewport, history: StepColumns) -> Viewport:
    """Another x axis; about as much of the run shows as before, and the cursor stays on its step."""
    axis = X_AXES[(X_AXES.index(sight.axis) + 1) % len(X_AXES)]
    there = replace(sight, axis=axis, window=None)
    if sight.window is None:
        return there
    low, high = stretch(sight, history)
    x, other = history.x(sight.axis), history.x(axis)
    shown = other[(x >= low) & (x <= high) & np.isfinite(other)]
    length = float(shown.max() - shown.min()) if shown.size > 1 else 0.0
    return replace(there, window=max(_round(length), NARROWEST[axis])) if length else there


def in_steps(sight: Viewport, history: StepColumns) -> Viewport:
    """The same stretch with its length in steps, for what knows no other axis."""
    if sight.window is None or sight.axis == "step":
        return sight
    low, high = stretch(sight, history)
    x = history.x(sight.axis)
    numbers = history.numbers()[(x >= low) & (x <= high)]
    length = float(numbers.max() - numbers.min()) + 1 if numbers.size else None
    return replace(sight, axis="step", window=length)


def shown(sight: Viewport, history: StepColumns) -> str:
    """Which stretch shows, in words; empty for the whole run."""
    if sight.window is None or not history.steps:
        return ""
    low, high = stretch(sight, history)
    x = history.x(sight.axis)
    if not ((x < low) | (x > high)).any():
        return ""
    digits = 1 if sight.axis == "minutes" else 0
    what = {"step": "steps", "version": "versions", "minutes": "minutes"}[sight.axis]
    return f"{what} {low:.{digits}f} to {high:.{digits}f}"
