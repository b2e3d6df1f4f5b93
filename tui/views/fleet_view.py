"""The Fleet view: every engine with all its figures, and the selected one over the steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from textual.app import ComposeResult
from textual.containers import Container

from rltop.backend.api import Answer, Question, Snapshot
from rltop.tui.dialogs.info_dialogs import engine_page, page_width
from rltop.tui.model.charts import Chart, ChartSeries
from rltop.tui.model.explain import ShownFigure
from rltop.tui.model.fleet_table import FLEET, Row, with_alarm
from rltop.tui.model.past_engines import PastEngines
from rltop.tui.model.timeline import markers
from rltop.tui.views.plot import Plot
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets.line_widget import set_height
from rltop.tui.widgets.table import Table

ENGINE_CHARTS: tuple[Chart, ...] = (
    Chart("matched", "version-matched gap", (
        ChartSeries("mean", "backend_abs_diff_mean", otherwise="lag0_abs_diff_mean"),
    ), has_floor=True),
    Chart("gap", "logprob gap |d|", (ChartSeries("mean", "logp_abs_diff_mean"),)),
    Chart("lag", "policy lag", (ChartSeries("mean", "lag_mean"), ChartSeries("max", "lag_max"))),
    Chart("hits", "prefix hits", (ChartSeries("hits", "prefix_hit_rate"),)),
    Chart("ratio", "mean ratio", (ChartSeries("mean", "ratio_mean"),)),
    Chart("reward", "reward", (ChartSeries("mean", "reward_mean"),)),
)  # fmt: skip
"""Plots of one engine."""


class FleetView(View):
    """All engines; below, plots of the selected one. At an earlier step as stored for that step."""

    first_pane = "#engines"

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._past = PastEngines()

    def compose(self) -> ComposeResult:
        """The table, and the plots of the selected engine."""
        yield Table(FLEET, lambda row: row.id, empty="no engine has reported yet", id="engines")
        with Container(id="engine-plots", classes="plots"):
            yield from (Plot(chart, place="engine") for chart in ENGINE_CHARTS)

    def questions(self, snapshot: Snapshot) -> Iterable[Question]:
        """The stored engines of the step under the cursor."""
        question = self._past.question(snapshot, self.state.viewport.cursor, self.dashboard.clock())
        return () if question is None else (question,)

    def take_answers(self, answers: dict[str, Answer]) -> bool:
        """As ``View``."""
        return self._past.take_answers(answers)

    def paint(self, snapshot: Snapshot) -> None:
        """As ``View``."""
        rows = self._past.fleet(snapshot, self.state.history, self.state.viewport.cursor)
        table = self.query_one("#engines", Table)
        set_height(table, 1 + min(max(len(rows), 1), max(self.size.height // 2 - 1, 2)))
        table.set_items(with_alarm(rows, self.state.focus))
        self.cursor_moved()

    def cursor_moved(self) -> None:
        """Draw the plots of the selected engine."""
        selected = self.query_one("#engines", Table).selected
        name = selected.id if isinstance(selected, Row) else ""
        focus = self.state.focus
        marks = markers(self.state.marks, self.state.history, self.state.viewport.axis)
        for plot, chart in zip(self.query(Plot), ENGINE_CHARTS, strict=True):
            plot.show_chart(of_engine(chart, name))
            plot.show_alarm(self.state.floor, focus if focus and name in focus.engines else None, by_engine=False)
            plot.draw(self.state.history, marks, self.state.viewport)

    def figures(self) -> tuple[str, list[ShownFigure]] | None:
        """The numbers of the focused plot."""
        pane = self.app.focused
        return pane.figures() if isinstance(pane, Plot) else None

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter on an engine: its facts."""
        if isinstance(event.item, Row) and event.item.engine is not None:
            self.app.push_screen(engine_page(event.item.engine, page_width(self.app.size.width)))


def of_engine(chart: Chart, engine: str) -> Chart:
    """The chart with the figures of one engine, named in its title."""
    series = tuple(replace(one, engine=engine) for one in chart.series)
    return replace(chart, prefix=f"{engine} ", series=series)
