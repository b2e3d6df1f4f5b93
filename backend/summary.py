"""From tokens to a mergeable summary: counts, float64 sums, extremes and a fixed histogram. Pure, vectorised.

Every summary here is an identity (the empty one), an ``of`` that makes one from arrays, and ``+``, which is associative
and commutative (sums to float64 rounding, everything else exactly). Quantiles are read only at display.
``d = trainer - rollout`` throughout, in nats; conventions of ``rltop.backend.metrics``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

CLAMP = 20.0
"""d is held to +-CLAMP wherever it is exponentiated, and in k1, so that ``k3 - k1 = ratio_mean - 1`` holds exactly."""

CHUNK = 1 << 13
"""Tokens reduced at a time: temporaries of 64 kB stay in the cache, and the allocator reuses them (5 times faster than
64 k tokens, whose temporaries are mapped and unmapped each time)."""

# The histogram takes its bins straight from the bits of a float32: sign, exponent and the top 6 bits of the mantissa,
# 64 bins to the octave, so a bin's middle is within 0.8 % of everything in it. |d| below 2**-40 counts as zero, above
# 2**16 as 2**16.
_SHIFT = 17
_SMALLEST, _LARGEST = 2.0**-40, 2.0**16
_FIRST = int(np.float32(_SMALLEST).view(np.uint32)) >> _SHIFT
_SIDE = (int(np.float32(_LARGEST).view(np.uint32)) >> _SHIFT) - _FIRST + 1
_ZERO = _SIDE  # index of the zero bin; negative values below it, positive ones above

_edges = ((np.arange(_SIDE + 1, dtype=np.uint32) + np.uint32(_FIRST)) << np.uint32(_SHIFT)).view(np.float32)
_magnitudes = (_edges[:-1].astype(np.float64) + _edges[1:]) / 2
_MIDDLES = np.concatenate([-_magnitudes[::-1], [0.0], _magnitudes])

Floats = NDArray[np.float64]


def _bins(d: Floats) -> NDArray[np.int64]:
    size = np.minimum(np.abs(d), _LARGEST).astype(np.float32)
    place = (size.view(np.uint32) >> np.uint32(_SHIFT)).astype(np.int64)
    place -= _FIRST - 1
    np.maximum(place, 0, out=place)
    np.negative(place, out=place, where=d < 0)
    place += _ZERO
    return np.bincount(place, minlength=2 * _SIDE + 1)


def _quantile(counts: NDArray[np.int64], middles: Floats, q: float) -> float:
    """Linear between the two order statistics about rank ``q (n - 1)``, as numpy's default."""
    edges = np.cumsum(counts)
    rank = q * (int(edges[-1]) - 1)
    below, above = (
        float(middles[np.searchsorted(edges, r, side="right")]) for r in (math.floor(rank), math.ceil(rank))
    )
    return below + (above - below) * (rank - math.floor(rank))


