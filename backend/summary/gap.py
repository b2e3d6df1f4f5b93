"""The summary of the differences of two logprobs over tokens. Pure.

``Gap()`` is empty, ``token_runs.gap_of`` makes a gap from arrays, and ``+`` merges two: it is associative and
commutative, exactly for counts and histograms, to float64 rounding for sums. Quantiles are computed only for display.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rltop.backend.summary.kernel import CLAMP, EXTREME, SIDE, SUM, Floats, Ints
from rltop.backend.summary.moments import MIDDLES, Pairs, quantile

_NO_BINS: Ints = np.zeros(2 * SIDE + 1, np.int64)
_NO_BINS.flags.writeable = False

NO_EXTREMES = np.array([math.inf, -math.inf, 0.0])
"""``Gap.extremes`` of no tokens."""


def clamped(d: float) -> float:
    """D clamped to +-CLAMP."""
    return max(-CLAMP, min(CLAMP, d))


@dataclass(frozen=True, slots=True)
class Gap:
    """Summary of ``d = left - right`` in nats, ``ratio = exp(d)``. Every figure is None without a valid token.

    Attributes:
        sums: [TokenSums]. extremes: [Extremes].
        bins: histogram of d. surprisal: pairs of (right logprob, d). probs: pairs of (right, left) probabilities.
    """

    sums: Floats = field(default_factory=lambda: np.zeros(len(SUM)))
    extremes: Floats = field(default_factory=NO_EXTREMES.copy)
    bins: Ints = field(default_factory=lambda: _NO_BINS)
    surprisal: Pairs = field(default_factory=Pairs)
    probs: Pairs = field(default_factory=Pairs)

    @classmethod
    def from_kernel(cls, sums: Floats, extremes: Floats, bins: Ints, anchor: Floats) -> Gap:
        """The gap of one engine, from the kernel's sums about its anchor (a right logprob, a right probability)."""
        n, r, p = float(sums[SUM.valid]), float(anchor[0]), float(anchor[1])
        surprisal = sums[[SUM.dr, SUM.d, SUM.dr_dr, SUM.d2, SUM.dr_d]].tolist()
        probs = sums[[SUM.dp, SUM.dq, SUM.dp_dp, SUM.dq_dq, SUM.dp_dq]].tolist()
        return cls(sums, extremes, bins, Pairs.about(n, (r, 0.0), *surprisal), Pairs.about(n, (p, p), *probs))

    def __add__(self, other: Gap) -> Gap:
        if not (self.tokens and other.tokens):
            return self if self.tokens else other
        extremes = np.maximum(self.extremes, other.extremes)
        extremes[EXTREME.low] = min(self.extremes[EXTREME.low], other.extremes[EXTREME.low])
        return Gap(
            self.sums + other.sums,
            extremes,
            self.bins + other.bins,
            self.surprisal + other.surprisal,
            self.probs + other.probs,
        )

    # --- counts -------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """All tokens, valid or not."""
        return int(self.sums[SUM.tokens])

    @property
    def n(self) -> int:
        """Tokens with two finite logprobs."""
        return int(self.sums[SUM.valid])

    @property
    def invalid(self) -> int:
        """Tokens with a logprob that is not finite."""
        return self.tokens - self.n

    def mean_of(self, column: int) -> float | None:
        """A column of ``TokenSums`` over the valid tokens: a mean, or for a count a share."""
        return float(self.sums[column]) / self.n if self.n else None

    def share_of_all(self, column: int) -> float | None:
        """A count of ``TokenSums`` over all tokens, valid or not."""
        return float(self.sums[column]) / self.tokens if self.tokens else None

    # --- d --------------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> float | None:
        """Mean of d."""
        return self.mean_of(SUM.d)

    @property
    def std(self) -> float | None:
        """Standard deviation of d."""
        return math.sqrt(self.surprisal.yy / self.n) if self.n else None

    @property
    def abs_mean(self) -> float | None:
        """Mean of |d|."""
        return self.mean_of(SUM.abs_d)

    @property
    def abs_std(self) -> float | None:
        """Standard deviation of |d|."""
        return self._std(SUM.abs_d, SUM.d2)

    @property
    def least(self) -> float | None:
        """Smallest d."""
        return float(self.extremes[EXTREME.low]) if self.n else None

    @property
    def greatest(self) -> float | None:
        """Greatest d."""
        return float(self.extremes[EXTREME.high]) if self.n else None

    @property
    def abs_max(self) -> float | None:
        """Greatest |d|."""
        return float(np.abs(self.extremes[: EXTREME.high + 1]).max()) if self.n else None

    def quantile(self, q: float) -> float | None:
        """Quantile ``q`` of d, each order statistic to 0.8 %."""
        if not self.n:
            return None
        low, high = map(float, self.extremes[: EXTREME.high + 1])
        return min(max(quantile(self.bins, MIDDLES, q), low), high)

    def abs_quantile(self, q: float) -> float | None:
        """Quantile ``q`` of |d|, each order statistic to 0.8 %."""
        if (greatest := self.abs_max) is None:
            return None
        folded = self.bins[SIDE:].copy()
        folded[1:] += self.bins[:SIDE][::-1]
        return min(quantile(folded, MIDDLES[SIDE:], q), greatest)

    # --- divergences; d clamped -------------------------------------------------------------------------------------

    @property
    def k1(self) -> float | None:
        """Mean of -d."""
        return _negative(self.mean_of(SUM.h))

    @property
    def k1_se(self) -> float | None:
        """Standard error of ``k1``, assuming independent tokens."""
        spread = self._std(SUM.h, SUM.h2)
        return None if spread is None else spread / math.sqrt(self.n)

    @property
    def k2(self) -> float | None:
        """Half the mean of d squared."""
        return _half(self.mean_of(SUM.h2))

    @property
    def k3(self) -> float | None:
        """Mean of exp(d) - 1 - d."""
        return self.mean_of(SUM.k3)

    @property
    def tv(self) -> float | None:
        """Half the mean of |ratio - 1|."""
        return _half(self.mean_of(SUM.abs_excess))

    # --- ratio; d clamped -------------------------------------------------------------------------------------------

    @property
    def ratio(self) -> float | None:
        """Mean of exp(d)."""
        return 1 + float(self.sums[SUM.h] + self.sums[SUM.k3]) / self.n if self.n else None

    @property
    def ratio_std(self) -> float | None:
        """Standard deviation of exp(d)."""
        if not self.n:
            return None
        mean = float(self.sums[SUM.h] + self.sums[SUM.k3]) / self.n
        return math.sqrt(max(float(self.sums[SUM.excess2]) / self.n - mean * mean, 0.0))

    @property
    def ratio_se(self) -> float | None:
        """Standard error of ``ratio``, assuming independent tokens."""
        spread = self.ratio_std
        return None if spread is None else spread / math.sqrt(self.n)

    @property
    def ratio_z(self) -> float | None:
        """``ratio - 1`` in standard errors; None if all ratios are equal."""
        error = self.ratio_se
        return (float(self.sums[SUM.h] + self.sums[SUM.k3]) / self.n) / error if error else None

    @property
    def ratio_least(self) -> float | None:
        """Smallest exp(d)."""
        return math.exp(clamped(float(self.extremes[EXTREME.low]))) if self.n else None

    @property
    def ratio_greatest(self) -> float | None:
        """Greatest exp(d)."""
        return math.exp(clamped(float(self.extremes[EXTREME.high]))) if self.n else None

    @property
    def chi2(self) -> float | None:
        """Mean of the squared ratio, minus 1."""
        return float(self.sums[SUM.excess2] + 2 * (self.sums[SUM.h] + self.sums[SUM.k3])) / self.n if self.n else None

    @property
    def ess(self) -> float | None:
        """(sum of ratios)^2 / (n * sum of squared ratios), in [0, 1]."""
        return self._kish(SUM.ratio, SUM.ratio2)

    @property
    def ess_capped(self) -> float | None:
        """The same of the ratios capped at TIS_CAP."""
        return self._kish(SUM.capped, SUM.capped2)

    # --- probabilities ------------------------------------------------------------------------------------------------

    @property
    def prob_std(self) -> float | None:
        """Standard deviation of |left - right| probability."""
        return self._std(SUM.prob_gap, SUM.prob_gap2)

    @property
    def prob_max(self) -> float | None:
        """Greatest difference of probabilities."""
        return float(self.extremes[EXTREME.prob_high]) if self.n else None

    @property
    def shift(self) -> float | None:
        """The shift (-1, 0 or 1 tokens) of the right logprobs that brings them nearest to the left ones; 0 on a tie.

        None without two adjacent tokens.
        """
        if not (self.n and self.sums[SUM.previous_n] and self.sums[SUM.next_n]):
            return None
        unshifted = float(self.sums[SUM.abs_d]) / self.n
        previous = float(self.sums[SUM.previous] / self.sums[SUM.previous_n])
        following = float(self.sums[SUM.next] / self.sums[SUM.next_n])
        nearest = min(unshifted, previous, following)
        return 0.0 if nearest == unshifted else 1.0 if nearest == previous else -1.0

    def _std(self, first: int, second: int) -> float | None:
        """Standard deviation, from the columns of the values and of their squares."""
        if not self.n:
            return None
        mean = float(self.sums[first]) / self.n
        return math.sqrt(max(float(self.sums[second]) / self.n - mean * mean, 0.0))

    def _kish(self, first: int, second: int) -> float | None:
        """Kish's effective sample size over n, from the columns of the weights and of their squares."""
        if not self.n:
            return None
        return min(float(self.sums[first]) ** 2 / (self.n * float(self.sums[second])), 1.0)


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
