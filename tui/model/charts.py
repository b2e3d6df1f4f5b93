"""The plots of the Overview as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rltop.backend import metrics
from rltop.backend.api import Step
from rltop.tui.widgets import theme


@dataclass(frozen=True)
class ChartSeries:
    """One line of a plot.

    Attributes:
        label: in the legend.
        metric: its metric; where that is unknown, the metric ``otherwise``.
        noise: the metric of its noise floor, if any.
        engine: of this engine alone; empty for the run.
    """

    label: str
    metric: str
    noise: str = ""
    otherwise: str = ""
    engine: str = ""

    def value(self, step: Step) -> float | None:
        """Its value in a step; None where unknown."""
        values = step.engines.get(self.engine, {}) if self.engine else step.values
        value = values.get(self.metric)
        return values.get(self.otherwise) if value is None and self.otherwise else value

    def shown_metric(self, step: Step) -> str:
        """The metric that ``value`` is of."""
        values = step.engines.get(self.engine, {}) if self.engine else step.values
        return self.otherwise if self.otherwise and values.get(self.metric) is None else self.metric


@dataclass(frozen=True)
class Chart:
    """A plot.

    Attributes:
        id: short name, used as the title where space is short.
        title: the title.
        series: the most important first; its unit and thresholds apply to the chart.
        has_floor: the run's floor of the version-matched gap is drawn.
        prefix: precedes the title and the short name.
    """

    id: str
    title: str
    series: tuple[ChartSeries, ...]
    has_floor: bool = False
    prefix: str = ""

    @property
    def metric(self) -> metrics.Metric:
        """The metric of the first series."""
        return metrics.BY_NAME[self.series[0].metric]

    def by_engine(self, engines: Sequence[str], more: bool) -> Chart:
        """The chart with a line for each of these engines, and one for the run if there are ``more``."""
        first = self.series[0]
        lines = tuple(replace(first, label=engine, engine=engine) for engine in engines)
        return replace(self, series=(*lines, replace(first, label="all")) if more or not lines else lines)

    @property
    def factor(self) -> float:
        """Factor from value to display: shares are shown in percent."""
        return 100.0 if self.metric.unit == "share" else 1.0

    @property
    def levels(self) -> tuple[float, ...]:
        """The thresholds of the metric, in display units."""
        known = self.metric.thresholds
        return () if known is None else tuple(level * self.factor for level in (known.amber, known.red) if level > 0)

    def figure(self, value: float | None, digits: int) -> str:
        """A value of one of the series as short text."""
        return theme.percent(value) if self.metric.unit == "share" else theme.figure(value, digits)


MATCHED = Chart("matched", "version-matched gap", (
    ChartSeries("mean", "backend_abs_diff_mean", otherwise="lag0_abs_diff_mean"),
), has_floor=True)  # fmt: skip
"""The gap without staleness: most checks, and so most alarms, rest on it."""

CHARTS: tuple[Chart, ...] = (
    MATCHED,
    Chart("gap", "logprob gap |d|", (
        ChartSeries("mean", "logp_abs_diff_mean", "noise_abs_diff"), ChartSeries("p95", "logp_abs_diff_p95"),
    )),
    Chart("lag", "policy lag", (ChartSeries("mean", "lag_mean"), ChartSeries("max", "lag_max"))),
    Chart("KL", "KL rollout|trainer", (ChartSeries("k3", "kl_k3", "noise_k3"), ChartSeries("k1", "kl_k1"))),
    Chart("clip", "clip rate", (
        ChartSeries("low", "clip_frac_low", "noise_clip_frac_low"),
        ChartSeries("high", "clip_frac_high", "noise_clip_frac_high"),
    )),
    Chart("reward", "reward", (ChartSeries("mean", "reward_mean"),)),
    Chart("ratio", "mean ratio", (ChartSeries("mean", "ratio_mean"),)),
    Chart("entropy", "entropy", (ChartSeries("mean", "entropy"),)),
    Chart("ESS", "effective samples", (ChartSeries("ESS", "ess"),)),
)  # fmt: skip