@dataclass(slots=True)
class Gap:
    """Summary of the differences ``d`` of two logprobs, in nats. Every figure is None when there is no valid token.

    Attributes:
        n: tokens with finite d. invalid: tokens without. clamped: tokens with ``|d| > CLAMP``.
        sums: of d, |d|, clamped d, x = exp(clamped d) - 1, x squared, x - clamped d, ratio = exp(clamped d), ratio
            squared (x and the ratio both, since each loses digits where the other does not).
        low, high: extremes of d.
        bins: histogram of d.
    """

    n: int = 0
    invalid: int = 0
    clamped: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(8))
    low: float = math.inf
    high: float = -math.inf
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * _SIDE + 1, np.int64))

    @classmethod
    def of(cls, d: Floats) -> Gap:
        """The summary of ``d`` [tokens]; non-finite entries are counted as invalid and left out."""
        gap = cls()
        for start in range(0, d.size, CHUNK):
            gap._add(d[start : start + CHUNK])
        return gap

    def _add(self, d: Floats) -> None:
        finite = np.isfinite(d)
        if not finite.all():
            self.invalid += int(d.size - np.count_nonzero(finite))
            d = d[finite]
            if not d.size:
                return
        held = np.clip(d, -CLAMP, CLAMP)
        x, ratio = np.expm1(held), np.exp(held)
        self.n += d.size
        self.clamped += int(np.count_nonzero(held != d))
        self.sums += (
            d.sum(),
            np.abs(d).sum(),
            held.sum(),
            x.sum(),
            x @ x,
            (x - held).sum(),
            ratio.sum(),
            ratio @ ratio,
        )
        self.low, self.high = min(self.low, float(d.min())), max(self.high, float(d.max()))
        self.bins += _bins(d)

    def __add__(self, other: Gap) -> Gap:
        return Gap(
            self.n + other.n,
            self.invalid + other.invalid,
            self.clamped + other.clamped,
            self.sums + other.sums,
            min(self.low, other.low),
            max(self.high, other.high),
            self.bins + other.bins,
        )

    def _mean(self, which: int) -> float | None:
        return float(self.sums[which]) / self.n if self.n else None

    @property
    def mean(self) -> float | None:
        """Mean of d."""
        return self._mean(0)

    @property
    def abs_mean(self) -> float | None:
        """Mean of |d|."""
        return self._mean(1)

    @property
    def k1(self) -> float | None:
        """Mean of -d (clamped)."""
        mean = self._mean(2)
        return None if mean is None else -mean

    @property
    def k3(self) -> float | None:
        """Mean of exp(d) - 1 - d (clamped)."""
        return self._mean(5)

    @property
    def ratio(self) -> float | None:
        """Mean of exp(d) (clamped)."""
        return self._mean(6)

    @property
    def ratio_se(self) -> float | None:
        """Standard error of ``ratio``, tokens taken as independent."""
        if not self.n:
            return None
        variance = self.sums[4] / self.n - (self.sums[3] / self.n) ** 2
        return math.sqrt(max(float(variance), 0.0) / self.n)

    @property
    def ess(self) -> float | None:
        """(sum of ratios)^2 / (n * sum of squared ratios), in [0, 1]."""
        if not self.n:
            return None
        return min(float(self.sums[6]) ** 2 / (self.n * float(self.sums[7])), 1.0)

    @property
    def least(self) -> float | None:
        """Smallest d."""
        return self.low if self.n else None

    @property
    def greatest(self) -> float | None:
        """Greatest d."""
        return self.high if self.n else None

    @property
    def abs_max(self) -> float | None:
        """Greatest |d|."""
        return max(abs(self.low), abs(self.high)) if self.n else None

    def quantile(self, q: float) -> float | None:
        """Quantile ``q`` of d, each order statistic to 0.8 %."""
        if not self.n:
            return None
        return min(max(_quantile(self.bins, _MIDDLES, q), self.low), self.high)

    def abs_quantile(self, q: float) -> float | None:
        """Quantile ``q`` of |d|, likewise."""
        if (greatest := self.abs_max) is None:
            return None
        folded = self.bins[_ZERO:].copy()
        folded[1:] += self.bins[:_ZERO][::-1]
        return min(_quantile(folded, _MIDDLES[_ZERO:], q), greatest)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that merges: how many, their sum, their greatest."""

    n: int = 0
    total: float = 0.0
    high: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[np.generic]) -> Mean:
        """Over the finite entries of ``values`` [n]."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        return cls(values.size, float(values.sum()), float(values.max())) if values.size else cls()

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.n + other.n, self.total + other.total, max(self.high, other.high))

    @property
    def mean(self) -> float | None:
        """None when there was nothing."""
        return self.total / self.n if self.n else None

    @property
    def max(self) -> float | None:
        """None when there was nothing."""
        return self.high if self.n else None


@dataclass(slots=True)
class Summary:
    """What is kept of the tokens of one engine (or of all) in one step.

    Counts, reward, lag, ``gap``, ``backend`` and ``update`` are of update 0; the clip rates are of all updates.

    Attributes:
        gap: trainer - rollout. backend: old - rollout where the old version is the rollout version.
        update: trainer - old.
        entropy, lag: over tokens. reward: over sequences.
        clip_low, clip_high: 1 where clipped; over tokens, for GSPO over sequences.
        cached: total = prompt tokens read from the cache, n = prompt tokens, of joined rollouts.
        tokens, sequences: trained on. joinable: sequences with a trained token. joined: of those, with their rollouts.
        versioned: sequences with known token versions. spanning: of those, with two or more.
        aborted: joined rollouts that the engine ended as aborted (a stop string found in the front end is one).
    """

    gap: Gap = field(default_factory=Gap)
    backend: Gap = field(default_factory=Gap)
    update: Gap = field(default_factory=Gap)
    entropy: Mean = Mean()
    reward: Mean = Mean()
    lag: Mean = Mean()
    clip_low: Mean = Mean()
    clip_high: Mean = Mean()
    cached: Mean = Mean()
    tokens: int = 0
    sequences: int = 0
    joinable: int = 0
    joined: int = 0
    versioned: int = 0
    spanning: int = 0
    aborted: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
