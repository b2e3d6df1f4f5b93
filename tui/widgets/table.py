"""A table of fixed-width columns. Unchanged rows are not repainted; a narrow screen drops columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.style import Style
from textual.message import Message
from textual.strip import Strip

from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget
from rltop.tui.widgets.row_filter import RowFilter

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column.

    Attributes:
        title: its head.
        width: cells; the last visible column takes the rest.
        cell: text and style of an item's cell.
        sort: sort key; None if the column is not sortable. Unknown values go last in either order.
        rank: columns of higher rank are dropped first on a narrow screen; rank 0 is always shown.
        right: align to the right, for numbers.
        metrics: metrics of the catalogue that explain the column.
    """

    title: str
    width: int
    cell: Callable[[T], theme.Part]
    sort: Callable[[T], Any] | None = None
    rank: int = 0
    right: bool = True
    metrics: tuple[str, ...] = ()


def fit(columns: Sequence[Column[T]], width: int) -> list[Column[T]]:
    """The columns that fit into ``width`` cells with a blank between them; the highest ranks are dropped first."""
    kept = list(columns)
    while sum(column.width + 1 for column in kept) - 1 > width:
        last = max(kept, key=lambda column: column.rank)
        if last.rank == 0:
            break
        kept.remove(last)
    return kept


