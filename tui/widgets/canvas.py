"""Plots in braille characters: numpy data to lines of text. Pure.

A cell holds 2 x 4 dots and one colour. Where a line and a mark share a cell only the line's dots are shown, so nothing
but data ever looks like data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from rltop.tui.widgets import theme

Floats = NDArray[np.float64]

GUTTER = 8
"""Cells left of the dots: the value axis with its numbers."""

_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], dtype=np.uint8)
_LEVEL, _MARKER, _CURSOR, _FIRST = 1, 2, 3, 4
"""Inks in drawing order; guides start at ``_FIRST``, lines follow."""
_STYLES = (theme.PLAIN, theme.FAINT, theme.MARK, theme.STRONG)


@dataclass(frozen=True)
class CanvasLine:
    """One series. ``x``, ``y`` [n], NaN where missing; ``linked`` [n-1]: points i and i+1 are connected."""

    label: str
    x: Floats
    y: Floats
    linked: NDArray[np.bool_]
    style: Style
    dashed: bool = False


@dataclass(frozen=True)
class Marker:
    """An event at ``x``: a dotted vertical line, with sign and label on the axis."""

    x: float
    label: str
    sign: str = "▲"


@dataclass(frozen=True)
class Drawing:
    """The content of a plot. ``lines`` are drawn in order, the last on top; ``levels`` are drawn where in range.

    ``guides`` are dotted reference lines below all lines; like levels they do not affect the scale and are drawn only
    where in range. ``ticks`` are notches of the x axis. ``x_name`` labels the x axis, in at most ``GUTTER - 1``
    characters. ``include`` are values that the scale contains in any case.
    """

    x_range: tuple[float, float]
    lines: tuple[CanvasLine, ...] = ()
    markers: tuple[Marker, ...] = ()
    levels: tuple[float, ...] = ()
    cursor: float | None = None
    log: bool = False
    x_name: str = ""
    guides: tuple[CanvasLine, ...] = ()
    ticks: tuple[float, ...] = ()
    include: tuple[float, ...] = ()


@dataclass(frozen=True)
class Scale:
    """The value axis: from ``low`` to ``high`` (of the logarithm, if ``log``), numbers at ``ticks`` (of the same)."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def dots(self, values: Floats, size: int) -> NDArray[np.intp]:
        """Dot rows of finite values, 0 at the bottom; values off the scale are clipped to its edge."""
        if self.log:
            values = np.log10(np.maximum(values, 10.0**self.low))
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.rint(share * (size - 1)).astype(np.intp)

    def label(self, tick: float) -> str:
        """The number at ``tick``, in at most ``GUTTER - 1`` characters."""
        if self.log:
            return f"1e{round(tick)}"
        decimals = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        largest = max(abs(self.low), abs(self.high))
        text = f"{tick:.{decimals}f}" if tick else "0"
        if largest >= 10_000:
            text = theme.figure(tick)
        elif decimals > 3 and tick:
            power = math.floor(math.log10(largest) + 1e-9)
            mantissa, exponent = f"{tick:.{max(0, decimals + power)}e}".split("e")
            text = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
        return text if len(text) < GUTTER else f"{tick:.0e}"


