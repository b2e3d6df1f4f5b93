"""Does a run follow a reference within the noise of repeated runs? Pure: steps in, a verdict out.

Per metric, the steps that all runs have are cut into blocks of equal length. ``D`` is the run's block mean less the
mean of the references'. Its noise is estimated from how the references differ among themselves, with what the runs' own
step-to-step noise leads to expect as a prior; with one reference only the prior is there, and the verdict says so. The
statistic is the greatest mean of D over any stretch of blocks, in units of its own noise: a difference that begins
late, or that passes, counts as much as one from the start. Its critical value is simulated: blocks of the same number
of runs that differ by Gaussian noise with correlation ``RHO`` between neighbouring blocks, put through the same
estimate. A difference must also exceed the metric's tolerance, below which nobody would care.

Error rates: ``ALPHA`` is shared out evenly over the metrics that can be judged, so runs that differ by such noise alone
fail at most that often. How it did on real runs is in ``docs/measurements.md``.
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
"""Chance that a run which follows its references fails in any metric."""

MIN_STEPS = 20
"""Common steps below which nothing is said of a metric."""

MIN_BLOCK, MAX_BLOCKS = 5, 10
"""Steps per block at least; blocks at most."""

RHO = 0.5
"""Correlation of neighbouring blocks of one run's difference from the mean of all: learning drifts apart slowly."""

DRIFT, LEARNING_DRIFT = 0.75, 1.5
"""How far two runs drift apart, as a share of the noise of a single step: expected before references show it. Three
demo runs that differed by their seeds had 0 to 0.9, and 1.2 in entropy, whose way down is each run's own."""

PRIOR_BLOCKS = 4.0
"""Weight of that expectation beside what several references show, in blocks."""

DRAWS = 20_000
"""Simulated comparisons per critical value."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A metric of the verdict, the difference below which two runs are the same in it, and its expected drift."""

    metric: str
    label: str
    tolerance: float
    drift: float = DRIFT


JUDGED: tuple[Judged, ...] = (
    Judged("logp_abs_diff_mean", "gap", 1e-3),
    Judged("backend_abs_diff_mean", "backend's own gap", 1e-4),
    Judged("ratio_mean", "mean ratio", 1e-3),
    Judged("kl_k3", "KL (k3)", 1e-4),
    Judged("clip_frac_low", "clip rate, low", 2e-3),
    Judged("clip_frac_high", "clip rate, high", 2e-3),
    Judged("entropy", "entropy", 1e-2, LEARNING_DRIFT),
    Judged("reward_mean", "reward", 1e-2),
    Judged("lag_mean", "lag", 0.1),
)
"""What the migration was judged by: clip rate, KL, entropy and reward, and what its faults showed in first."""

FOLLOWS, DIVERGES, TOO_LITTLE, ABSENT = "follows", "diverges", "too little data", "not measured"
PARITY, NOT_PARITY = "parity", "not parity"


