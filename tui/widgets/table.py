"""A table of fixed-width columns: a row that did not change costs nothing, a narrow screen drops columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.style import Style
from textual.message import Message
from textual.strip import Strip

from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column.

    Attributes:
        title: its head.
        width: cells; the last column shown takes what is left.
        cell: text and style of an item's cell.
        sort: what to sort by; None if the column does not sort. Unknown figures go last either way.
        rank: columns of higher rank are dropped first where there is no room; rank 0 always shows.
        right: align to the right, as figures are.
        metrics: what the catalogue calls the figure, and others that tell more of it.
    """

    title: str
    width: int
    cell: Callable[[T], theme.Part]
    sort: Callable[[T], Any] | None = None
    rank: int = 0
    right: bool = True
    metrics: tuple[str, ...] = ()


def fit(columns: Sequence[Column[T]], width: int) -> list[Column[T]]:
    """The columns that fit into ``width`` cells with a blank between them, the least important dropped first."""
    kept = list(columns)
    while sum(column.width + 1 for column in kept) - 1 > width:
        last = max(kept, key=lambda column: column.rank)
        if last.rank == 0:
            break
        kept.remove(last)
    return kept


class Table(LineWidget, Generic[T], can_focus=True):
    """Items under a head, one line each, with a cursor that stays on its item however the order changes.

    In a log, newest first, the cursor on the first line stays on the first line; lines that ``opens`` can be chosen.
    """

    class Chosen(Message):
        """Enter, or a second click, on an item."""

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
        self._at: str | None = None
        self._top = 0
        self._sorted: Column[T] | None = None
        self._reverse = False

    @property
    def selected(self) -> T | None:
        """The item under the cursor."""
        return self.items[self._place()] if self.items else None

    def set_columns(self, columns: Sequence[Column[T]]) -> None:
        """Other columns, as many; the order stays that of arrival."""
        self._columns, self._sorted = columns, None
        self.paint()

    def set_items(self, items: Sequence[T]) -> None:
        """Show these items; the cursor stays on its item, or goes to the first."""
        before = self._place() if self._log and self._at is not None else None
        self.items = self._in_order(items)
        if before is not None:
            self._top += self._place() - before  # who reads a log keeps the lines in sight while new ones come
        if self._at is None and self.items:
            self._hold(0)
        self.paint()

    def move(self, by: int) -> None:
        """Move the cursor by so many items, within the table."""
        if self.items:
            place = min(max(self._place() + by, 0), len(self.items) - 1)
            self._hold(place)
            self.paint()

    def turn_to(self, item: T | None) -> None:
        """Put the cursor on the item, and that at the top; None: back to the first."""
        place = 0 if item is None else self.items.index(item)
        if self.items:
            self._top = place
            self._hold(place)
            self.paint()

    def sort_next(self) -> None:
        """Sort by the next column that sorts; after the last, in the order of arrival. Its head says so."""
        choices = [None, *(column for column in self._columns if column.sort)]
        self._sorted = choices[(choices.index(self._sorted) + 1) % len(choices)]
        self.set_items(self.items)

    def sort_reverse(self) -> None:
        """Turn the order round."""
        self._reverse = not self._reverse
        self.set_items(self.items)

    def explained(self) -> list[Column[T]]:
        """Columns whose figures the catalogue knows, the one that is sorted by first."""
        known = [column for column in self._columns if column.metrics]
        return sorted(known, key=lambda column: column is not self._sorted)

    def paint(self) -> None:
        """Make the lines that are in sight."""
        width, body = self.size.width, max(self.size.height - 1, 0)
        self._top = min(max(self._top, self._place() - body + 1), self._place(), max(len(self.items) - body, 0))
        columns = fit(self._columns, width)
        lines = [self._head(columns, width)]
        place = self._place() if self.has_focus else -1
        shown = enumerate(self.items[self._top : self._top + body], self._top)
        lines += [self._line(columns, item, width, at=i == place) for i, item in shown]
        if not self.items:
            lines.append(theme.row([(self._empty, theme.FAINT)], width))
        self.show(lines)

    def on_resize(self) -> None:
        """Other columns may fit now."""
        self.paint()

    def on_focus(self) -> None:
        """The cursor shows."""
        self.paint()

    def on_blur(self) -> None:
        """The cursor hides."""
        self.paint()

    def on_click(self, event: Any) -> None:
        """Put the cursor there; on the item under the cursor: choose it."""
        place = self._top + event.y - 1
        if event.y > 0 and place < len(self.items):
            if place == self._place() and self.has_focus:
                self.choose()
            self.move(place - self._place())

    def choose(self) -> None:
        """Tell who listens that the item under the cursor was chosen."""
        if self._opens and self.selected is not None:
            self.post_message(self.Chosen(self, self.selected))

    def _hold(self, place: int) -> None:
        self._at = None if self._log and place == 0 else self._key(self.items[place])

    def _place(self) -> int:
        if self._at is None:
            return 0
        return next((i for i, item in enumerate(self.items) if self._key(item) == self._at), 0)

    def _in_order(self, items: Sequence[T]) -> list[T]:
        if self._sorted is None or self._sorted.sort is None:
            return list(reversed(items)) if self._reverse else list(items)
        by = self._sorted.sort
        known = sorted((item for item in items if by(item) is not None), key=by, reverse=self._reverse)
        return known + [item for item in items if by(item) is None]

    def _head(self, columns: Sequence[Column[T]], width: int) -> Strip:
        titles = []
        for column in columns:
            sign = ("▴" if self._reverse else "▾") if column is self._sorted else ""
            titles.append((column.title + sign, theme.HEAD))
        head = self._cells(columns, titles, width, theme.HEAD)
        if len(self.items) <= self.size.height - 1:
            return head
        where = f" {self._place() + 1}/{len(self.items)}"
        return Strip.join([head.crop(0, max(width - len(where), 0)), theme.row([(where, theme.HEAD)], len(where))])

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
