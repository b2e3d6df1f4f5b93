"""The third line of the screen: all views with their keys, the current one marked, and where esc leads."""

from __future__ import annotations

from collections.abc import Sequence

from textual.events import Click
from textual.message import Message
from textual.strip import Strip

from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget


class TabBar(LineWidget):
    """One tab per view; a click opens it.

    Args:
        titles: of the views, in the order of their keys.
    """

    class Chosen(Message):
        """Posted on a click on a tab; ``index`` of its view."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self, titles: Sequence[str]) -> None:
        super().__init__(id="tabs")
        self._titles = titles
        self._ends: list[int] = []

    def show_tab(self, current: int, back: str) -> None:
        """Mark the view with index ``current``; ``back`` is the title of the view that esc returns to, or empty."""
        line, self._ends = tabs(self._titles, current, back, self.size.width)
        self.show([line])

    def on_click(self, event: Click) -> None:
        """Open the tab under the pointer."""
        index = next((index for index, end in enumerate(self._ends) if event.x < end), None)
        if index is not None:
            self.post_message(self.Chosen(index))


def tabs(titles: Sequence[str], current: int, back: str, width: int) -> tuple[Strip, list[int]]:
    """The line, and the cell after each tab. Where there is no room, other tabs are only their keys."""
    for names in (titles, ["" if index != current else title for index, title in enumerate(titles)]):
        parts: list[theme.Part] = []
        ends = []
        for index, name in enumerate(names):
            text = f" {index + 1} {name} " if name else f" {index + 1} "
            parts.append((text, theme.CURSOR if index == current else theme.FAINT))
            ends.append(theme.length(parts))
        if ends[-1] <= width:
            break
    trail = f"esc: {back}" if back else ""
    gap = width - ends[-1] - len(trail)
    return theme.row([*parts, (" " * gap, theme.PLAIN), (trail, theme.FAINT)] if gap > 0 else parts, width), ends
