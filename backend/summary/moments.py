"""Mergeable statistics: mean and spread, covariance of pairs, regression, histogram. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import FIRST, LARGEST, SHIFT, SIDE, Floats, Ints

_edges = ((np.arange(SIDE + 1, dtype=np.uint32) + np.uint32(FIRST)) << np.uint32(SHIFT)).view(np.float32)
_magnitudes = (_edges[:-1].astype(np.float64) + _edges[1:]) / 2
MIDDLES: Floats = np.concatenate([-_magnitudes[::-1], [0.0], _magnitudes])
"""Middle of each bin of a histogram; the zero bin has index ``SIDE``."""


def histogram(values: NDArray[np.generic], counts: Ints | None = None) -> Ints:
    """Counts of finite ``values`` [n] in the bins of ``MIDDLES``, weighted by ``counts`` [n]."""
    size = np.minimum(np.abs(values), LARGEST).astype(np.float32)
    bins = (size.view(np.uint32) >> np.uint32(SHIFT)).astype(np.int64) - (FIRST - 1)
    np.maximum(bins, 0, out=bins)
    signed = SIDE + np.where(np.asarray(values) < 0, -bins, bins)
    return np.bincount(signed, counts, minlength=2 * SIDE + 1).astype(np.int64)


def quantile(counts: Ints, middles: Floats, q: float) -> float:
    """Quantile of the values: linear between the two order statistics about rank ``q (n - 1)``, each to 0.8 %."""
    edges = np.cumsum(counts)
    rank = q * (int(edges[-1]) - 1)
    below, above = (
        float(middles[np.searchsorted(edges, r, side="right")]) for r in (math.floor(rank), math.ceil(rank))
    )
    return below + (above - below) * (rank - math.floor(rank))


def _sum_of(x: Floats, y: Floats | Ints) -> float:
    """Sum of products, without BLAS: its threads cost more than they save here."""
    return float(np.einsum("i,i->", x, y))


ROUNDING = 1e-12
"""Relative spread about a mean below which it may be rounding alone."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Count, mean, standard deviation and maximum of numbers."""

    n: int = 0
    total: float = 0.0
    high: float = -math.inf
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    @classmethod
    def of(cls, values: NDArray[np.generic], counts: Ints | None = None) -> Spread:
        """From the finite entries of ``values`` [n], weighted by ``counts`` [n]."""
        x: Floats = np.asarray(values, np.float64)
        valid = np.isfinite(x) if counts is None else np.isfinite(x) & (counts > 0)
        x = x[valid]
        if not x.size:
            return cls()
        if counts is None:
            n, total = x.size, float(x.sum())
            off = x - total / n
            return cls(n, total, float(x.max()), _sum_of(off, off))
        weights = counts[valid]
        n, total = int(weights.sum()), _sum_of(x, weights)
        off = x - total / n
        return cls(n, total, float(x.max()), _sum_of(off * off, weights))

    def __add__(self, other: Spread) -> Spread:
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        apart = self.total / self.n - other.total / other.n
        squares = self.squares + other.squares + apart * apart * self.n * other.n / n
        return Spread(n, self.total + other.total, max(self.high, other.high), squares)

    @property
    def mean(self) -> float | None:
        """None if empty."""
        return self.total / self.n if self.n else None

    @property
    def max(self) -> float | None:
        """None if empty."""
        return self.high if self.n else None

    @property
    def std(self) -> float | None:
        """Population standard deviation; None if empty."""
        return math.sqrt(self.squares / self.n) if self.n else None

    @property
    def ess(self) -> float | None:
        """Kish's effective sample size of the numbers as weights, over n; None if empty or all 0."""
        if not self.n or not (of_squares := self.squares + self.total**2 / self.n):
            return None
        return self.total**2 / (self.n * of_squares)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Means of pairs of numbers, and the sums of squares and products of their deviations."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    @classmethod
    def of(cls, x: Floats, y: Floats) -> Pairs:
        """From pairs [n] of finite numbers."""
        if not x.size:
            return cls()
        mean_x, mean_y = float(x.mean()), float(y.mean())
        dx, dy = x - mean_x, y - mean_y
        return cls(x.size, mean_x, mean_y, _sum_of(dx, dx), _sum_of(dy, dy), _sum_of(dx, dy))

    @classmethod
    def about(cls, n: float, anchor: tuple[float, float], x: float, y: float, xx: float, yy: float, xy: float) -> Pairs:
        """From the sums of dx, dy, dx dx, dy dy, dx dy, the deviations from ``anchor``."""
        if not n:
            return cls()
        return cls(
            n,
            anchor[0] + x / n,
            anchor[1] + y / n,
            max(xx - x * x / n, 0.0),
            max(yy - y * y / n, 0.0),
            xy - x * y / n,
        )

    def __add__(self, other: Pairs) -> Pairs:
        if not (self.n and other.n):
            return self if self.n else other
        n = self.n + other.n
        dx, dy, weight = other.x - self.x, other.y - self.y, self.n * other.n / n
        return Pairs(
            n,
            self.x + dx * other.n / n,
            self.y + dy * other.n / n,
            self.xx + other.xx + dx * dx * weight,
            self.yy + other.yy + dy * dy * weight,
            self.xy + other.xy + dx * dy * weight,
        )

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation; None if x or y does not vary."""
        if not (_varies(self.n, self.x, self.xx) and _varies(self.n, self.y, self.yy)):
            return None
        return max(-1.0, min(1.0, self.xy / (math.sqrt(self.xx) * math.sqrt(self.yy))))

    @property
    def slope(self) -> float | None:
        """Slope of the least-squares line of y on x; None if x does not vary."""
        return self.xy / self.xx if _varies(self.n, self.x, self.xx) else None


def _varies(n: float, mean: float, squares: float) -> bool:
    """Whether squared deviations exceed rounding error; merging equal numbers leaves some."""
    return squares > n * (ROUNDING * mean) ** 2


@dataclass(frozen=True, slots=True)
class Regression:
    """The least-squares line of y on x over tokens, with errors that may be correlated within a sequence.

    With v = (n, x, xx, y, xy) the sums over the tokens of a sequence, it holds the sums over sequences of v and v v',
    which determine the line and its cluster-robust variance (Liang and Zeger 1986, with the factor m / (m - 1)).
    """

    sequences: int = 0
    sums: Floats = field(default_factory=lambda: np.zeros(5))
    products: Floats = field(default_factory=lambda: np.zeros((5, 5)))

    @classmethod
    def of(cls, sums: Floats) -> Regression:
        """From n, x, xx, y, xy of each sequence [sequences, 5]."""
        sums = sums[sums[:, 0] > 0]
        return cls(len(sums), sums.sum(axis=0), sums.T @ sums)

    def __add__(self, other: Regression) -> Regression:
        return Regression(self.sequences + other.sequences, self.sums + other.sums, self.products + other.products)

    def fit(self) -> tuple[float, float] | None:
        """Intercept and slope; None if x does not vary."""
        n, x, xx, y, xy = map(float, self.sums)
        det = n * xx - x * x
        if n == 0 or det <= 1e-9 * n * xx:
            return None
        slope = (n * xy - x * y) / det
        return (y - slope * x) / n, slope

    def errors(self) -> tuple[float, float] | None:
        """Standard errors of intercept and slope; None with fewer than three sequences or without a fit."""
        if self.sequences < 3 or (fit := self.fit()) is None:
            return None
        intercept, slope = fit
        # A sequence's score is (y - a n - b x, xy - a x - b xx), linear in v.
        score = np.array([[-intercept, -slope, 0, 1, 0], [0, -intercept, -slope, 0, 1]])
        meat = score @ self.products @ score.T
        n, x, xx = map(float, self.sums[:3])
        bread = np.array([[xx, -x], [-x, n]]) / (n * xx - x * x)
        spread = bread @ meat @ bread * (self.sequences / (self.sequences - 1))
        return math.sqrt(max(spread[0, 0], 0.0)), math.sqrt(max(spread[1, 1], 0.0))


@dataclass(frozen=True, slots=True)
class Sizes:
    """A sparse histogram of sizes: the non-empty bins of ``histogram``; integers below 128 are exact."""

    bins: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, values: NDArray[np.generic], counts: Ints | None = None) -> Sizes:
        """From finite ``values`` [n], weighted by ``counts`` [n]."""
        found = histogram(values, counts)
        used = np.flatnonzero(found)
        return cls(used, found[used])

    def __add__(self, other: Sizes) -> Sizes:
        bins, where = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(bins.size, np.int64)
        np.add.at(counts, where, np.concatenate([self.counts, other.counts]))
        return Sizes(bins, counts)

    @property
    def values(self) -> Floats:
        """The sizes [bins], to 0.8 %; integers below 128 exactly."""
        middles = MIDDLES[self.bins]
        floor = np.sign(middles) * np.floor(np.abs(middles))
        return np.where(np.abs(middles) < 128, floor, middles)

    def quantile(self, q: float) -> float | None:
        """Quantile ``q``; None if empty."""
        return quantile(self.counts, self.values, q) if self.counts.size else None
