"""Vertical bar charts of text: a histogram, or a value by stratum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from textual.strip import Strip

from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget

_BLOCKS = " ▁▂▃▄▅▆▇█"
_WHISKER = "│"


@dataclass(frozen=True)
class Bar:
    """One bar: its height as a ``share`` in [0, 1], None for no value; ``label`` is under its left edge.

    ``high``: upper end of its interval as a share, drawn as a thin line above the bar.
    """

    share: float | None
    label: str = ""
    style: Style = theme.SERIES[0]
    high: float = 0.0


@dataclass(frozen=True)
class BarChart:
    """A title in parts, the most important first, and bars."""

    title: tuple[theme.Part, ...]
    bars: tuple[Bar, ...]


def draw(chart: BarChart, width: int, height: int) -> list[Strip]:
    """``height`` lines of ``width`` cells: title, bars, labels. What does not fit is cut."""
    lines = [theme.row(chart.title, width)]
    wide = max(1, width // max(len(chart.bars), 1))
    tall = height - 2
    levels = reversed(range(max(tall, 0)))
    lines += [theme.row([(_cells(bar, at, tall, wide), bar.style) for bar in chart.bars], width) for at in levels]
    if height > 1:
        lines.append(theme.row([(_labels(chart.bars, wide, width), theme.FAINT)], width))
    return lines[:height]


def _cells(bar: Bar, level: int, tall: int, wide: int) -> str:
    cell = _cell(bar, level, tall)
    if cell == " " and bar.share is not None and round(bar.high * tall) > level:
        return _WHISKER.center(wide)
    return cell * wide


def _cell(bar: Bar, level: int, tall: int) -> str:
    """The cell of a bar at ``level``, 0 at the bottom. The smallest value is a line, to differ from no value."""
    if bar.share is None:
        return " "
    eighths = round(8 * tall * min(max(bar.share, 0.0), 1.0)) - 8 * level
    return _BLOCKS[min(max(eighths, 1 if level == 0 else 0), 8)]


def _labels(bars: Sequence[Bar], wide: int, width: int) -> str:
    """The axis with as many labels as fit, from the left."""
    axis = ["─"] * min(wide * len(bars), width)
    free = 0
    for index, bar in enumerate(bars):
        at = index * wide
        if bar.label and at >= free and at + len(bar.label) <= len(axis):
            axis[at : at + len(bar.label)] = bar.label
            free = at + len(bar.label) + 1
    return "".join(axis)


class Bars(LineWidget):
    """A chart on the screen."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id, classes="plot")
        self._chart = BarChart((), ())

    def draw(self, chart: BarChart) -> None:
        """Show another chart."""
        self._chart = chart
        self.show(draw(chart, self.size.width, self.size.height))

    def on_resize(self) -> None:
        """Draw in the new size."""
        self.draw(self._chart)
