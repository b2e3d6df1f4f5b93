"""Line plots over steps as SVG, a few kilobytes each, without a plotting library. Pure.

Series differ by dashes and by the label at their end, markers by their labels: nothing depends on colour alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.util.printable import one_line

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 760, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 96, 22, 26
"""Size of a plot and its margins, in pixels."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4")
"""Styles of the series in turn (Okabe and Ito's palette)."""

MAX_LABEL = 14
"""Most characters of the label at the end of a line."""

MARK_ROWS = 4
"""Rows of labels of marks."""

CHARACTER = 5.6
"""Width of a character of these labels at most, in pixels."""

MAX_POINTS = 1_500
"""Most points of a line; a longer one is downsampled to the extremes of each bucket."""


@dataclass(frozen=True)
class PlotLine:
    """A line: one value per step, NaN where unknown."""

    label: str
    values: Floats


@dataclass(frozen=True)
class PlotMark:
    """An event before ``step``; ``kind`` is ``switch``, ``alarm`` or ``over``."""

    step: float
    label: str
    kind: str


_MARKS = {"switch": ("#666", "4 3"), "alarm": ("#c00", ""), "over": ("#393", "1 2")}


def svg(
    title: str,
    steps: Floats,
    series: Sequence[PlotLine],
    marks: Sequence[PlotMark] = (),
    *,
    updates: Sequence[float] = (),
    fault: tuple[float, float] | None = None,
    connected: NDArray[np.bool_] | None = None,
) -> str:
    """A plot of ``series`` over ``steps`` [steps].

    Args:
        title: quantity and unit.
        steps: step numbers, ascending.
        series: each with a value per step.
        marks: vertical lines with labels.
        updates: steps after which the weights changed: ticks on the axis.
        fault: first and last step of the shaded range.
        connected: whether a line connects each step to the next [steps - 1]; None: everywhere.
    """
    known = [one for one in series if np.isfinite(one.values).any()]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="11"><title>{_escaped(title)}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="14" font-weight="bold">{_escaped(title)}</text>',
    ]
    if not known or not len(steps):
        return "".join([*parts, f'<text x="{LEFT}" y="{HEIGHT // 2}" fill="#777">not measured</text></svg>'])
    frame = _Frame.fit(steps, known)
    if fault is not None:
        x, end = frame.x(max(fault[0] - 0.5, frame.first)), frame.x(min(fault[1], frame.last))
        parts.append(
            f'<rect x="{x:.1f}" y="{TOP}" width="{max(end - x, 0):.1f}" height="{HEIGHT - TOP - BOTTOM}" '
            'fill="#d55e00" fill-opacity="0.09"/>'
        )
    parts += frame.axes()
    bottom = HEIGHT - BOTTOM
    parts += [f'<path d="M{frame.x(at):.1f} {bottom}v4" stroke="#0072b2" stroke-width="0.7"/>' for at in updates]
    parts += _marks(marks, frame)
    segment = np.zeros(len(steps), np.intp) if connected is None else np.concatenate([[0], np.cumsum(~connected)])
    ends = [frame.y(float(one.values[np.isfinite(one.values)][-1].clip(-LARGEST, LARGEST))) for one in known]
    for i, (one, y) in enumerate(zip(known, spread(ends, TOP, bottom, 12), strict=True)):
        parts += _line(one, steps, segment, frame, i, y)
    return "".join([*parts, "</svg>"])


LARGEST = 1e300
"""Values beyond it are drawn at it: the height of the plot must be a number."""