def nice_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides ``span`` into at most ``parts``."""
    least = span / max(parts, 1)
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10, 20) if m * power >= least * (1 - 1e-9))


def scale(lines: tuple[CanvasLine, ...], parts: int, *, log: bool = False, include: tuple[float, ...] = ()) -> Scale:
    """A value axis that contains all finite values and rarely changes: it ends on ticks, and snaps to zero if near."""
    values = np.concatenate([*(line.y[np.isfinite(line.y)] for line in lines), np.array(include, dtype=np.float64)])
    if log and (values > 0).any():
        values = np.log10(values[values > 0])
        low, high = math.floor(values.min()), max(math.ceil(values.max()), math.floor(values.min()) + 1)
        stride = math.ceil((high - low) / parts)
        return Scale(low, high, tuple(float(t) for t in range(low, high + 1, stride)), log=True)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if 0 < low < 0.4 * high:
        low = 0.0
    elif 0.4 * low < high < 0:
        high = 0.0
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = (min(low, 0.0), max(high, 0.0)) if low or high else (0.0, 1.0)
    step = nice_step(high - low, parts)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, tuple(i * step for i in range(first, last + 1)))


def page(first: float, last: float, window: float | None = None) -> tuple[float, float]:
    """The visible range of the x axis. It stays while data grow into it, then grows or shifts by a large step.

    Without a window it starts at ``first`` and has a round length; with one it is the last ``window``, shifted by
    quarters.
    """
    if window is not None and last - first > window:
        stride = window / 4
        start = math.ceil((last - window) / stride) * stride
        return start, start + window
    power = 10.0 ** max(0, math.floor(math.log10(max(last - first, 1.0))))
    for size in (m * power for m in (1, 1.5, 2, 3, 4, 6, 8, 10, 15)):
        start = math.floor(first / size * 10) * size / 10
        if last <= start + size:
            return start, start + size
    raise AssertionError((first, last))


@dataclass
class Raster:
    """Dots, bottom row first: 0 is dark, otherwise the ink; the highest ink wins a cell.

    Inks from ``data`` on are data, which share a cell with nothing else.
    """

    width: int
    height: int
    data: int = _FIRST
    dots: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.dots = np.zeros((4 * self.height, 2 * self.width), np.uint8)

    def points(self, x: NDArray[np.intp], y: NDArray[np.intp], ink: int) -> None:
        """Set dots. ``x``, ``y`` [n], within the raster."""
        self.dots[y, x] = ink

    def segments(
        self, x: NDArray[np.intp], y: NDArray[np.intp], linked: NDArray[np.bool_], ink: int, *, pattern: str = ""
    ) -> None:
        """Connect points i and i+1 where ``linked[i]``; ``dashed`` skips every other pair, ``dotted`` odd columns."""
        x0, y0, dx, dy = x[:-1][linked], y[:-1][linked], np.diff(x)[linked], np.diff(y)[linked]
        count = np.maximum(np.abs(dx), np.abs(dy)) + 1
        which = np.repeat(np.arange(count.size), count)
        part = np.arange(which.size) - np.repeat(np.cumsum(count) - count, count)
        share = part / np.maximum(count - 1, 1)[which]
        at_x = x0[which] + np.rint(dx[which] * share).astype(np.intp)
        at_y = y0[which] + np.rint(dy[which] * share).astype(np.intp)
        lit = part % 4 < 2 if pattern == "dashed" else at_x % 2 == 0 if pattern == "dotted" else slice(None)
        self.points(at_x[lit], at_y[lit], ink)

    def cells(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Braille bits and ink of every cell, top row first, both [height, width]."""
        dots = self.dots[::-1].reshape(self.height, 4, self.width, 2).transpose(0, 2, 1, 3)
        ink = dots.max(axis=(2, 3))
        shown = np.where((ink >= self.data)[:, :, None, None], dots >= self.data, dots > 0)
        return (shown * _BITS).sum(axis=(2, 3), dtype=np.uint8), ink


