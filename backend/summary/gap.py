"""The summary of the differences of two logprobs over tokens. Pure.

``Gap()`` is the empty one, ``token_runs.gap_of`` makes one from arrays, and ``+`` is associative and commutative:
counts and histograms exactly, sums to float64 rounding. Quantiles are read only at display.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from rltop.backend.summary import kernel as k
from rltop.backend.summary.kernel import CLAMP, EXTREMES, SIDE, SUMS, Floats, Ints
from rltop.backend.summary.moments import MIDDLES, Pairs, quantile

_NO_BINS: Ints = np.zeros(2 * SIDE + 1, np.int64)
_NO_BINS.flags.writeable = False

NOTHING = np.array([math.inf, -math.inf, 0.0])
"""``extremes`` of no tokens."""


def held(d: float) -> float:
    """D within +-CLAMP."""
    return max(-CLAMP, min(CLAMP, d))


@dataclass(frozen=True, slots=True)
class Gap:
    """Summary of ``d = left - right`` in nats, ``ratio = exp(d)``. Figures are None when there is no valid token.

    Attributes:
        sums: as the kernel names them [SUMS]. extremes: of d, and the greatest difference of probabilities.
        bins: histogram of d. surprisal: pairs of (right logprob, d). probs: of (right, left) probabilities.
    """

    sums: Floats = field(default_factory=lambda: np.zeros(SUMS))
    extremes: Floats = field(default_factory=NOTHING.copy)
    bins: Ints = field(default_factory=lambda: _NO_BINS)
    surprisal: Pairs = field(default_factory=Pairs)
    probs: Pairs = field(default_factory=Pairs)

    @classmethod
    def reduced(cls, sums: Floats, extremes: Floats, bins: Ints, anchor: Floats) -> Gap:
        """From what the kernel made of one place."""
        n, r, p = float(sums[k.N]), float(anchor[0]), float(anchor[1])
        surprisal = (sums[k.R_], sums[k.D], sums[k.RR_], sums[k.DD], sums[k.RD_])
        probs = (sums[k.P_], sums[k.Q_], sums[k.PP_], sums[k.QQ_], sums[k.PQ_])
        return cls(
            sums,
            extremes,
            bins,
            Pairs.about(n, (r, 0.0), tuple(map(float, surprisal))),  # type: ignore[arg-type]
            Pairs.about(n, (p, p), tuple(map(float, probs))),  # type: ignore[arg-type]
        )

    def __add__(self, other: Gap) -> Gap:
        if not (self.tokens and other.tokens):
            return self if self.tokens else other
        low, high = np.minimum(self.extremes, other.extremes), np.maximum(self.extremes, other.extremes)
        return Gap(
            self.sums + other.sums,
            np.concatenate([low[:1], high[1:]]),
            self.bins + other.bins,
            self.surprisal + other.surprisal,
            self.probs + other.probs,
        )

    # --- counts -------------------------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """All tokens, valid or not."""
        return int(self.sums[k.TOKENS])

    @property
    def n(self) -> int:
        """Tokens with two finite logprobs."""
        return int(self.sums[k.N])

    @property
    def invalid(self) -> int:
        """Tokens without."""
        return self.tokens - self.n

    def share(self, which: int) -> float | None:
        """Mean of a sum over the valid tokens: for a count, the share of them."""
        return float(self.sums[which]) / self.n if self.n else None

    def share_of_all(self, which: int) -> float | None:
        """A count over all tokens, valid or not."""
        return float(self.sums[which]) / self.tokens if self.tokens else None

    # --- d --------------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> float | None:
        """Mean of d."""
        return self.share(k.D)

    @property
    def std(self) -> float | None:
        """Standard deviation of d."""
        return math.sqrt(self.surprisal.yy / self.n) if self.n else None

    @property
    def abs_mean(self) -> float | None:
        """Mean of |d|."""
        return self.share(k.ABS)

    @property
    def abs_std(self) -> float | None:
        """Standard deviation of |d|."""
        return self._spread(k.ABS, k.DD)

    @property
    def least(self) -> float | None:
        """Smallest d."""
        return float(self.extremes[k.LOW]) if self.n else None

    @property
    def greatest(self) -> float | None:
        """Greatest d."""
        return float(self.extremes[k.HIGH]) if self.n else None

    @property
    def abs_max(self) -> float | None:
        """Greatest |d|."""
        return float(np.abs(self.extremes[: k.HIGH + 1]).max()) if self.n else None

    def quantile(self, q: float) -> float | None:
        """Quantile ``q`` of d, each order statistic to 0.8 %."""
        if not self.n:
            return None
        low, high = map(float, self.extremes[: k.HIGH + 1])
        return min(max(quantile(self.bins, MIDDLES, q), low), high)

    def abs_quantile(self, q: float) -> float | None:
        """Quantile ``q`` of |d|, likewise."""
        if (greatest := self.abs_max) is None:
            return None
        folded = self.bins[SIDE:].copy()
        folded[1:] += self.bins[:SIDE][::-1]
        return min(quantile(folded, MIDDLES[SIDE:], q), greatest)

    # --- divergences; d held ----------------------------------------------------------------------------------------

    @property
    def k1(self) -> float | None:
        """Mean of -d."""
        return _negative(self.share(k.H))

    @property
    def k1_se(self) -> float | None:
        """Standard error of ``k1``, tokens taken as independent."""
        spread = self._spread(k.H, k.HH)
        return None if spread is None else spread / math.sqrt(self.n)

    @property
    def k2(self) -> float | None:
        """Half the mean of d squared."""
        return _half(self.share(k.HH))

    @property
    def k3(self) -> float | None:
        """Mean of exp(d) - 1 - d."""
        return self.share(k.K3)

    @property
    def tv(self) -> float | None:
        """Half the mean of |ratio - 1|."""
        return _half(self.share(k.TV))

    # --- ratio; d held ----------------------------------------------------------------------------------------------

    @property
    def ratio(self) -> float | None:
        """Mean of exp(d)."""
        return 1 + float(self.sums[k.H] + self.sums[k.K3]) / self.n if self.n else None

    @property
    def ratio_std(self) -> float | None:
        """Standard deviation of exp(d)."""
        if not self.n:
            return None
        mean = float(self.sums[k.H] + self.sums[k.K3]) / self.n
        return math.sqrt(max(float(self.sums[k.X2]) / self.n - mean * mean, 0.0))

    @property
    def ratio_se(self) -> float | None:
        """Standard error of ``ratio``, tokens taken as independent."""
        spread = self.ratio_std
        return None if spread is None else spread / math.sqrt(self.n)

    @property
    def ratio_z(self) -> float | None:
        """``ratio`` less 1, in standard errors; None where all ratios are the same."""
        error = self.ratio_se
        return (float(self.sums[k.H] + self.sums[k.K3]) / self.n) / error if error else None

    @property
    def ratio_least(self) -> float | None:
        """Smallest exp(d)."""
        return math.exp(held(float(self.extremes[k.LOW]))) if self.n else None

    @property
    def ratio_greatest(self) -> float | None:
        """Greatest exp(d)."""
        return math.exp(held(float(self.extremes[k.HIGH]))) if self.n else None

    @property
    def chi2(self) -> float | None:
        """Mean of the ratio squared, less 1."""
        return float(self.sums[k.X2] + 2 * (self.sums[k.H] + self.sums[k.K3])) / self.n if self.n else None

    @property
    def ess(self) -> float | None:
        """(sum of ratios)^2 / (n * sum of squared ratios), in [0, 1]."""
        return self._kish(k.RHO, k.RHO2)

    @property
    def ess_capped(self) -> float | None:
        """Likewise, of the ratios capped at TIS_CAP."""
        return self._kish(k.CAPPED, k.CAPPED2)

    # --- probabilities ------------------------------------------------------------------------------------------------

    @property
    def prob_std(self) -> float | None:
        """Standard deviation of |left - right| probability."""
        return self._spread(k.PROB, k.PROB2)

    @property
    def prob_max(self) -> float | None:
        """Greatest difference of probabilities."""
        return float(self.extremes[k.PROB_HIGH]) if self.n else None

    @property
    def shift(self) -> float | None:
        """The shift of the right logprobs by -1, 0 or 1 tokens at which they are nearest to the left ones; 0 if even.

        None where no two tokens follow each other.
        """
        if not (self.n and self.sums[k.BACK_N] and self.sums[k.FORTH_N]):
            return None
        back, forth = (float(self.sums[s] / self.sums[n]) for s, n in ((k.BACK, k.BACK_N), (k.FORTH, k.FORTH_N)))
        nearest = min(float(self.sums[k.ABS]) / self.n, back, forth)
        return 0.0 if nearest == float(self.sums[k.ABS]) / self.n else 1.0 if nearest == back else -1.0

    def _spread(self, first: int, second: int) -> float | None:
        if not self.n:
            return None
        mean = float(self.sums[first]) / self.n
        return math.sqrt(max(float(self.sums[second]) / self.n - mean * mean, 0.0))

    def _kish(self, first: int, second: int) -> float | None:
        if not self.n:
            return None
        return min(float(self.sums[first]) ** 2 / (self.n * float(self.sums[second])), 1.0)


def _half(value: float | None) -> float | None:
    return None if value is None else value / 2


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


assert len(NOTHING) == EXTREMES