@dataclass(frozen=True)
class _Frame:
    """Maps steps and values to pixels."""

    first: float
    last: float
    low: float
    high: float

    @classmethod
    def fit(cls, steps: Floats, series: Sequence[PlotLine]) -> _Frame:
        values = np.concatenate([one.values[np.isfinite(one.values)] for one in series]).clip(-LARGEST, LARGEST)
        low, high = float(values.min()), float(values.max())
        if 0 <= low < 0.5 * high:
            low = 0.0
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        first, last = float(steps[0]), float(steps[-1])
        last = last if last > first else first + max(1.0, abs(first) * 1e-9)
        return cls(first, last, low - margin * (low != 0), high + margin)

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)

    def axes(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
        for value in ticks(self.low, self.high, 4):
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
            parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts += [
            f'<text x="{self.x(value):.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
            for value in ticks(self.first, self.last, 8)
            if value == int(value)
        ]
        parts.append(f'<text x="{right + 34}" y="{bottom + 17}" fill="#777">step</text>')
        return parts


def ticks(low: float, high: float, about: int) -> list[float]:
    """About ``about`` round numbers from ``low`` to ``high``.

    >>> ticks(0.0, 1.0, 4)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next((size * by for by in (1, 2, 5) if size * by >= 0.7 * rough), size * 10)
    return [round(at * step, 12) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line(
    one: PlotLine, steps: Floats, segment: NDArray[np.intp], frame: _Frame, index: int, label_y: float
) -> list[str]:
    """A line, and its label at ``label_y``; an isolated point is a dot.

    ``segment`` [steps] numbers the connected segments.
    """
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    x, y = downsampled(steps, one.values)
    numbers = segment[np.searchsorted(steps, x)]
    known = np.isfinite(y)
    joined = known[:-1] & known[1:] & (numbers[:-1] == numbers[1:])  # each point with the next
    before, after = np.concatenate([[False], joined]), np.concatenate([joined, [False]])
    path = [
        f"{'L' if here else 'M'}{frame.x(step):.1f} {frame.y(value):.1f}{'' if here or on else 'h0'}"
        for step, value, here, on in zip(x[known], y[known], before[known], after[known], strict=True)
    ]
    label = one.label if len(one.label) <= MAX_LABEL else f"{one.label[: MAX_LABEL - 1]}…"
    return [
        f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round" '
        f'stroke-linecap="round" stroke-dasharray="{dash}"/>',
        f'<text x="{WIDTH - RIGHT + 6}" y="{label_y + 4:.1f}" fill="{colour}">{_escaped(label)}</text>',
    ]


def downsampled(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most ``MAX_POINTS`` points: the minimum and maximum of every bucket."""
    if len(x) <= MAX_POINTS:
        return x, y
    indices: list[int] = []
    for part in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        values = y[part]
        if np.isfinite(values).any():
            indices += sorted({int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])})
        else:
            indices.append(int(part[0]))
    return x[indices], y[indices]


def _marks(marks: Sequence[PlotMark], frame: _Frame) -> list[str]:
    """Vertical lines with labels in rows; a label without room is only the line's tooltip."""
    parts = []
    rows = [float(LEFT)] * MARK_ROWS  # where each row is free
    shown = [mark for mark in marks if frame.first - 1 <= mark.step <= frame.last + 1]
    for mark in sorted(shown, key=lambda mark: mark.step):
        x = min(max(frame.x(mark.step), LEFT), WIDTH - RIGHT)
        colour, dash = _MARKS[mark.kind]
        parts.append(
            f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{colour}" stroke-dasharray="{dash}">'
            f"<title>{_escaped(mark.label)}</title></path>"
        )
        at = min(x + 3, WIDTH - RIGHT - CHARACTER * len(mark.label))
        row = next((row for row, free in enumerate(rows) if free <= at), None)
        if row is not None:
            rows[row] = at + CHARACTER * (len(mark.label) + 1)
            y = TOP + 9 + 11 * row
            parts.append(f'<text x="{at:.1f}" y="{y}" fill="{colour}" font-size="9">{_escaped(mark.label)}</text>')
    return parts


def spread(wanted: Sequence[float], low: float, high: float, apart: float) -> list[float]:
    """Positions near ``wanted``, within ``low`` to ``high``, at least ``apart`` from each other.

    Closer only if there is no room otherwise.

    >>> spread([10, 11, 50], 0, 50, 12)
    [10, 22, 50]
    """
    apart = min(apart, (high - low) / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        found[i] = max(wanted[i], low if rank == 0 else found[order[rank - 1]] + apart)
    for rank, i in reversed(list(enumerate(order))):
        found[i] = min(found[i], high - apart * (len(order) - 1 - rank))
    return found


def _escaped(text: str) -> str:
    return html.escape(one_line(text))