class Table(LineWidget, Generic[T], can_focus=True):
    """Items below a header, one line each, with a cursor that stays on its item when the order changes.

    Args:
        columns: the columns, the most important with rank 0.
        key: identity of an item over updates.
        empty: text of an empty table.
        id: of the widget.
        log: newest first; a cursor on the first line stays on the first line.
        opens: lines can be chosen; default: unless it is a log.
    """

    class Chosen(Message):
        """Posted on Enter, or on a second click, on an item."""

        def __init__(self, table: Table[Any], item: Any) -> None:
            super().__init__()
            self.table = table
            self.item = item

    def __init__(
        self,
        columns: Sequence[Column[T]],
        key: Callable[[T], str],
        *,
        empty: str,
        id: str | None = None,  # noqa: A002 - as Widget's
        log: bool = False,
        opens: bool | None = None,
    ) -> None:
        super().__init__(id=id, classes="pane")
        self.items: list[T] = []
        self._columns = columns
        self._key = key
        self._empty = empty
        self._log = log
        self._opens = not log if opens is None else opens
        self._cursor_key: str | None = None
        self._top = 0
        self._sorted: Column[T] | None = None
        self._reverse = False
        self._every: list[T] = []
        self._filter: RowFilter | None = None

    @property
    def filter_text(self) -> str:
        """The terms that rows must match; empty for none."""
        return self._filter.text if self._filter is not None else ""

    def filter_by(self, text: str) -> None:
        """Show only rows that match (``RowFilter``); empty shows all. Raises ``ValueError`` for a wrong term."""
        self._filter = RowFilter(text, [column.title for column in self._columns]) if text.strip() else None
        self.set_items(self._every)

    @property
    def selected(self) -> T | None:
        """The item under the cursor."""
        return self.items[self._index()] if self.items else None

    def set_columns(self, columns: Sequence[Column[T]]) -> None:
        """Replace the columns by as many others; sort order and filter are reset."""
        self._columns, self._sorted, self._filter = columns, None, None
        self.paint()

    def set_items(self, items: Sequence[T]) -> None:
        """Replace the items; the cursor stays on its item, or moves to the first."""
        before = self._index() if self._log and self._cursor_key is not None else None
        self._every = list(items)
        self.items = self._in_order([item for item in self._every if self._matches(item)])
        if before is not None:
            self._top += self._index() - before  # the visible lines of a log stay while new ones arrive
        if self._cursor_key is None and self.items:
            self._hold(0)
        self.paint()

    def move(self, by: int) -> None:
        """Move the cursor by ``by`` items, clamped to the table."""
        if self.items:
            index = min(max(self._index() + by, 0), len(self.items) - 1)
            self._hold(index)
            self.paint()

    def turn_to(self, item: T | None) -> None:
        """Scroll so that the item is at the top, with the cursor; None: the first item."""
        index = 0 if item is None else self.items.index(item)
        if self.items:
            self._top = index
            self._hold(index)
            self.paint()

    def sort_next(self) -> None:
        """Sort by the next sortable column; after the last, by arrival. The header marks it."""
        choices = [None, *(column for column in self._columns if column.sort)]
        self._sorted = choices[(choices.index(self._sorted) + 1) % len(choices)]
        self.set_items(self._every)

    def sort_reverse(self) -> None:
        """Reverse the order."""
        self._reverse = not self._reverse
        self.set_items(self._every)

    def explained(self) -> list[Column[T]]:
        """Columns that the metric catalogue explains, the sort column first."""
        known = [column for column in self._columns if column.metrics]
        return sorted(known, key=lambda column: column is not self._sorted)

    def paint(self) -> None:
        """Draw the visible lines."""
        width, body = self.size.width, max(self.size.height - 1, 0)
        self._top = min(max(self._top, self._index() - body + 1), self._index(), max(len(self.items) - body, 0))
        columns = fit(self._columns, width)
        lines = [self._head(columns, width)]
        cursor = self._index() if self.has_focus else -1
        shown = enumerate(self.items[self._top : self._top + body], self._top)
        lines += [self._line(columns, item, width, at=i == cursor) for i, item in shown]
        if not self.items:
            empty = f"nothing matches {self.filter_text}; esc shows all" if self._every else self._empty
            lines.append(theme.row([(empty, theme.FAINT)], width))
        self.show(lines)

    def on_resize(self) -> None:
        """Fit the columns to the new size."""
        self.paint()

    def on_focus(self) -> None:
        """Show the cursor."""
        self.paint()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.paint()

    def on_click(self, event: Any) -> None:
        """Move the cursor to the line; choose the item if the cursor was on it."""
        index = self._top + event.y - 1
        if event.y == 0:
            self._sort_at(event.x)
        if event.y > 0 and index < len(self.items):
            if index == self._index() and self.has_focus:
                self.choose()
            self.move(index - self._index())

    def _sort_at(self, x: int) -> None:
        """Sort by the column whose title is at cell ``x``; again reverses."""
        for column in fit(self._columns, self.size.width):
            x -= column.width + 1
            if x < 0:
                if column.sort is not None:
                    self._reverse = not self._reverse if column is self._sorted else False
                    self._sorted = column
                    self.set_items(self._every)
                return

    def on_mouse_scroll_down(self) -> None:
        """Move down with the wheel."""
        self.move(3)

    def on_mouse_scroll_up(self) -> None:
        """Move up with the wheel."""
        self.move(-3)

    def choose(self) -> None:
        """Post ``Chosen`` for the item under the cursor."""
        if self._opens and self.selected is not None:
            self.post_message(self.Chosen(self, self.selected))

    def _matches(self, item: T) -> bool:
        if self._filter is None:
            return True
        return self._filter.matches({column.title: column.cell(item)[0] for column in self._columns})

    def _hold(self, index: int) -> None:
        self._cursor_key = None if self._log and index == 0 else self._key(self.items[index])

    def _index(self) -> int:
        if self._cursor_key is None:
            return 0
        return next((i for i, item in enumerate(self.items) if self._key(item) == self._cursor_key), 0)

    def _in_order(self, items: Sequence[T]) -> list[T]:
        if self._sorted is None or self._sorted.sort is None:
            return list(reversed(items)) if self._reverse else list(items)
        key = self._sorted.sort
        known = sorted((item for item in items if key(item) is not None), key=key, reverse=self._reverse)
        return known + [item for item in items if key(item) is None]

    def _head(self, columns: Sequence[Column[T]], width: int) -> Strip:
        titles = []
        for column in columns:
            sign = ("▴" if self._reverse else "▾") if column is self._sorted else ""
            titles.append((column.title + sign, theme.HEAD))
        head = self._cells(columns, titles, width, theme.HEAD)
        if len(self.items) <= self.size.height - 1 and self._filter is None:
            return head
        position = f" {self._index() + 1}/{len(self.items)}"
        if self._filter is not None:
            position = f" /{self.filter_text}: {len(self.items)} of {len(self._every)}"
        head = head.crop(0, max(width - len(position), 0))
        return Strip.join([head, theme.row([(position, theme.HEAD)], len(position))])

    def _line(self, columns: Sequence[Column[T]], item: T, width: int, *, at: bool) -> Strip:
        cells = [column.cell(item) for column in columns]
        if at:
            cells = [(text, theme.CURSOR) for text, _ in cells]
            return self._cells(columns, cells, width, theme.CURSOR)
        return self._cells(columns, cells, width, theme.PLAIN)

    def _cells(self, columns: Sequence[Column[T]], cells: list[theme.Part], width: int, blank: Style) -> Strip:
        parts: list[theme.Part] = []
        for i, (column, (text, style)) in enumerate(zip(columns, cells, strict=True)):
            room = width - theme.length(parts) if i == len(columns) - 1 else column.width
            if column.right and len(text) < room and i < len(columns) - 1:
                text = text.rjust(room)
            parts += [(theme.clean(text, max(room, 0)), style), (" ", blank)]
        return theme.row(parts, width)