class MetricVerdict(msgspec.Struct, frozen=True):
    """One metric.

    Attributes:
        metric, label: which.
        verdict: ``follows``, ``diverges``, ``too little data``, ``not measured``.
        steps: common steps with a value.
        reference, run: means over these steps.
        since: first step of the divergence; ``until``: its last.
        difference: mean of run - reference over that stretch, or over all steps where it follows.
        noise: expected size of such a mean difference between runs that follow each other.
        detectable: difference over all steps that would have been found.
        score: the statistic over its critical value; above 1 is beyond noise.
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
    """The overall answer, per metric, and what weakens it.

    ``settings`` are facts of the engines or the trainer in which the run differs from the references.
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
    """Judge ``run`` against one or more ``references``.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("no reference run")
    tables = {judged.metric: _table(references, run, judged.metric) for judged in JUDGED}
    able = sum(steps.size >= MIN_STEPS for steps, _ in tables.values())
    found = [_judge(judged, *tables[judged.metric], tests=max(able, 1)) for judged in JUDGED]
    common = max((steps.size for steps, _ in tables.values()), default=0)
    diverging = [metric for metric in found if metric.verdict == DIVERGES]
    verdict = NOT_PARITY if diverging else TOO_LITTLE if any(m.verdict == TOO_LITTLE for m in found) else PARITY
    if not able and not diverging:
        verdict = TOO_LITTLE
    notes = []
    if len(references) == 1:
        notes.append(
            "one reference: the noise of repeated runs is not known; it is taken from the noise within these two "
            f"(drift {DRIFT:g} of a step's, {LEARNING_DRIFT:g} in entropy). Three references or more give the band"
        )
    if absent := [metric.label for metric in found if metric.verdict == ABSENT]:
        notes.append(f"not measured in every run: {', '.join(absent)}")
    since = min((metric.since for metric in diverging if metric.since is not None), default=None)
    return ParityVerdict(verdict, len(references), common, found, since, notes, list(settings))


def _table(references: Sequence[Steps], run: Steps, metric: str) -> tuple[NDArray[np.int64], Floats]:
    """The whole steps that all have, and the metric in them [references then run, steps]."""
    runs = [*references, run]
    common = sorted(set.intersection(*(set(steps) for steps in runs)))
    columns = []
    for number in common:
        values = [None if steps[number].partial else steps[number].values.get(metric) for steps in runs]
        if all(value is not None and math.isfinite(value) for value in values):
            columns.append((number, values))
    steps = np.array([number for number, _ in columns], np.int64)
    return steps, np.array([values for _, values in columns], np.float64).reshape(len(columns), len(runs)).T


def _judge(judged: Judged, steps: NDArray[np.int64], values: Floats, *, tests: int) -> MetricVerdict:
    if steps.size < MIN_STEPS:
        return MetricVerdict(judged.metric, judged.label, TOO_LITTLE if steps.size else ABSENT, int(steps.size))
    count = min(steps.size // MIN_BLOCK, MAX_BLOCKS)
    edges = np.linspace(0, steps.size, count + 1).round().astype(int)
    blocks = np.add.reduceat(values, edges[:-1], axis=1) / np.diff(edges)
    references = len(values) - 1
    sigma = math.sqrt(_variance(blocks[:-1], _expected(values, steps.size / count, judged.drift)))
    means, scales, places = _stretches(blocks[-1:] - blocks[:-1].mean(axis=0), references)
    unit = sigma * scales + np.finfo(float).tiny
    critical = critical_value(references, count, tests)
    beyond = np.abs(means[0]) / unit / critical
    beyond[np.abs(means[0]) <= judged.tolerance] *= 0.0
    worst = int(beyond.argmax())
    whole = places.index((0, count))
    difference = values[-1] - values[:-1].mean(axis=0)
    about = MetricVerdict(
        judged.metric,
        judged.label,
        FOLLOWS,
        int(steps.size),
        float(values[:-1].mean()),
        float(values[-1].mean()),
        difference=float(difference.mean()),
        noise=float(unit[whole]),
        detectable=max(float(critical * unit[whole]), judged.tolerance),
        score=float(beyond[worst]),
    )
    if beyond[worst] <= 1:
        return about
    first, last = places[worst]
    start = _onset(difference, edges, first, float(means[0, worst]))
    return msgspec.structs.replace(
        about,
        verdict=DIVERGES,
        since=int(steps[start]),
        until=int(steps[edges[last] - 1]),
        difference=float(means[0, worst]),
        noise=float(unit[worst]),
    )


def _expected(values: Floats, per_block: float, drift: float) -> float:
    """Variance of a run's block mean that its step-to-step noise leads to expect, drift included.

    The noise is that of second differences, which neither a trend nor a step in level adds to.
    """
    bend = values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]
    noise = float(np.mean(bend**2)) / 6
    return noise * (1 / per_block + drift**2 / 2)  # of one run; the difference of two drifts by ``drift``


def _variance(references: Floats, expected: float) -> float:
    """Variance of a block of one run about the mean of all: what references [runs, blocks] show, and the prior."""
    apart = references - references.mean(axis=0)
    freedom = (len(references) - 1) * references.shape[1]
    return float((PRIOR_BLOCKS * expected + np.sum(apart**2)) / (PRIOR_BLOCKS + freedom))


def _stretches(difference: Floats, references: int) -> tuple[Floats, Floats, list[tuple[int, int]]]:
    """Means over stretches of blocks of differences [rows, blocks].

    A stretch of one block counts only at the end, where more of it may be to come.

    Returns:
        Means [rows, stretches], their noise in units of that of one run's block [stretches], and the stretches.
    """
    blocks = difference.shape[1]
    places = [(i, j) for i in range(blocks) for j in range(i + 1, blocks + 1) if j - i > 1 or j == blocks]
    sums = np.concatenate([np.zeros((len(difference), 1)), np.cumsum(difference, axis=1)], axis=1)
    sizes = np.array([j - i for i, j in places])
    means = (sums[:, [j for _, j in places]] - sums[:, [i for i, _ in places]]) / sizes
    return means, np.sqrt(1 + 1 / references) * np.array([_mean_noise(int(size)) for size in sizes]), places


@functools.cache
def _mean_noise(size: int) -> float:
    """Standard deviation of the mean of ``size`` neighbouring blocks of unit variance."""
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return float(np.sqrt(np.mean(RHO**lags)))


@functools.cache
def critical_value(references: int, blocks: int, tests: int) -> float:
    """What the statistic exceeds in ``ALPHA / tests`` of the comparisons of runs that differ by noise alone."""
    rng = np.random.default_rng(20_260_506)
    noise = rng.standard_normal((DRAWS, references + 1, blocks))
    for block in range(1, blocks):
        noise[:, :, block] = RHO * noise[:, :, block - 1] + math.sqrt(1 - RHO**2) * noise[:, :, block]
    others = noise[:, :-1]
    apart = others - others.mean(axis=1, keepdims=True)
    shown = np.sum(apart**2, axis=(1, 2))
    sigma = np.sqrt((PRIOR_BLOCKS + shown) / (PRIOR_BLOCKS + (references - 1) * blocks))
    means, scales, _ = _stretches(noise[:, -1] - others.mean(axis=1), references)
    return float(np.quantile(np.max(np.abs(means) / scales, axis=1) / sigma, 1 - ALPHA / tests))


def _onset(difference: Floats, edges: NDArray[np.int64], first: int, size: float) -> int:
    """Place of the step from which the difference is there: near its stretch's start, half its size and staying."""
    half = difference * np.sign(size) >= abs(size) / 2
    for start in range(int(edges[max(first - 1, 0)]), int(edges[first + 1])):
        if half[start] and half[start : start + 3].mean() > 0.6:
            return start
    return int(edges[first])
