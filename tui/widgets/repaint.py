"""What a repaint sends: of a changed line the cells that changed, not all from the left edge of its widget."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.control import Control
from textual._compositor import ChopsUpdate, Compositor
from textual.screen import Screen


class NarrowUpdate(ChopsUpdate):
    """Textual crops a changed stretch of a line on its right side only; this one on the left too.

    A cursor that moves over all plots then costs its own two columns instead of all that stands left of them.
    """

    def render_segments(self, console: Console) -> str:
        """What to write to the terminal."""
        written = []
        for y, first, last in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                left, right = max(x, first), min(end, last)
                if strip is not None and left < right:
                    written += [Control.move_to(left, y).segment.text, strip.crop(left - x, right - x).render(console)]
        return "".join(written)


class NarrowCompositor(Compositor):
    """Makes ``NarrowUpdate``."""

    def render_partial_update(self) -> ChopsUpdate | None:
        """Of what is dirty; None if nothing is."""
        update = super().render_partial_update()
        return None if update is None else NarrowUpdate(update.chops, update.spans, update.chop_ends)


class NarrowScreen(Screen[Any]):
    """A screen that is repainted so.

    Textual has no public way to choose the compositor; a test holds that the screen is as after a whole repaint.
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._compositor = NarrowCompositor()
