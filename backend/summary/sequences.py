"""The summary of sequences: what only makes sense over whole ones. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary import kernel as k
from rltop.backend.summary.kernel import CLAMP, TIS_CAP, Floats, Ints
from rltop.backend.summary.moments import Pairs, Sizes, Spread
from rltop.backend.summary.token_runs import Pieces, Reduced

GEO_BAND = (0.99, 1.01)
PROD_BAND = (0.5, 2.0)
MAX_MULT = 2.0
OPSM_GAP = 0.5
CORRECT = 1.0
"""Bounds of the rejections that are counted: SkyRL's geometric and product masks, NeMo-RL's error mask, the example of
TRL's off-policy mask; and the reward from which on a sequence counts as correct."""

# What is summed over sequences with a valid token. d is the sequence's, its mean or sum held where exponentiated.
(
    N, LOG_PPL_LEFT, LOG_PPL_RIGHT, LOG_PPL_ABS, PPL_LEFT, PPL_RIGHT, PPL_RATIO, GEO, GEO2, PROD, PROD2, OUT_GEO,
    OUT_PROD, OVER_CAP, OVER_MULT, VANISHED, ABS, K3, RATIO, MULT,
) = range(20)  # fmt: skip
SUMS = 20
LOG_PPL_LOW, LOG_PPL_HIGH, GEO_LOW, GEO_HIGH, PROD_LOW, PROD_HIGH, MULT_HIGH = range(7)
_LOWS = (LOG_PPL_LOW, GEO_LOW, PROD_LOW)
NOTHING = np.full(7, -math.inf)
NOTHING[list(_LOWS)] = math.inf


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """Summary of ``d = left - right`` over sequences.

    Attributes:
        sums, extremes: as named above. scaling: pairs of the logarithms of length and |mean d|.
        lengths, sizes: trained tokens of every sequence, with a valid one or not.
        gained: sequences with known advantages. opsm: of those, with a negative mean and a mean right - left above
            ``OPSM_GAP``.
        over: sequences that ``MAX_MULT`` rejects and whose reward is known. over_correct: of those, with a reward of
            ``CORRECT`` or more.
    """

    sums: Floats = field(default_factory=lambda: np.zeros(SUMS))
    extremes: Floats = field(default_factory=NOTHING.copy)
    scaling: Pairs = field(default_factory=Pairs)
    lengths: Spread = field(default_factory=Spread)
    sizes: Sizes = field(default_factory=Sizes)
    gained: int = 0
    opsm: int = 0
    over: int = 0
    over_correct: int = 0

    @classmethod
    def of(
        cls, rows: Floats, lengths: Ints, gains: Floats | None = None, rewards: Floats | None = None
    ) -> SequenceSummary:
        """Of sequences: the kernel's sums [n, PIECE_SUMS], trained tokens [n], mean advantages and rewards [n].

        Advantages and rewards are NaN where not known.
        """
        lengths_of = (Spread.of(lengths), Sizes.of(lengths))
        n = rows[:, k.PIECE_N]
        valid = n > 0
        unknown = np.full(n.size, np.nan)
        gains, rewards = (unknown if given is None else given for given in (gains, rewards))
        rows, n, gains, rewards = rows[valid], n[valid], gains[valid], rewards[valid]
        if not n.size:
            return cls(lengths=lengths_of[0], sizes=lengths_of[1])
        total = rows[:, k.PIECE_D]
        mean, left, right = total / n, rows[:, k.PIECE_LEFT] / n, rows[:, k.PIECE_RIGHT] / n
        geo, prod, mult = _exp(mean), _exp(total), rows[:, k.PIECE_MULT] / n
        columns = (
            np.ones_like(n), -left, -right, np.abs(mean), _exp(-left), _exp(-right), _exp(-mean), geo, geo**2, prod,
            prod**2, _out(geo, GEO_BAND), _out(prod, PROD_BAND), prod > TIS_CAP, mult > MAX_MULT,
            rows[:, k.PIECE_LOW] < k.LOG_VANISHED, rows[:, k.PIECE_ABS] / n, rows[:, k.PIECE_K3] / n,
            1 + rows[:, k.PIECE_X] / n, mult,
        )  # fmt: skip
        extremes = np.array([
            -mean.max(), -mean.min(), geo.min(), geo.max(), prod.min(), prod.max(), mult.max()
        ])  # fmt: skip
        apart = mean != 0
        return cls(
            np.array([float(np.sum(column)) for column in columns]),
            extremes,
            Pairs.of(np.log(n[apart]), np.log(np.abs(mean[apart]))),
            *lengths_of,
            int(np.isfinite(gains).sum()),
            int(((gains < 0) & (-mean > OPSM_GAP)).sum()),
            int(((mult > MAX_MULT) & np.isfinite(rewards)).sum()),
            int(((mult > MAX_MULT) & (rewards >= CORRECT)).sum()),
        )

    def __add__(self, other: SequenceSummary) -> SequenceSummary:
        extremes = np.maximum(self.extremes, other.extremes)
        lows = list(_LOWS)
        extremes[lows] = np.minimum(self.extremes[lows], other.extremes[lows])
        return SequenceSummary(
            self.sums + other.sums,
            extremes,
            self.scaling + other.scaling,
            self.lengths + other.lengths,
            self.sizes + other.sizes,
            self.gained + other.gained,
            self.opsm + other.opsm,
            self.over + other.over,
            self.over_correct + other.over_correct,
        )

    @property
    def n(self) -> int:
        """Sequences with a valid token."""
        return int(self.sums[N])

    def share(self, which: int) -> float | None:
        """Mean of a sum over the sequences; None of nothing."""
        return float(self.sums[which]) / self.n if self.n else None

    def extreme(self, which: int) -> float | None:
        """An extreme; None of nothing."""
        return float(self.extremes[which]) if self.n else None

    @property
    def log_ppl_diff(self) -> float | None:
        """Mean over sequences of mean right - mean left."""
        return float(self.sums[LOG_PPL_LEFT] - self.sums[LOG_PPL_RIGHT]) / self.n if self.n else None

    @property
    def ess(self) -> float | None:
        """Of the products of a sequence's ratios."""
        if not (self.n and self.sums[PROD2]):
            return None
        return min(float(self.sums[PROD]) ** 2 / (self.n * float(self.sums[PROD2])), 1.0)

    @property
    def scaling_slope(self) -> float | None:
        """Of ln |mean d| on ln length; None with fewer than 10 sequences or one length."""
        return self.scaling.slope if self.scaling.n >= 10 else None


