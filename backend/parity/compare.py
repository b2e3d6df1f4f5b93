"""Does a run follow reference runs within the noise of repeated runs? Pure: steps in, a verdict out.

Per metric, the steps common to all runs are cut into blocks of equal length. ``D`` is the run's block mean minus the
references' block mean. Its noise is estimated from the differences among the references, with the runs' step-to-step
noise as a prior; with one reference the prior is all there is, and the verdict notes it. The statistic is the maximum
over all stretches of blocks of |mean D| in units of its noise, so a late or temporary difference counts like one from
the start. Its critical value is simulated from runs that differ by Gaussian noise with correlation ``RHO`` between
neighbouring blocks, with the same estimator. A difference must also exceed the metric's tolerance.

Error rate: ``ALPHA`` is divided evenly over the metrics with enough data, so runs that differ by such noise alone fail
at most that often. ``docs/measurements.md`` has the rates on real runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend.api import Step

ALPHA = 0.05
"""Probability that a run which follows its references fails in any metric."""

MIN_STEPS = 20
"""Fewest common steps for a verdict on a metric."""

MIN_BLOCK, MAX_BLOCKS = 5, 10
"""Fewest steps per block; most blocks."""

RHO = 0.5
"""Correlation between neighbouring blocks of a run's difference from the mean of all runs, which drift apart slowly."""

DRIFT, LEARNING_DRIFT = 0.75, 1.5
"""Prior drift between two runs, as a share of the noise of a single step. Three demo runs with different seeds had 0 to
0.9, and 1.2 in entropy, which decreases at each run's own pace."""

PRIOR_BLOCKS = 4.0
"""Weight of the prior relative to the references, in blocks."""

DRAWS = 20_000
"""Simulated comparisons per critical value."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ParityMetric:
    """A metric of the verdict, the difference below which two runs count as equal, and its prior drift."""

    metric: str
    label: str
    tolerance: float
    drift: float = DRIFT


METRICS: tuple[ParityMetric, ...] = (
    ParityMetric("logp_abs_diff_mean", "gap", 1e-3),
    ParityMetric("backend_abs_diff_mean", "backend's own gap", 1e-4),
    ParityMetric("ratio_mean", "mean ratio", 1e-3),
    ParityMetric("kl_k3", "KL (k3)", 1e-4),
    ParityMetric("clip_frac_low", "clip rate, low", 2e-3),
    ParityMetric("clip_frac_high", "clip rate, high", 2e-3),
    ParityMetric("entropy", "entropy", 1e-2, LEARNING_DRIFT),
    ParityMetric("reward_mean", "reward", 1e-2),
    ParityMetric("lag_mean", "lag", 0.1),
)
"""Clip rate, KL, entropy and reward, and the metrics that show faults first."""

FOLLOWS, DIVERGES, TOO_LITTLE, ABSENT = "follows", "diverges", "too little data", "not measured"
PARITY, NOT_PARITY = "parity", "not parity"


class MetricVerdict(msgspec.Struct, frozen=True):
    """One metric.

    Attributes:
        metric, label: which.
        verdict: ``follows``, ``diverges``, ``too little data``, ``not measured``.
        steps: common steps with a value.
        reference, run: means over these steps.
        since, until: first and last step of the divergence.
        difference: mean of run - reference over that stretch, or over all steps if the run follows.
        noise: standard deviation of that mean difference between runs that follow each other.
        detectable: smallest difference over all steps that the test detects.
        score: the statistic divided by its critical value; above 1 is beyond noise.
    """

    metric: str
    label: str
    verdict: str
    steps: int = 0
    reference: float | None = None
    run: float | None = None
    since: int | None = None
    until: int | None = None
    difference: float | None = None
    noise: float | None = None
    detectable: float | None = None
    score: float | None = None


class ParityVerdict(msgspec.Struct, frozen=True):
    """The overall verdict, the verdict per metric, and limitations (``notes``).

    ``settings`` are facts of engines or trainer in which the run differs from the references.
    """

    verdict: str
    references: int
    steps: int
    metrics: list[MetricVerdict]
    since: int | None = None
    notes: list[str] = []
    settings: list[str] = []


Steps = Mapping[int, Step]


def parity(references: Sequence[Steps], run: Steps, settings: Sequence[str] = ()) -> ParityVerdict:
    """Compare ``run`` with one or more ``references``.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("no reference run")
    tables = {about.metric: _table(references, run, about.metric) for about in METRICS}
    tested = sum(steps.size >= MIN_STEPS for steps, _ in tables.values())
    metrics = [_judge(about, *tables[about.metric], tests=max(tested, 1)) for about in METRICS]
    common = max((steps.size for steps, _ in tables.values()), default=0)
    diverging = [metric for metric in metrics if metric.verdict == DIVERGES]
    verdict = NOT_PARITY if diverging else TOO_LITTLE if any(m.verdict == TOO_LITTLE for m in metrics) else PARITY
    if not tested and not diverging:
        verdict = TOO_LITTLE
    notes = []
    if len(references) == 1:
        notes.append(
            "one reference: the noise between repeated runs is unknown and estimated from the noise within these two "
            f"(drift {DRIFT:g} of a step's noise, {LEARNING_DRIFT:g} in entropy). Three or more references measure it"
        )
    if absent := [metric.label for metric in metrics if metric.verdict == ABSENT]:
        notes.append(f"not measured in every run: {', '.join(absent)}")
    since = min((metric.since for metric in diverging if metric.since is not None), default=None)
    return ParityVerdict(verdict, len(references), common, metrics, since, notes, list(settings))


