"""A plot: a title line that is also the legend, and a canvas below it."""

from __future__ import annotations

import math

import numpy as np
from textual.strip import Strip

from rltop.backend import metrics
from rltop.tui.model.alarm_focus import AlarmFocus
from rltop.tui.model.charts import Chart
from rltop.tui.model.explain import ShownFigure, in_step
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import updates
from rltop.tui.model.viewport import Viewport
from rltop.tui.widgets import canvas, theme
from rltop.tui.widgets.line_widget import LineWidget

NO_MATCHED = "no version-matched tokens: pass old_logprobs with their version, or train on tokens of lag 0"


class Plot(LineWidget, can_focus=True):
    """One chart of the run."""

    def __init__(self, chart: Chart, place: str = "plot") -> None:
        super().__init__(id=f"{place}-{chart.id}", classes="pane plot")
        self.chart = chart
        self._whole = chart
        self._drawn: tuple[StepColumns, tuple[canvas.Marker, ...], Viewport] = (StepColumns(), (), Viewport())
        self._floor: float | None = None
        self._focus: AlarmFocus | None = None

    def figures(self) -> tuple[str, list[ShownFigure]]:
        """Title and step, and the numbers of the plot at that step."""
        history, _, viewport = self._drawn
        index = history.index(math.inf if viewport.cursor is None else viewport.cursor)
        step = None if index is None else history.steps[index]
        values = step.values if step else {}
        shown = [
            in_step(
                f"━ {s.label}" if i == 0 else f"╍ {s.label}",
                s.shown_metric(step) if step else s.metric,
                step.engines.get(s.engine, {}) if step and s.engine else values,
            )
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

    def show_chart(self, chart: Chart) -> None:
        """Show another chart; ``draw`` draws it."""
        self._whole = self.chart = chart

    def show_alarm(self, floor: float | None, focus: AlarmFocus | None, *, by_engine: bool = True) -> None:
        """Use this floor, and mark the plot if it shows the alarm, by engine where it can; ``draw`` draws it."""
        self._floor = floor if self._whole.has_floor else None
        self._focus = focus if focus is not None and self._whole.id in focus.charts else None
        by_engine = by_engine and self._whole.has_floor
        self.chart = self._whole.by_engine(focus.lines, focus.more) if by_engine and focus else self._whole

    def draw(self, history: StepColumns, marks: tuple[canvas.Marker, ...], viewport: Viewport) -> None:
        """Draw the run; ``marks`` are positions on the x axis of ``viewport``."""
        self._drawn = (history, marks, viewport)
        width, height = self.size
        if not width or not height:
            return
        index = history.index(math.inf if viewport.cursor is None else viewport.cursor)
        rows = [self._title(history, index, width)]
        if not any(np.isfinite(history.series(series)).any() for series in self.chart.series):
            lines = ("", *theme.wrap(NO_MATCHED if self.chart.has_floor else "not measured in this run", width))
            rows += [theme.row([(line, theme.FAINT)], width) for line in lines]
        else:
            rows += canvas.draw(self._drawing(history, marks, viewport), width, height - 1)
        self.show(rows)

    def _drawing(self, history: StepColumns, marks: tuple[canvas.Marker, ...], viewport: Viewport) -> canvas.Drawing:
        x = history.x(viewport.axis)
        linked = history.linked()
        lines = tuple(
            canvas.CanvasLine(series.label, x, history.series(series) * self.chart.factor, linked, style, dashed=i > 0)
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
            levels=self.chart.levels if self._floor is None else (self._floor,),
            include=() if self._floor is None else (self._floor,),
            cursor=viewport.cursor_x(history),
            log=viewport.log,
            x_name=viewport.axis,
            ticks=updates(history, viewport.axis),
        )

    def _title(self, history: StepColumns, index: int | None, width: int) -> Strip:
        """Name, unit and each series with its value at the cursor or the latest step; shortened to fit."""
        step = {} if index is None else history.steps[index].values
        values = [None if index is None else series.value(history.steps[index]) for series in self.chart.series]
        unit = {"": "", "share": " %", "ratio": ""}.get(self.chart.metric.unit, f" {self.chart.metric.unit}")
        title, short = f"{self.chart.prefix}{self.chart.title}", f"{self.chart.prefix}{self.chart.id}"
        long, middle = f"{title}{unit}", f"{short}{unit}"
        parts: list[theme.Part] = []
        for name, gap, digits, count, noisy in (
            (long, 2, 3, 9, True),
            (middle, 1, 3, 9, True),
            (middle, 1, 3, 9, False),
            (short, 1, 3, 9, False),
            (short, 1, 2, 9, False),
            (short, 1, 2, 1, False),
        ):
            parts = [(f"◆{name}", theme.BAD)] if self._focus else [(name, theme.STRONG)]
            parts = [(parts[0][0], theme.CURSOR)] if self.has_focus else parts
            for i, (series, value) in enumerate(zip(self.chart.series[:count], values, strict=False)):
                line, style = ("━" if i == 0 else "╍"), theme.SERIES[i]
                parts.append((" " * gap, theme.PLAIN))
                parts.append((f"{line}{series.label} ", style))
                parts.append((self.chart.figure(value, digits), theme.PLAIN))
            parts += self._noise(step, gap, digits) if noisy and index is not None else []
            if theme.length(parts) <= width:
                break
        return theme.row(parts, width)

    def _noise(self, values: metrics.Values, gap: int, digits: int) -> list[theme.Part]:
        """The noise floors in the colours of their lines; or that they are unknown."""
        if self._floor is not None:
            return [(f"{' ' * gap}┈floor {self.chart.figure(self._floor, digits)}", theme.FAINT)]
        pairs = zip(self.chart.series, theme.SERIES, strict=False)
        known = [(style, values.get(series.noise)) for series, style in pairs if series.noise]
        if not known:
            return []
        if all(value is None for _, value in known):
            return [(f"{' ' * gap}no noise floor", theme.FAINT)]
        figures = [(f" {self.chart.figure(value, digits)}", style) for style, value in known]
        return [(f"{' ' * gap}┈noise", theme.FAINT), *figures]
