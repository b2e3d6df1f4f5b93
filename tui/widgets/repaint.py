"""Partial repaints that send only the changed cells of a line, not all from the left edge of its widget."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor
from textual.screen import Screen


class NarrowUpdate(ChopsUpdate):
    """Crops changed parts of a line on both sides; Textual crops them on the right only.

    A cursor that moves over all plots then costs its own two columns instead of everything to their left.
    """

    def render_segments(self, console: Console) -> str:
        """The control sequences and text for the terminal."""
        written = []
        for y, first, last in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(x, first), min(end, last)
                if strip is not None and left < right:
                    written += [Control.move_to(left, y).segment.text, strip.crop(left - x, right - x).render(console)]
        return "".join(written)


class NarrowCompositor(Compositor):
    """Creates ``NarrowUpdate``."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """The update of all dirty regions; None if there are none."""
        update = super().render_partial_update()
        return None if update is None else NarrowUpdate(update.chops, update.spans, update.chop_ends)


class NarrowScreen(Screen[Any]):
    """A screen with narrow updates.

    Textual has no public way to choose the compositor; a test checks that the screen equals that of a whole repaint.
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._compositor = NarrowCompositor()