def _table(references: Sequence[Steps], run: Steps, metric: str) -> tuple[NDArray[np.int64], Floats]:
    """The complete steps common to all runs, and the metric in them [references then run, steps]."""
    runs = [*references, run]
    common = sorted(set.intersection(*(set(steps) for steps in runs)))
    columns = []
    for number in common:
        values = [None if steps[number].partial else steps[number].values.get(metric) for steps in runs]
        if all(value is not None and math.isfinite(value) for value in values):
            columns.append((number, values))
    steps = np.array([number for number, _ in columns], np.int64)
    return steps, np.array([values for _, values in columns], np.float64).reshape(len(columns), len(runs)).T


def _judge(about: ParityMetric, steps: NDArray[np.int64], values: Floats, *, tests: int) -> MetricVerdict:
    if steps.size < MIN_STEPS:
        return MetricVerdict(about.metric, about.label, TOO_LITTLE if steps.size else ABSENT, int(steps.size))
    count = min(steps.size // MIN_BLOCK, MAX_BLOCKS)
    edges = np.linspace(0, steps.size, count + 1).round().astype(int)
    blocks = np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)
    references = len(values) - 1
    sigma = math.sqrt(_variance(blocks[:-1], _expected(values, steps.size / count, about.drift)))
    means, scales, stretches = _stretches(blocks[-1:] - blocks[:-1].mean(axis=0), references)
    unit = sigma * scales + np.finfo(float).tiny
    critical = critical_value(references, count, tests)
    beyond = np.abs(means[0]) / unit / critical
    beyond[np.abs(means[0]) <= about.tolerance] *= 0.0
    worst = int(beyond.argmax())
    whole = stretches.index((0, count))
    difference = values[-1] - values[:-1].mean(axis=0)
    verdict = MetricVerdict(
        about.metric,
        about.label,
        FOLLOWS,
        int(steps.size),
        float(values[:-1].mean()),
        float(values[-1].mean()),
        difference=float(difference.mean()),
        noise=float(unit[whole]),
        detectable=max(float(critical * unit[whole]), about.tolerance),
        score=float(beyond[worst]),
    )
    if beyond[worst] <= 1:
        return verdict
    first, last = stretches[worst]
    start = _onset(difference, edges, first, float(means[0, worst]))
    return msgspec.structs.replace(
        verdict,
        verdict=DIVERGES,
        since=int(steps[start]),
        until=int(steps[edges[last] - 1]),
        difference=float(means[0, worst]),
        noise=float(unit[worst]),
    )


def _expected(values: Floats, per_block: float, drift: float) -> float:
    """Prior variance of a run's block mean, from its step-to-step noise and drift.

    The noise is estimated from second differences, which neither a trend nor a level shift contributes to.
    """
    bend = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
    noise = float(np.mean(bend**2)) / 6
    return noise * (1 / per_block + drift**2 / 2)  # per run; the difference of two runs drifts by ``drift``


def _variance(references: Floats, expected: float) -> float:
    """Variance of one run's block about the mean of all, from the references [runs, blocks] and the prior."""
    deviations = references - references.mean(axis=0)
    freedom = (len(references) - 1) * references.shape[1]
    return float((PRIOR_BLOCKS * expected + np.sum(deviations**2)) / (PRIOR_BLOCKS + freedom))


def _stretches(difference: Floats, references: int) -> tuple[Floats, Floats, list[tuple[int, int]]]:
    """Means over stretches of blocks of differences [rows, blocks].

    A stretch of one block counts only at the end, where it may continue.

    Returns:
        Means [rows, stretches], their noise in units of the noise of one run's block [stretches], and the stretches.
    """
    blocks = difference.shape[1]
    stretches = [(i, j) for i in range(blocks) for j in range(i + 1, blocks + 1) if j - i > 1 or j == blocks]
    sums = np.concatenate([np.zeros((len(difference), 1)), np.cumsum(difference, axis=1)], axis=1)
    sizes = np.array([j - i for i, j in stretches])
    means = (sums[:, [j for _, j in stretches]] - sums[:, [i for i, _ in stretches]]) / sizes
    return means, np.sqrt(1 + 1 / references) * np.array([_mean_noise(int(size)) for size in sizes]), stretches


@functools.cache
def _mean_noise(size: int) -> float:
    """Standard deviation of the mean of ``size`` neighbouring blocks of unit variance."""
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return float(np.sqrt(np.mean(RHO**lags)))


@functools.cache
def critical_value(references: int, blocks: int, tests: int) -> float:
    """The ``1 - ALPHA / tests`` quantile of the statistic for runs that differ by noise alone."""
    rng = np.random.default_rng(20_260_506)
    noise = rng.standard_normal((DRAWS, references + 1, blocks))
    for block in range(1, blocks):
        noise[:, :, block] = RHO * noise[:, :, block - 1] + math.sqrt(1 - RHO**2) * noise[:, :, block]
    others = noise[:, :-1]
    deviations = others - others.mean(axis=1, keepdims=True)
    squares = np.sum(deviations**2, axis=(1, 2))
    sigma = np.sqrt((PRIOR_BLOCKS + squares) / (PRIOR_BLOCKS + (references - 1) * blocks))
    means, scales, _ = _stretches(noise[:, -1] - others.mean(axis=1), references)
    return float(np.quantile(np.max(np.abs(means) / scales, axis=1) / sigma, 1 - ALPHA / tests))


def _onset(difference: Floats, edges: NDArray[np.int64], first: int, size: float) -> int:
    """Index of the step where the difference begins: near the stretch's start, at half its size and persistent."""
    half = difference * np.sign(size) >= abs(size) / 2
    for start in range(int(edges[max(first - 1, 0)]), int(edges[first + 1])):
        if half[start] and half[start : start + 3].mean() > 0.6:
            return start
    return int(edges[first])
