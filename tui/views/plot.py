"""A plot: a title that doubles as the legend, and a canvas under it."""

from __future__ import annotations

import math

from textual.strip import Strip

from rltop.backend import metrics
from rltop.tui.model.charts import Chart
from rltop.tui.model.explain import ShownFigure, in_step
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import updates
from rltop.tui.model.viewport import Viewport, cursor_x, stretch
from rltop.tui.widgets import canvas, theme
from rltop.tui.widgets.line_widget import LineWidget


class Plot(LineWidget, can_focus=True):
    """One chart of the run."""

    def __init__(self, chart: Chart) -> None:
        super().__init__(id=f"plot-{chart.id}", classes="pane plot")
        self.chart = chart
        self._drawn: tuple[StepColumns, tuple[canvas.Marker, ...], Viewport] = (StepColumns(), (), Viewport())

    def figures(self) -> tuple[str, list[ShownFigure]]:
        """Which step is read out, and what its figures here are."""
        history, _, sight = self._drawn
        place = history.index(math.inf if sight.cursor is None else sight.cursor)
        step = None if place is None else history.steps[place]
        values = step.values if step else {}
        shown = [
            in_step(f"━ {s.label}" if at == 0 else f"╍ {s.label}", s.metric, values)
            for at, s in enumerate(self.chart.series)
        ]
        noise = [in_step(f"┈ noise beside {s.label}", s.noise, values) for s in self.chart.series if s.noise]
        return f"{self.chart.title}, {f'step {step.step}' if step else 'no step yet'}", shown + noise

    def on_resize(self) -> None:
        """Draw the same again, in the new size."""
        self.draw(*self._drawn)

    def on_focus(self) -> None:
        """The focus shows in the title."""
        self.draw(*self._drawn)

    def on_blur(self) -> None:
        """The focus went on."""
        self.draw(*self._drawn)

    def draw(self, history: StepColumns, marks: tuple[canvas.Marker, ...], sight: Viewport) -> None:
        """Draw the run as it is now; ``marks`` are what happened, on the x axis of ``sight``."""
        self._drawn = (history, marks, sight)
        width, height = self.size
        if not width or not height:
            return
        place = history.index(math.inf if sight.cursor is None else sight.cursor)
        rows = [self._title(history, place, width)]
        if history.steps:
            rows += canvas.draw(self._picture(history, marks, sight), width, height - 1)
        else:
            rows += [theme.row((), width), theme.row([("no step has closed yet", theme.FAINT)], width)]
        self.show(rows)

    def _picture(self, history: StepColumns, marks: tuple[canvas.Marker, ...], sight: Viewport) -> canvas.Drawing:
        x = history.x(sight.axis)
        linked = history.linked()
        lines = tuple(
            canvas.CanvasLine(
                series.label, x, history.column(series.metric) * self.chart.factor, linked, style, dashed=i > 0
            )
            for i, (series, style) in enumerate(zip(self.chart.series, theme.SERIES, strict=False))
        )
        guides = tuple(
            canvas.CanvasLine(series.label, x, history.column(series.noise) * self.chart.factor, linked, style)
            for series, style in zip(self.chart.series, theme.SERIES, strict=False)
            if series.noise
        )
        theirs = history.reference_column(self.chart.series[0].metric)
        if theirs is not None:
            lines += (canvas.CanvasLine("ref", x, theirs * self.chart.factor, linked, theme.FAINT),)
        return canvas.Drawing(
            x_range=stretch(sight, history),
            lines=lines[::-1],
            guides=guides,
            markers=marks,
            levels=self.chart.levels,
            cursor=cursor_x(sight, history),
            log=sight.log,
            x_name=sight.axis,
            ticks=updates(history, sight.axis),
        )

    def _title(self, history: StepColumns, place: int | None, width: int) -> Strip:
        """Name, unit and every series with its figure at the last step, or the one read out; short where need be."""
        step = {} if place is None else history.steps[place].values
        values = [step.get(series.metric) for series in self.chart.series]
        unit = {"": "", "share": " %"}.get(self.chart.metric.unit, f" {self.chart.metric.unit}")
        long, middle, short = f"{self.chart.title}{unit}", f"{self.chart.id}{unit}", self.chart.id
        parts: list[theme.Part] = []
        for name, gap, digits, labelled, noisy in (
            (long, 2, 3, True, True),
            (middle, 1, 3, True, True),
            (middle, 1, 3, True, False),
            (short, 1, 3, True, False),
            (short, 1, 2, True, False),
            (middle, 1, 2, False, False),
        ):
            parts = [(name, theme.CURSOR if self.has_focus else theme.STRONG)]
            for i, (series, value) in enumerate(zip(self.chart.series, values, strict=True)):
                line, style = ("━" if i == 0 else "╍"), theme.SERIES[i]
                parts.append((" " * gap, theme.PLAIN))
                parts.append((f"{line}{series.label} " if labelled else line, style))
                parts.append((self.chart.figure(value, digits), theme.PLAIN))
            parts += self._noise(step, gap, digits) if noisy and place is not None else []
            if theme.length(parts) <= width:
                break
        return theme.row(parts, width)

    def _noise(self, values: metrics.Values, gap: int, digits: int) -> list[theme.Part]:
        """What noise alone gives, in the colours of the lines it is to be held against; or that it is not known."""
        pairs = zip(self.chart.series, theme.SERIES, strict=False)
        known = [(style, values.get(series.noise)) for series, style in pairs if series.noise]
        if not known:
            return []
        if all(value is None for _, value in known):
            return [(f"{' ' * gap}no noise floor", theme.FAINT)]
        figures = [(f" {self.chart.figure(value, digits)}", style) for style, value in known]
        return [(f"{' ' * gap}┈noise", theme.FAINT), *figures]
