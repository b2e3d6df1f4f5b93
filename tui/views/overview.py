"""The Overview: plots of the run, the fleet, the event log."""

from __future__ import annotations

import time
from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import Container

from rltop.backend.api import Answer, Event, Question, Snapshot
from rltop.tui.dialogs.info_dialogs import engine_page, page_width
from rltop.tui.model.charts import CHARTS
from rltop.tui.model.explain import ShownFigure, in_step
from rltop.tui.model.fleet_table import FLEET, Row
from rltop.tui.model.past_engines import PastEngines
from rltop.tui.model.timeline import markers
from rltop.tui.views.plot import Plot
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import set_height
from rltop.tui.widgets.table import Column, Table

MIN_PLOT_LINES = 5
"""Lower plots would be unreadable: where there is less room, the last plots are hidden."""


def _severity(event: Event) -> theme.Part:
    sign, style = theme.SEVERITY.get(event.severity, ("?", theme.WARN))
    return sign, style


EVENTS: tuple[Column[Event], ...] = (
    Column("time", 8, lambda e: (time.strftime("%H:%M:%S", time.localtime(e.time)), theme.FAINT), right=False),
    Column("step", 5, lambda e: (theme.whole(e.step), theme.FAINT)),
    Column("", 1, _severity, right=False),
    Column("engine", 7, lambda e: (e.engine or "", theme.PLAIN), rank=1, right=False),
    Column("event", 20, lambda e: (e.text, theme.SEVERITY.get(e.severity, ("?", theme.PLAIN))[1]), right=False),
)


class OverviewView(View):
    """The whole run on one screen. At an earlier step, the fleet is as stored for that step."""

    first_pane = "#fleet"

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._drawn: object = None
        self._cursor: int | None = None
        self._past = PastEngines()

    def compose(self) -> ComposeResult:
        """Plots above, tables below."""
        with Container(id="plots"):
            yield from (Plot(chart) for chart in CHARTS)
        yield Table(FLEET, lambda row: row.id, empty="no engine has reported yet", id="fleet")
        yield Table(EVENTS, lambda event: str(event.number), empty="no events yet", id="events", log=True)

    def questions(self, snapshot: Snapshot) -> Iterable[Question]:
        """The stored engines of the step under the cursor."""
        question = self._past.question(snapshot, self.state.viewport.cursor, self.dashboard.clock())
        return () if question is None else (question,)

    def take_answers(self, answers: dict[str, Answer]) -> bool:
        """As ``View``."""
        return self._past.take_answers(answers)

    def paint(self, snapshot: Snapshot) -> None:
        """As ``View``."""
        history, viewport = self.state.history, self.state.viewport
        fleet = self._past.fleet(snapshot, history, viewport.cursor)
        self._make_room(len(fleet))
        marks = markers(self.state.marks, history, viewport.axis)
        if (drawn := (history.revision, marks, viewport)) != self._drawn:
            self._drawn = drawn
            for plot in self.query(Plot):
                plot.draw(history, marks, viewport)
        self.query_one("#fleet", Table).set_items(fleet)
        events, table = snapshot.events[::-1], self.query_one("#events", Table)
        table.set_items(events)
        if viewport.cursor != self._cursor:
            self._cursor = viewport.cursor
            table.turn_to(last_before(events, viewport.cursor, history.closed(viewport.cursor)))

    def figures(self) -> tuple[str, list[ShownFigure]] | None:
        """The numbers of the focused plot, or of the engine under the cursor."""
        pane = self.app.focused
        if isinstance(pane, Plot):
            return pane.figures()
        if not isinstance(pane, Table) or not isinstance(engine := pane.selected, Row):
            return None
        step = self._past.step(self.state.history, self.state.viewport.cursor)
        values = step.engines.get(engine.id, {}) if step else {}
        named = [(column.title, metric) for column in pane.explained() for metric in column.metrics]
        place = f"{engine.id}, {f'step {step.step}' if step else 'no step yet'}"
        return place, [in_step(title, metric, values) for title, metric in named]

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter on an engine: its facts."""
        if not isinstance(event.item, Row):
            return
        if event.item.engine is None:
            text = f"the facts of {event.item.id} at this step are not stored"
            self.app.notify(text, severity="warning", timeout=4)
        else:
            self.app.push_screen(engine_page(event.item.engine, page_width(self.app.size.width)))

    def on_resize(self) -> None:
        """Fewer plots where there is less room."""
        self._make_room(None)

    def _make_room(self, engines: int | None) -> None:
        """Size the tables by the fleet and the screen; the plots take the rest."""
        fleet, events = self.query_one("#fleet", Table), self.query_one("#events", Table)
        count = len(fleet.items) if engines is None else engines
        height = self.size.height
        fleet_rows = 1 + min(max(count, 1), max(2, height // 4))
        event_rows = max(4, height // 5)
        set_height(fleet, fleet_rows)
        set_height(events, event_rows)
        across = 3 if self.size.width >= 76 else 2 if self.size.width >= 50 else 1
        down = max(1, (height - fleet_rows - event_rows) // MIN_PLOT_LINES)
        self.query_one("#plots").styles.grid_size_columns = across
        for index, plot in enumerate(self.query(Plot)):
            plot.set_class(index >= across * down, "spare")


def last_before(events: list[Event], step: int | None, closed: float) -> Event | None:
    """The last event before ``step`` closed; None follows the newest. ``events`` are ordered newest first.

    Several steps can close at the same time, so step numbers count; a restarted trainer reuses step numbers, so time
    counts too.
    """
    if step is None:
        return None
    before = (e for e in events if e.time <= closed and (e.step is None or e.step < step))
    return next(before, events[-1] if events else None)
