"""The Overview: plots of the run, the fleet, what happened."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Container, Vertical

from rltop.backend.api import Event, Snapshot
from rltop.tui.model.charts import CHARTS
from rltop.tui.model.fleet_table import FLEET, Row
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import TimelineMark, markers
from rltop.tui.model.viewport import Viewport
from rltop.tui.views.plot import Plot
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import set_height
from rltop.tui.widgets.table import Column, Table

LOWEST = 5
"""Lines below which a plot says nothing; where there are fewer, the last plots are left out."""


def _severity(event: Event) -> theme.Part:
    sign, style = theme.SEVERITY.get(event.severity, ("?", theme.WARN))
    return sign, style


EVENTS: tuple[Column[Event], ...] = (
    Column("time", 8, lambda e: (time.strftime("%H:%M:%S", time.localtime(e.time)), theme.FAINT), right=False),
    Column("step", 5, lambda e: (theme.whole(e.step), theme.FAINT)),
    Column("", 1, _severity, right=False),
    Column("engine", 7, lambda e: (e.engine or "", theme.PLAIN), rank=1, right=False),
    Column("what happened", 20, lambda e: (e.text, theme.SEVERITY.get(e.severity, ("?", theme.PLAIN))[1]), right=False),
)


class OverviewView(Vertical):
    """All of a run on one screen."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._drawn: object = None
        self._read: int | None = None

    def compose(self) -> ComposeResult:
        """Plots above, tables below."""
        with Container(id="plots"):
            yield from (Plot(chart) for chart in CHARTS)
        yield Table(FLEET, lambda row: row.id, empty="no engine has reported yet", id="fleet")
        yield Table(EVENTS, lambda event: str(event.number), empty="nothing happened yet", id="events", log=True)

    def paint(
        self, view: Snapshot, history: StepColumns, sight: Viewport, found: tuple[TimelineMark, ...], fleet: list[Row]
    ) -> None:
        """Show the run as it is in ``view``; ``found`` is what happened in it, ``fleet`` the engines to list."""
        self._make_room(len(fleet))
        marks = markers(found, history, sight.axis)
        if (drawn := (history.revision, marks, sight)) != self._drawn:
            self._drawn = drawn
            for plot in self.query(Plot):
                plot.draw(history, marks, sight)
        self.query_one("#fleet", Table).set_items(fleet)
        events = view.events[::-1]
        self.query_one("#events", Table).set_items(events)
        if sight.cursor != self._read:
            self._read = sight.cursor
            self.query_one("#events", Table).turn_to(last_before(events, sight.cursor, history.closed(sight.cursor)))

    def on_resize(self) -> None:
        """Fewer plots where it is narrow or low."""
        self._make_room(None)

    def _make_room(self, engines: int | None) -> None:
        """Tables grow with the fleet and the screen; the plots take the rest."""
        fleet, events = self.query_one("#fleet", Table), self.query_one("#events", Table)
        count = len(fleet.items) if engines is None else engines
        height = self.size.height
        fleet_rows = 1 + min(max(count, 1), max(2, height // 4))
        event_rows = max(4, height // 5)
        set_height(fleet, fleet_rows)
        set_height(events, event_rows)
        across = 3 if self.size.width >= 76 else 2 if self.size.width >= 50 else 1
        down = max(1, (height - fleet_rows - event_rows) // LOWEST)
        self.query_one("#plots").styles.grid_size_columns = across
        for place, plot in enumerate(self.query(Plot)):
            plot.set_class(place >= across * down, "spare")


def last_before(events: list[Event], step: int | None, closed: float) -> Event | None:
    """The last event before ``step`` closed, of ``events`` the newest first; None for the newest of all.

    Steps can close in one go, so their number counts; and a trainer that starts again counts anew, so the time does.
    """
    if step is None:
        return None
    before = (e for e in events if e.time <= closed and (e.step is None or e.step < step))
    return next(before, events[-1] if events else None)