def draw(drawing: Drawing, width: int, height: int) -> list[Strip]:
    """``height`` lines of ``width`` cells: the dots, the value axis on the left, the x axis as the last line."""
    inner, tall = width - GUTTER - _label_width(drawing, width), height - 1
    if inner < 4 or tall < 1:
        return [theme.row((), width)] * height
    lines, guides = (tuple(_cut(line, drawing.x_range) for line in many) for many in (drawing.lines, drawing.guides))
    drawing = replace(drawing, lines=lines, guides=guides)
    axis = scale(drawing.lines, max(2, tall // 3), log=drawing.log, include=drawing.include)
    raster = Raster(inner, tall, _FIRST + len(drawing.guides))
    _draw_marks(raster, drawing, axis)
    for ink, guide in enumerate(drawing.guides, _FIRST):
        _draw_guide(raster, guide, drawing.x_range, axis, ink)
    for ink, line in enumerate(drawing.lines, raster.data):
        _draw_line(raster, line, drawing.x_range, axis, ink)
    left, right = _value_axis(axis, tall), _end_labels(drawing, axis, tall)
    styles = (*_STYLES, *(line.style for line in (*drawing.guides, *drawing.lines)))
    bits, inks = raster.cells()
    rows = [_strip(left[y], bits[y], inks[y], right.get(y, ("", theme.PLAIN)), styles, width) for y in range(tall)]
    return [*rows, _x_axis(drawing, inner, width)]


def columns(x: Floats, x_range: tuple[float, float], size: int) -> NDArray[np.intp]:
    """Dot columns of x values within the range."""
    return np.rint((x - x_range[0]) / (x_range[1] - x_range[0]) * (size - 1)).astype(np.intp)


def _cut(line: CanvasLine, x_range: tuple[float, float]) -> CanvasLine:
    inside = (line.x >= x_range[0]) & (line.x <= x_range[1])
    if inside.all():
        return line
    kept = np.flatnonzero(inside)
    linked = line.linked[kept[:-1]] & (np.diff(kept) == 1)
    return CanvasLine(line.label, line.x[kept], line.y[kept], linked, line.style, line.dashed)


def _draw_line(raster: Raster, line: CanvasLine, x_range: tuple[float, float], axis: Scale, ink: int) -> None:
    finite = np.flatnonzero(np.isfinite(line.y) & np.isfinite(line.x))
    if not finite.size:
        return
    linked = line.linked[finite[:-1]] & (np.diff(finite) == 1)
    x = columns(line.x[finite], x_range, 2 * raster.width)
    y = axis.dots(line.y[finite], 4 * raster.height)
    raster.segments(x, y, linked, ink, pattern="dashed" if line.dashed else "")
    raster.points(x, y, ink)


def _draw_guide(raster: Raster, line: CanvasLine, x_range: tuple[float, float], axis: Scale, ink: int) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        height = np.log10(line.y) if axis.log else line.y
        shown = np.flatnonzero((height >= axis.low) & (height <= axis.high) & np.isfinite(line.x))
    if not shown.size:
        return
    linked = line.linked[shown[:-1]] & (np.diff(shown) == 1)
    x, y = columns(line.x[shown], x_range, 2 * raster.width), axis.dots(line.y[shown], 4 * raster.height)
    raster.segments(x, y, linked, ink, pattern="dotted")
    alone = ~(np.append(linked, False) | np.append(False, linked))
    raster.points(x[alone], y[alone], ink)


def _draw_marks(raster: Raster, drawing: Drawing, axis: Scale) -> None:
    tall, wide = raster.dots.shape
    for level in drawing.levels:
        if axis.low <= (math.log10(level) if axis.log else level) <= axis.high:
            raster.dots[axis.dots(np.array([level]), tall)[0], ::4] = _LEVEL
    for x, ink in [*((m.x, _MARKER) for m in drawing.markers), (drawing.cursor, _CURSOR)]:
        if x is not None and drawing.x_range[0] <= x <= drawing.x_range[1]:
            raster.dots[:: 2 if ink == _MARKER else 1, columns(np.array([x]), drawing.x_range, wide)[0]] = ink


def _value_axis(axis: Scale, tall: int) -> list[str]:
    rows = [" " * (GUTTER - 1) + "│"] * tall
    for tick, dot in zip(axis.ticks, axis.dots(_ticks(axis), 4 * tall), strict=True):
        rows[tall - 1 - int(dot) // 4] = axis.label(tick).rjust(GUTTER - 1) + "┤"
    return rows


def _ticks(axis: Scale) -> Floats:
    ticks = np.array(axis.ticks)
    return np.asarray(10.0**ticks if axis.log else ticks)


def _label_width(drawing: Drawing, width: int) -> int:
    if len(drawing.lines) < 2 or width < 50:
        return 0
    return 1 + max(len(line.label) for line in drawing.lines)


def _end_labels(drawing: Drawing, axis: Scale, tall: int) -> dict[int, theme.Part]:
    """Each line's label beside its last point, one per row; on a taken row it moves to the nearest free one."""
    labels: dict[int, theme.Part] = {}
    for line in reversed(drawing.lines):
        ys = line.y[np.isfinite(line.y)]
        if ys.size:
            wanted = tall - 1 - int(axis.dots(ys[-1:], 4 * tall)[0]) // 4
            free = (y for y in sorted(range(tall), key=lambda y: abs(y - wanted)) if y not in labels)
            labels[next(free, wanted)] = (f" {line.label}", line.style)
    return labels if len(drawing.lines) > 1 else {}


def _strip(
    left: str,
    bits: NDArray[np.uint8],
    inks: NDArray[np.uint8],
    right: theme.Part,
    styles: tuple[Style, ...],
    width: int,
) -> Strip:
    parts: list[theme.Part] = [(left, theme.FAINT)]
    text = "".join(chr(0x2800 + b) if b else " " for b in bits.tolist())
    start = 0
    # A blank cell takes the ink before it: it has no visible colour, and fewer colour changes are fewer bytes.
    filled = np.maximum.accumulate(np.where(inks > 0, np.arange(inks.size), 0))
    same = inks[filled]
    for end in [*(np.flatnonzero(np.diff(same)) + 1).tolist(), inks.size]:
        parts.append((text[start:end], styles[same[start]]))
        start = end
    return theme.row([*parts, right], width)


def _x_axis(drawing: Drawing, inner: int, width: int) -> Strip:
    """Numbers and markers on the axis: ``0────10───▲pc-──20``; no number touches a marker."""
    low, high = drawing.x_range
    cells: list[tuple[str, Style]] = [("─", theme.FAINT)] * inner
    step = nice_step(high - low, max(1, inner // 9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    marks = [(marker.x, f"{marker.sign}{marker.label}") for marker in drawing.markers if low <= marker.x <= high]
    places = _marker_cells(marks, drawing.x_range, inner)
    taken = {cell for place in places for cell in range(place.start - 1, place.stop + 1)}
    for x in drawing.ticks:
        if low <= x <= high:
            _write(cells, _cells(x, "┴", drawing.x_range, inner), "┴", theme.FAINT)
    for x in ticks.tolist():
        text = f"{x:.{decimals}f}"
        if taken.isdisjoint(place := _cells(x, text, drawing.x_range, inner)):
            _write(cells, place, text, theme.FAINT)
    for (_, text), place in zip(marks, places, strict=True):
        _write(cells, place, text, theme.MARK)
    return theme.row([(drawing.x_name.rjust(GUTTER - 1) + "└", theme.FAINT), *_runs(cells)], width)


def _cells(x: float, text: str, x_range: tuple[float, float], inner: int) -> range:
    """The cells of ``text`` at ``x``, on an axis of ``inner`` cells."""
    at = min(int(columns(np.array([x]), x_range, 2 * inner)[0]) // 2, max(0, inner - len(text)))
    return range(at, min(at + len(text), inner))


def _marker_cells(marks: list[tuple[float, str]], x_range: tuple[float, float], inner: int) -> list[range]:
    """The cells of the markers' texts: each ends before the next marker; of several in one cell the last is shown.

    The last text moves left to fit, as far as the one before permits.
    """
    starts = [_cells(x, "▲", x_range, inner).start for x, _ in marks]
    places = [
        range(at, min(at + len(text), end)) for at, end, (_, text) in zip(starts, starts[1:], marks, strict=False)
    ]
    if marks:
        free = places[-1].start + 1 if places else 0
        at = min(starts[-1], max(inner - len(marks[-1][1]), free))
        places.append(range(at, min(at + len(marks[-1][1]), inner)))
    return places


def _write(cells: list[tuple[str, Style]], place: range, text: str, style: Style) -> None:
    for cell, character in zip(place, text, strict=False):
        cells[cell] = (character, style)


def _runs(cells: list[tuple[str, Style]]) -> list[theme.Part]:
    segments = Segment.simplify(Segment(text, style) for text, style in cells)
    return [(segment.text, segment.style or theme.PLAIN) for segment in segments]
