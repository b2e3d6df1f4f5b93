"""The Overview: plots of the run, the fleet, the event log."""

from __future__ import annotations

from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import Container

from rltop.backend.api import Answer, Question, Snapshot
from rltop.tui.dialogs.info_dialogs import engine_page, page_width
from rltop.tui.model.charts import CHARTS
from rltop.tui.model.events import EVENTS, shown_events
from rltop.tui.model.explain import ShownFigure, in_step
from rltop.tui.model.fleet_table import FLEET, Row, with_alarm
from rltop.tui.model.past_engines import PastEngines
from rltop.tui.model.run_state import awaited
from rltop.tui.model.timeline import markers
from rltop.tui.views.plot import Plot
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Table

MIN_PLOT_LINES = 6
"""Lower plots would be unreadable: where there is less room, the last plots are hidden."""


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
        with Container(id="plots", classes="plots"):
            yield from (Plot(chart) for chart in CHARTS)
        yield LineWidget(id="awaited")
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
        fleet = with_alarm(self._past.fleet(snapshot, history, viewport.cursor), self.state.focus)
        self._make_room(len(fleet))
        marks = markers(self.state.marks, history, viewport.axis)
        self.set_class(not history.steps, "waiting")
        if (drawn := (history.revision, marks, viewport, self.state.floor, self.state.focus)) != self._drawn:
            self._drawn = drawn
            for plot in self.query(Plot):
                plot.show_alarm(self.state.floor, self.state.focus)
                plot.draw(history, marks, viewport)
        self.query_one("#fleet", Table).set_items(fleet)
        events, table = shown_events(snapshot, history, viewport.cursor), self.query_one("#events", Table)
        table.set_items(events)
        if viewport.cursor != self._cursor:
            self._cursor = viewport.cursor
            table.turn_to(None if viewport.cursor is None or not events else events[0])

    def paint_awaited(self, snapshot: Snapshot | None, notice: str) -> None:
        """As ``View``: in the middle of the screen."""
        self.set_class(True, "waiting")
        pane = self.query_one("#awaited", LineWidget)
        width, lines = pane.size.width, list(awaited(snapshot, self.dashboard.run))
        parts = [
            [("✔ " if there else "◌ ", theme.GOOD if there else theme.WARN), (f"{name:<15}", theme.STRONG),
             (text, theme.PLAIN)]
            for there, name, text in lines
        ]  # fmt: skip
        left = max(width - max(map(theme.length, parts)), 0) // 2
        above = max(pane.size.height - len(parts) - 4, 0) // 2
        head = theme.row([(" " * left, theme.PLAIN), ("This run has no training step yet", theme.STRONG)], width)
        blank = theme.row((), width)
        rows = [theme.row([(" " * left, theme.PLAIN), *part], width) for part in parts]
        last = theme.row([(notice.center(width), theme.WARN)], width)
        pane.show([*[blank] * above, head, blank, *rows, blank, last])

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
