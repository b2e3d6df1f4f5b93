"""A plot: a title line that is also the legend, and a canvas below it."""

from __future__ import annotations

import math

from textual.strip import Strip

from rltop.backend import metrics
from rltop.tui.model.charts import Chart
from rltop.tui.model.explain import ShownFigure, in_step
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import updates
from rltop.tui.model.viewport import Viewport
from rltop.tui.widgets import canvas, theme
from rltop.tui.widgets.line_widget import LineWidget


class Plot(LineWidget, can_focus=True):
    """One chart of the run."""

    def __init__(self, chart: Chart) -> None:
        super().__init__(id=f"plot-{chart.id}", classes="pane plot")
        self.chart = chart
        self._drawn: tuple[StepColumns, tuple[canvas.Marker, ...], Viewport] = (StepColumns(), (), Viewport())

    def figures(self) -> tuple[str, list[ShownFigure]]:
        """Title and step, and the numbers of the plot at that step."""
        history, _, viewport = self._drawn
        index = history.index(math.inf if viewport.cursor is None else viewport.cursor)
        step = None if index is None else history.steps[index]
        values = step.values if step else {}
        shown = [
            in_step(f"━ {s.label}" if i == 0 else f"╍ {s.label}", s.metric, values)
            for i, s in enumerate(self.chart.series)
        ]
        noise = [in_step(f"┈ noise floor of {s.label}", s.noise, values) for s in self.chart.series if s.noise]
        return f"{self.chart.title}, {f'step {step.step}' if step else 'no step yet'}", shown + noise

    def on_resize(self) -> None:
        """Draw in the new size."""
        self.draw(*self._drawn)

    def on_focus(self) -> None:
        """Show the focus in the title."""
        self.draw(*self._drawn)

    def on_blur(self) -> None:
        """Remove the focus from the title."""
        self.draw(*self._drawn)

    def draw(self, history: StepColumns, marks: tuple[canvas.Marker, ...], viewport: Viewport) -> None:
        """Draw the run; ``marks`` are positions on the x axis of ``viewport``."""
        self._drawn = (history, marks, viewport)
        width, height = self.size
        if not width or not height:
            return
        index = history.index(math.inf if viewport.cursor is None else viewport.cursor)
        rows = [self._title(history, index, width)]
        if history.steps:
            rows += canvas.draw(self._drawing(history, marks, viewport), width, height - 1)
        else:
            lines = ("", *theme.wrap("waiting for the first training step", width))
            rows += [theme.row([(line, theme.FAINT)], width) for line in lines]
        self.show(rows)

    def _drawing(self, history: StepColumns, marks: tuple[canvas.Marker, ...], viewport: Viewport) -> canvas.Drawing:
        x = history.x(viewport.axis)
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
        reference = history.reference_column(self.chart.series[0].metric)
        if reference is not None:
            lines += (canvas.CanvasLine("ref", x, reference * self.chart.factor, linked, theme.FAINT),)
        return canvas.Drawing(
            x_range=viewport.visible_range(history),
            lines=lines[::-1],
            guides=guides,
            markers=marks,
            levels=self.chart.levels,
            cursor=viewport.cursor_x(history),
            log=viewport.log,
            x_name=viewport.axis,
            ticks=updates(history, viewport.axis),
        )

    def _title(self, history: StepColumns, index: int | None, width: int) -> Strip:
        """Name, unit and each series with its value at the cursor or the latest step; shortened to fit."""
        step = {} if index is None else history.steps[index].values
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
            parts += self._noise(step, gap, digits) if noisy and index is not None else []
            if theme.length(parts) <= width:
                break
        return theme.row(parts, width)

    def _noise(self, values: metrics.Values, gap: int, digits: int) -> list[theme.Part]:
        """The noise floors in the colours of their lines; or that they are unknown."""
        pairs = zip(self.chart.series, theme.SERIES, strict=False)
        known = [(style, values.get(series.noise)) for series, style in pairs if series.noise]
        if not known:
            return []
        if all(value is None for _, value in known):
            return [(f"{' ' * gap}no noise floor", theme.FAINT)]
        figures = [(f" {self.chart.figure(value, digits)}", style) for style, value in known]
        return [(f"{' ' * gap}┈noise", theme.FAINT), *figures]
