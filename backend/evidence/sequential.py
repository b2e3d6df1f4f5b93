"""Anytime-valid sequential tests: they keep their error rate when repeated at every step of a run. Pure.

A mean over tokens is tested on every stretch of steps that ends now. The sums of steps add up, so a stretch has a mean
and a variance with sequences as the independent units. For the stretch from step j on, the evidence against ``mean <=
least`` is a mixture over the effect size (a normal with deviation ``scale``):

    log E_j = -log(1 + scale^2 I) / 2 + z^2 / 2 * scale^2 I / (1 + scale^2 I) + log(2 Phi(...)),   I = 1 / variance,

with ``z^2 = m log(1 + t^2 / (m - 1))`` for t of m sequences, the correction of Student's t for small m. The run's
evidence is ``E = sum of weight_j E_j`` with weights that sum to 1 over all steps j of an endless run, so that a fault
may begin at any step. A healthy run ever reaches ``E >= 1 / p`` with probability p or less (Ville), if means over
sequences are normal (Robbins 1970; Howard, Ramdas, McAuliffe, Sekhon 2021; Waudby-Smith et al. 2021 for
the estimated variance; Shin, Ramdas, Rinaldo 2024 for the sum over first steps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TOTAL = 2.1097428
"""Sum of 1 / (k log(k)^2) over k from 2 on."""

MIN_SEQUENCES = 8
"""Sequences below which a stretch is ignored, since its variance is unreliable."""

Z95 = 1.96

RECOVERY_STEPS = 3
RECOVERY = math.log(1000)
"""A fault has ended if at least RECOVERY_STEPS latest steps are free of it and differ from those before by odds of
1,000."""


def log_weights(first: Ints) -> Floats:
    """Log weights of a first step: the weights sum to 1 over all steps from 0 on."""
    k = np.maximum(first, 0) + 2.0
    weights: Floats = -np.log(k) - 2 * np.log(np.log(k)) - math.log(_TOTAL)
    return weights


@dataclass(frozen=True, slots=True)
class Stretches:
    """All stretches that end now, by index of the first step: mean over tokens, its variance, and their sizes."""

    mean: Floats
    variance: Floats
    sequences: Floats
    tokens: Floats


def stretches(moments: Floats) -> Stretches:
    """The stretches from moments by step [steps, MOMENT]."""
    m, n, s, nn, ss, ns = np.cumsum(moments[::-1], axis=0)[::-1].T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = s / n
        variance = np.maximum(ss - 2 * mean * ns + mean * mean * nn, 0.0) / n**2 * m / (m - 1)
    variance = np.where(m >= MIN_SEQUENCES, variance, np.inf)
    return Stretches(np.where(n > 0, mean, 0.0), np.where(n > 0, variance, np.inf), m, n)


def log_evidence(mean: Floats, variance: Floats, sequences: Floats, scale: float) -> Floats:
    """Log evidence against ``mean <= 0`` for each stretch; see the module."""
    variance = np.maximum(variance, 1e-24)
    with np.errstate(over="ignore", invalid="ignore"):
        t2 = mean**2 / variance
        m = np.maximum(sequences, 2.0)
        z2 = m * np.log1p(np.where(np.isfinite(t2), t2, 0.0) / (m - 1))
        share = 1 / (1 + variance / scale**2)
    z = np.sign(mean) * np.sqrt(z2 * share)
    found: Floats = np.log1p(-np.minimum(share, 1 - 1e-12)) / 2 + z * z / 2 + _log_two_phi(z)
    return np.where(np.isfinite(variance), found, 0.0)


def _log_two_phi(z: Floats) -> Floats:
    """log(2 Phi(z)), accurate to 1e-6 above 0 and to 0.4 far below (Abramowitz and Stegun, 7.1.26)."""
    x = np.abs(z) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * x)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    with np.errstate(under="ignore"):
        found: Floats = np.where(z >= 0, np.log(2 - poly * np.exp(-x * x)), np.log(poly) - x * x)
    return found


@dataclass(frozen=True, slots=True)
class MeanShift:
    """The result of a test of a mean.

    Attributes:
        log_e: log evidence that the mean is beyond the bound.
        start: index of the first step of the shift.
        mean, low, high: over that stretch, with its 95 % interval; over all steps without evidence.
        sequences, tokens: size of the stretch.
        begin: index of the step after the last shift that has ended.
    """

    log_e: float
    start: int
    mean: float
    low: float
    high: float
    sequences: int
    tokens: int
    begin: int = 0

    @property
    def p(self) -> float:
        """Probability that a healthy run ever shows so much evidence."""
        return min(1.0, math.exp(-self.log_e)) if self.log_e < 700 else 0.0


def above(
    moments: Floats, first: Ints, scale: float, least: Floats | float = 0.0, log_alpha: float = 13.8
) -> MeanShift:
    """Test whether a mean is above ``least`` now.

    Args:
        moments: sums by step [steps, MOMENT].
        first: number of each step [steps].
        scale: expected size of the effect of a fault.
        least: bound up to which there is no fault, for all stretches or for each [steps].
        log_alpha: log evidence from which a shift is accepted, and its end searched for.
    """
    begin = 0
    while True:
        of = stretches(moments[begin:])
        bound = least[begin:] if isinstance(least, np.ndarray) else least
        bare = log_evidence(of.mean - bound, of.variance, of.sequences, scale)
        log_e = float(np.logaddexp.reduce(bare + log_weights(first[begin:]))) if bare.size else -math.inf
        start = int(np.argmax(bare)) if bare.size else 0
        if log_e < log_alpha:
            return _mean_shift(of, 0, log_e, begin)
        end = _end(moments[begin + start :], float(of.mean[start]), scale)
        if end is None:
            return _mean_shift(of, start, log_e, begin)
        begin += start + end


def below(
    moments: Floats, first: Ints, scale: float, least: Floats | float = 0.0, log_alpha: float = 13.8
) -> MeanShift:
    """Test whether a mean is below ``-least`` now; otherwise as ``above``."""
    found = above(moments * np.array([1, 1, -1, 1, 1, -1]), first, scale, least, log_alpha)
    return MeanShift(found.log_e, found.start, -found.mean, -found.high, -found.low, found.sequences, found.tokens)


def bets(logs: Floats, first: Ints, log_alpha: float = 13.8) -> tuple[float, int]:
    """Log evidence of a betting test, and the index of the first step of the shift.

    Each token multiplies wealth by a factor whose conditional expectation in a healthy run is at most 1; the same holds
    for the mean over accounts and the sum over first steps by ``log_weights``. No variance and no normal distribution
    are needed: wealth ever reaches 1 / p with probability p or less (Ville 1939; Shafer 2021).

    Args:
        logs: log of the factor on each account in each step [steps, accounts].
        first: number of each step [steps].
        log_alpha: as of ``above``.
    """
    begin = 0
    while begin < len(logs):
        part = logs[begin:]
        by_start = _mean_account(np.cumsum(part[::-1], axis=0)[::-1])
        log_e = float(np.logaddexp.reduce(by_start + log_weights(first[begin:])))
        start = int(np.argmax(by_start))
        if log_e < log_alpha:
            return log_e, begin + start
        end = _stopped(part[start:, int(np.argmax(part[start:].sum(axis=0)))])
        if end is None:
            return log_e, begin + start
        begin += start + end
    return 0.0, max(len(logs) - 1, 0)


def _stopped(gains: Floats) -> int | None:
    """Index of the step from which an account stops growing; None if it still grows."""
    total = np.cumsum(gains)
    for at in range(1, gains.size - RECOVERY_STEPS + 1):
        rate = total[at - 1] / at
        late = gains.size - at
        if rate * late > RECOVERY and total[-1] - total[at - 1] < STOPPED * rate * late:
            return at
    return None


STOPPED = 0.05
"""Share of its earlier rate up to which an account has stopped growing."""


def _mean_account(logs: Floats) -> Floats:
    mean: Floats = np.logaddexp.reduce(logs, axis=1) - math.log(logs.shape[1])
    return mean


def _mean_shift(of: Stretches, at: int, log_e: float, begin: int) -> MeanShift:
    if not of.mean.size or not of.tokens[at]:
        return MeanShift(log_e, begin + at, 0.0, -math.inf, math.inf, 0, 0, begin)
    error = Z95 * math.sqrt(of.variance[at])
    mean, low, high = (float(of.mean[at]) + x for x in (0.0, -error, error))
    return MeanShift(log_e, begin + at, mean, low, high, int(of.sequences[at]), int(of.tokens[at]), begin)


def change_point(levels: Floats, healthy: float, begin: int = 0) -> int:
    """Index of the first step of a fault, by the level of each step; ``begin`` without a healthy part before it.

    The split into two constants with the least squares, if the first is at most ``healthy``, and if two are likelier
    than one by odds of 1,000. The stretch with the most evidence may begin earlier: healthy steps have little spread
    and cost it nothing.

    Args:
        levels: on a scale on which healthy steps differ by 0.1 or less, such as logarithms [steps]; NaN: no tokens.
        healthy: the most that healthy steps have on average.
        begin: the first step to consider.
    """
    there = begin + np.flatnonzero(np.isfinite(levels[begin:]))
    x, n = levels[there], there.size
    if n < 2:
        return begin
    before = np.cumsum(x)[:-1] / np.arange(1, n)
    after = np.cumsum(x[::-1])[::-1][1:] / np.arange(n - 1, 0, -1)
    between = np.arange(1, n) * np.arange(n - 1, 0, -1) / n * (after - before) ** 2
    between = np.where((before <= healthy) & (after > before), between, 0.0)
    best = int(np.argmax(between))
    total = float(((x - x.mean()) ** 2).sum()) + n * LEVEL_NOISE**2
    odds = n / 2 * math.log(total / (total - float(between[best]))) - math.log(n)
    return int(there[best + 1]) if odds > RECOVERY else begin


LEVEL_NOISE = 0.1
"""Deviation of the level of healthy steps."""


def _end(moments: Floats, effect: float, scale: float) -> int | None:
    """Index of the step at which a fault that begins at the first step has ended; None if it lasts."""
    steps = len(moments)
    if steps < 2 * RECOVERY_STEPS:
        return None
    late = stretches(moments)
    early_sums = np.cumsum(moments, axis=0)
    best: tuple[float, int] | None = None
    for at in range(1, steps - RECOVERY_STEPS + 1):
        if not math.isfinite(late.variance[at]) or abs(late.mean[at]) > abs(effect) / 4:
            continue
        early = stretches(early_sums[at - 1][None])
        variance = float(late.variance[at] + early.variance[0])
        difference = abs(float(early.mean[0] - late.mean[at]))
        if not math.isfinite(variance) or early.mean[0] * effect <= 0:
            continue
        sequences = min(float(late.sequences[at]), float(early.sequences[0]))
        odds = log_evidence(np.array([difference]), np.array([variance]), np.array([sequences]), scale)[0]
        if odds > RECOVERY and (best is None or odds > best[0]):
            best = float(odds), at
    return None if best is None else best[1]