def _exp(x: Floats) -> Floats:
    return np.exp(np.clip(x, -CLAMP, CLAMP))


def _out(x: Floats, band: tuple[float, float]) -> NDArray[np.bool_]:
    return (x < band[0]) | (x > band[1])


def by_sequence(reduced: Reduced, pieces: Pieces, rows: int) -> tuple[Floats, Ints]:
    """The kernel's sums of each row [rows, PIECE_SUMS] and its trained tokens [rows]; pieces in order of rows."""
    sums = np.zeros((rows, k.PIECE_SUMS))
    sums[:, k.PIECE_LOW], sums[:, k.PIECE_HIGH] = math.inf, -math.inf
    lengths = np.zeros(rows, np.int64)
    if pieces.start.size:
        row = pieces.group_row[pieces.group]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        there = row[first]
        adds = slice(0, k.PIECE_LOW)
        sums[there, adds] = np.add.reduceat(reduced.sums[:, adds], first)
        sums[there, k.PIECE_LOW] = np.minimum.reduceat(reduced.sums[:, k.PIECE_LOW], first)
        sums[there, k.PIECE_HIGH] = np.maximum.reduceat(reduced.sums[:, k.PIECE_HIGH], first)
        lengths[there] = np.add.reduceat(pieces.end - pieces.start, first)
    return sums, lengths
