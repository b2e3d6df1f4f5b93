"""The base of all widgets: ready-made lines, of which only changed parts are repainted.

A changed line is resent from its first to its last changed cell (``repaint``), so values that change often belong side
by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import get_character_cell_size
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from rltop.tui.widgets.theme import PLAIN


class LineWidget(Widget):
    """Lines of text, replaced with ``show``."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id, classes=classes)
        self._rows: list[Strip] = []

    def show(self, rows: Sequence[Strip]) -> None:
        """Replace the lines of the widget."""
        blank = Strip.blank(self.size.width, PLAIN)
        old, self._rows = self._rows, list(rows)
        dirty = []
        for y in range(min(self.size.height, max(len(old), len(rows)))):
            before, after = (lines[y] if y < len(lines) else blank for lines in (old, rows))
            start, end = changed(before, after)
            if start < end:
                dirty.append(Region(start, y, end - start, 1))
        if dirty:
            self.refresh(*dirty)

    def render_line(self, y: int) -> Strip:
        """One line, for Textual."""
        if y >= len(self._rows):
            return Strip.blank(self.size.width, PLAIN)
        return self._rows[y].adjust_cell_length(self.size.width, PLAIN)


def set_height(widget: Widget, rows: int) -> None:
    """Set the height if it differs: a new layout costs a whole repaint."""
    height = widget.styles.height
    if height is None or height.value != rows:
        widget.styles.height = rows


def zoom(view: Widget, pane: Widget | None) -> None:
    """Show only this pane of the view, or all panes again."""
    chosen = None if view.has_class("zoomed") else pane
    view.set_class(chosen is not None, "zoomed")
    for each in view.query("*"):
        each.set_class(chosen is not None and chosen in each.walk_children(with_self=True), "alone")


def changed(old: Strip, new: Strip) -> tuple[int, int]:
    """The range of cells that differ, ``start`` to ``end`` exclusive; equal for equal lines."""
    if old == new:
        return 0, 0
    before, after = _cells(old), _cells(new)
    if len(before) != len(after):
        return 0, max(len(before), len(after))
    differ = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    return (differ[0], differ[-1] + 1) if differ else (0, 0)


def _cells(strip: Strip) -> list[tuple[str, Style | None]]:
    cells: list[tuple[str, Style | None]] = []
    for text, style, _ in strip:
        # A blank without reverse or underline looks the same in every colour.
        bare = None if style is None or not (style.reverse or style.underline) else style
        cells += [(c, bare if c == " " else style) for c in text for _ in range(get_character_cell_size(c))]
    return cells
