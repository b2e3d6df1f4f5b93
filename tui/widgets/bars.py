"""Upright bars of text, one or more cells wide: a spread, or a figure along something. Pure."""

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
    """One bar: ``share`` of the height in [0, 1], None where there is nothing; ``label`` stands under its left edge.

    ``high``: up to where its interval goes, likewise; a thin line above the bar.
    """

    share: float | None
    label: str = ""
    style: Style = theme.SERIES[0]
    high: float = 0.0


@dataclass(frozen=True)
class BarChart:
    """A title of parts, the most important first, and bars."""

    title: tuple[theme.Part, ...]
    bars: tuple[Bar, ...]


def draw(chart: BarChart, width: int, height: int) -> list[Strip]:
    """``height`` lines of ``width`` cells: the title, the bars, their labels. What does not fit is cut off."""
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
    """What a bar has at ``level``, 0 at the bottom. The smallest there is shows as a line: it is not nothing."""
    if bar.share is None:
        return " "
    eighths = round(8 * tall * min(max(bar.share, 0.0), 1.0)) - 8 * level
    return _BLOCKS[min(max(eighths, 1 if level == 0 else 0), 8)]


def _labels(bars: Sequence[Bar], wide: int, width: int) -> str:
    """The axis, with as many labels on it as have room, the first ones first."""
    axis = ["─"] * min(wide * len(bars), width)
    free = 0
    for place, bar in enumerate(bars):
        at = place * wide
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
        """The bars have another size."""
        self.draw(self._chart)
