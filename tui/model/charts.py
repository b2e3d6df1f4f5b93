"""The plots of the Overview as data."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend import metrics
from rltop.tui.widgets import theme


@dataclass(frozen=True)
class ChartSeries:
    """One line of a plot: label in the legend, metric, and the metric of its noise floor, if any."""

    label: str
    metric: str
    noise: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot.

    Attributes:
        id: short name, used as the title where space is short.
        title: the title.
        series: the most important first; its unit and thresholds apply to the chart.
    """

    id: str
    title: str
    series: tuple[ChartSeries, ...]

    @property
    def metric(self) -> metrics.Metric:
        """The metric of the first series."""
        return metrics.BY_NAME[self.series[0].metric]

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


CHARTS: tuple[Chart, ...] = (
    Chart("gap", "logprob gap |d|", (
        ChartSeries("mean", "logp_abs_diff_mean", "noise_abs_diff"), ChartSeries("p95", "logp_abs_diff_p95"),
    )),
    Chart("clip", "clip rate", (
        ChartSeries("low", "clip_frac_low", "noise_clip_frac_low"),
        ChartSeries("high", "clip_frac_high", "noise_clip_frac_high"),
    )),
    Chart("KL", "KL rollout|trainer", (ChartSeries("k3", "kl_k3", "noise_k3"), ChartSeries("k1", "kl_k1"))),
    Chart("reward", "reward", (ChartSeries("mean", "reward_mean"),)),
    Chart("entropy", "entropy", (ChartSeries("mean", "entropy"),)),
    Chart("lag", "policy lag", (ChartSeries("mean", "lag_mean"), ChartSeries("max", "lag_max"))),
)  # fmt: skip
