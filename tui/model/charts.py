"""The plots of the Overview, as data."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend import metrics
from rltop.tui.widgets import theme


@dataclass(frozen=True)
class ChartSeries:
    """One line of a plot: its name in the legend, the metric it shows, and the one that says what noise alone gives."""

    label: str
    metric: str
    noise: str = ""


@dataclass(frozen=True)
class Chart:
    """What a plot shows.

    Attributes:
        id: short name, also its title where there is no room.
        title: its title.
        series: the most telling first; its unit and thresholds are the chart's.
    """

    id: str
    title: str
    series: tuple[ChartSeries, ...]

    @property
    def metric(self) -> metrics.Metric:
        """The metric that the chart is about."""
        return metrics.BY_NAME[self.series[0].metric]

    @property
    def factor(self) -> float:
        """What values are multiplied with to be shown: shares of one are shown in percent."""
        return 100.0 if self.metric.unit == "share" else 1.0

    @property
    def levels(self) -> tuple[float, ...]:
        """Where the metric begins to be worth a look, as shown."""
        known = self.metric.thresholds
        return () if known is None else tuple(level * self.factor for level in (known.amber, known.red) if level > 0)

    def figure(self, value: float | None, digits: int) -> str:
        """A value of one of the series, in few characters."""
        return theme.percent(value) if self.metric.unit == "share" else theme.figure(value, digits)


CHARTS: tuple[Chart, ...] = (
    Chart("gap", "logprob gap |d|", (
        ChartSeries("mean", "logp_abs_diff_mean", "noise_abs_diff"), ChartSeries("p95", "logp_abs_diff_p95"),
    )),
    Chart("clip", "clip rate", (
        ChartSeries("low", "clip_frac_low", "noise_clip_frac_low"), ChartSeries("high", "clip_frac_high", "noise_clip_frac_high"),
    )),
    Chart("KL", "KL rollout|trainer", (ChartSeries("k3", "kl_k3", "noise_k3"), ChartSeries("k1", "kl_k1"))),
    Chart("reward", "reward", (ChartSeries("mean", "reward_mean"),)),
    Chart("entropy", "entropy", (ChartSeries("mean", "entropy"),)),
    Chart("lag", "policy lag", (ChartSeries("mean", "lag_mean"), ChartSeries("max", "lag_max"))),
)  # fmt: skip
