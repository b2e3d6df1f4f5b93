"""The part of the run that every plot shows: x axis, visible range, cursor. Immutable; no widgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from rltop.tui.model.step_columns import X_AXES, StepColumns, XAxis
from rltop.tui.widgets import canvas

WINDOWS: tuple[float | None, ...] = (None, 300.0, 100.0, 30.0)
"""Lengths of the visible range that one key cycles through, in units of the x axis; None is the whole run."""

NARROWEST = {"step": 5.0, "version": 5.0, "minutes": 0.1}
"""The shortest range to zoom in on, by x axis."""


@dataclass(frozen=True)
class Viewport:
    """The state that all plots share. Every method returns a new viewport or a value; none changes this one.

    Attributes:
        axis: the quantity on the x axis.
        window: length of the visible range, in units of ``axis``; None for the whole run.
        log: logarithmic y axis.
        cursor: the step whose values are shown, whatever the axis; None follows the latest.
    """

    axis: XAxis = "step"
    window: float | None = None
    log: bool = False
    cursor: int | None = None

    def visible_range(self, history: StepColumns) -> tuple[float, float]:
        """The visible part of the x axis. It contains the cursor, or without one the latest step.

        A cursor that leaves the range turns a page and lands in the middle half of the next, so most moves keep the
        page.
        """
        x = history.x(self.axis)
        known = x[np.isfinite(x)]
        first, last = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        low, high = canvas.page(first, last, self.window)
        at = self.cursor_x(history)
        if self.window is None or at is None or low <= at <= high:
            return low, high
        half = self.window / 2
        start = max(math.floor(at / half) * half - half / 2, first)
        return start, start + self.window

    def cursor_x(self, history: StepColumns) -> float | None:
        """Position of the cursor on the x axis; None without a cursor, or if its step has no value there."""
        index = None if self.cursor is None else history.index(self.cursor)
        x = math.nan if index is None else float(history.x(self.axis)[index])
        return x if math.isfinite(x) else None

    def moved(self, history: StepColumns, by: int) -> Viewport:
        """The cursor moved ``by`` steps, clamped to the run; on the latest step it is removed, and plots follow."""
        steps = history.steps
        if not steps:
            return self
        index = len(steps) - 1 if self.cursor is None else history.index(self.cursor) or 0
        index = min(max(index + by, 0), len(steps) - 1)
        return replace(self, cursor=steps[index].step if index < len(steps) - 1 else None)

    def moved_to(self, history: StepColumns, step: int) -> Viewport:
        """The cursor on ``step``, or on the last step before it, or on the first step of the run."""
        index = history.index(step)
        return replace(self, cursor=None).moved(history, (index or 0) - len(history.steps) + 1)

    def zoomed(self, history: StepColumns, *, closer: bool) -> Viewport:
        """About half or twice the range, around the cursor; a range longer than the run becomes the whole run."""
        x = history.x(self.axis)
        known = x[np.isfinite(x)]
        span = float(known.max() - known.min()) if known.size else 0.0
        now = span if self.window is None else self.window
        if closer:
            least = NARROWEST[self.axis]
            return replace(self, window=max(_round(now / 2), least)) if now > least else self
        wider = None if self.window is None else _round(now * 2)
        return replace(self, window=wider if wider is not None and wider < span else None)

    def next_window(self) -> Viewport:
        """The next shorter of ``WINDOWS``; after the shortest the whole run."""
        shorter = (w for w in WINDOWS if w is not None and (self.window is None or w < self.window))
        return replace(self, window=next(shorter, None))

    def next_axis(self, history: StepColumns) -> Viewport:
        """The next x axis, with about the same part of the run visible; the cursor keeps its step."""
        axis = X_AXES[(X_AXES.index(self.axis) + 1) % len(X_AXES)]
        changed = replace(self, axis=axis, window=None)
        if self.window is None:
            return changed
        low, high = self.visible_range(history)
        x, other = history.x(self.axis), history.x(axis)
        visible = other[(x >= low) & (x <= high) & np.isfinite(other)]
        length = float(visible.max() - visible.min()) if visible.size > 1 else 0.0
        return replace(changed, window=max(_round(length), NARROWEST[axis])) if length else changed

    def in_steps(self, history: StepColumns) -> Viewport:
        """The same range with its length in steps, for views that have no other axis."""
        if self.window is None or self.axis == "step":
            return self
        low, high = self.visible_range(history)
        x = history.x(self.axis)
        numbers = history.numbers()[(x >= low) & (x <= high)]
        length = float(numbers.max() - numbers.min()) + 1 if numbers.size else None
        return replace(self, axis="step", window=length)

    def range_text(self, history: StepColumns) -> str:
        """The visible range in words; empty for the whole run."""
        if self.window is None or not history.steps:
            return ""
        low, high = self.visible_range(history)
        x = history.x(self.axis)
        if not ((x < low) | (x > high)).any():
            return ""
        digits = 1 if self.axis == "minutes" else 0
        unit = {"step": "steps", "version": "versions", "minutes": "minutes"}[self.axis]
        return f"{unit} {low:.{digits}f} to {high:.{digits}f}"


def _round(length: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length)) if length > 0 else 1.0
    return min(
        (m * power for m in (1, 2, 5, 10)), key=lambda near: abs(math.log(near / length)) if length > 0 else near
    )
