"""The summary of sequences: figures that need whole sequences. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import CLAMP, LOG_VANISHED, RUN, TIS_CAP, Floats, Ints
from rltop.backend.summary.moments import Pairs, Sizes, Spread
from rltop.backend.summary.token_runs import Pieces, Reduced

GEO_BAND = (0.99, 1.01)
PROD_BAND = (0.5, 2.0)
MAX_MULT = 2.0
OPSM_GAP = 0.5
CORRECT = 1.0
"""Bounds of the rejections that are counted: SkyRL's geometric and product masks, NeMo-RL's error mask, the example of
TRL's off-policy mask; and the least reward of a correct sequence."""

SEQ_CAP = 3.0
"""TRL's default bound of a sequence's ratio."""


class SequenceSums(NamedTuple):
    """Sums over sequences with a valid token. Means and sums of d are clamped where they are exponentiated.

    Instances are indices of the columns, or their values per sequence.
    """

    n: Any
    log_ppl_left: Any
    log_ppl_right: Any
    log_ppl_abs: Any
    ppl_left: Any
    ppl_right: Any
    ppl_ratio: Any
    geo: Any  # geometric mean of the ratios
    geo2: Any
    prod: Any  # product of the ratios
    prod2: Any
    prod_capped: Any
    prod_kept: Any  # 0 if above the bound
    outside_geo: Any
    outside_prod: Any
    over_cap: Any
    over_mult: Any
    vanished: Any
    abs_d: Any
    k3: Any
    ratio: Any
    mult: Any


class SequenceExtremes(NamedTuple):
    """Extremes over sequences with a valid token."""

    log_ppl_low: Any
    log_ppl_high: Any
    geo_low: Any
    geo_high: Any
    prod_low: Any
    prod_high: Any
    mult_high: Any


SEQ = SequenceSums(*range(len(SequenceSums._fields)))
SEQ_EXTREME = SequenceExtremes(*range(len(SequenceExtremes._fields)))

_LOWS = [SEQ_EXTREME.log_ppl_low, SEQ_EXTREME.geo_low, SEQ_EXTREME.prod_low]
_NO_EXTREMES = np.full(len(SEQ_EXTREME), -math.inf)
_NO_EXTREMES[_LOWS] = math.inf


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """Summary of ``d = left - right`` over sequences.

    Attributes:
        sums: [SequenceSums]. extremes: [SequenceExtremes]. scaling: pairs of (ln length, ln |mean d|).
        lengths, sizes: trained tokens of every sequence, with or without a valid one.
        with_advantage: sequences with known advantages. opsm: those with a negative mean advantage and a mean right -
            left above ``OPSM_GAP``.
        over: sequences with a known reward that ``MAX_MULT`` rejects. over_correct: those with a reward of ``CORRECT``
            or more.
    """

    sums: Floats = field(default_factory=lambda: np.zeros(len(SEQ)))
    extremes: Floats = field(default_factory=_NO_EXTREMES.copy)
    scaling: Pairs = field(default_factory=Pairs)
    lengths: Spread = field(default_factory=Spread)
    sizes: Sizes = field(default_factory=Sizes)
    with_advantage: int = 0
    opsm: int = 0
    over: int = 0
    over_correct: int = 0

    @classmethod
    def of(
        cls, rows: Floats, lengths: Ints, advantages: Floats | None = None, rewards: Floats | None = None
    ) -> SequenceSummary:
        """From the sequences' kernel sums [n, RunSums], trained tokens [n], mean advantages and rewards [n].

        Advantages and rewards are NaN if not known.
        """
        of_lengths = (Spread.of(lengths), Sizes.of(lengths))
        n = rows[:, RUN.n]
        valid = n > 0
        unknown = np.full(n.size, np.nan)
        advantages, rewards = (unknown if given is None else given for given in (advantages, rewards))
        rows, n, advantages, rewards = rows[valid], n[valid], advantages[valid], rewards[valid]
        if not n.size:
            return cls(lengths=of_lengths[0], sizes=of_lengths[1])
        total = rows[:, RUN.d]
        mean, left, right = total / n, rows[:, RUN.left] / n, rows[:, RUN.right] / n
        geo, prod, mult = _exp(mean), _exp(total), rows[:, RUN.mult] / n
        columns = SequenceSums(
            n=np.ones_like(n),
            log_ppl_left=-left,
            log_ppl_right=-right,
            log_ppl_abs=np.abs(mean),
            ppl_left=_exp(-left),
            ppl_right=_exp(-right),
            ppl_ratio=_exp(-mean),
            geo=geo,
            geo2=geo**2,
            prod=prod,
            prod2=prod**2,
            prod_capped=np.minimum(prod, SEQ_CAP),
            prod_kept=np.where(prod <= SEQ_CAP, prod, 0.0),
            outside_geo=_outside(geo, GEO_BAND),
            outside_prod=_outside(prod, PROD_BAND),
            over_cap=prod > TIS_CAP,
            over_mult=mult > MAX_MULT,
            vanished=rows[:, RUN.low] < LOG_VANISHED,
            abs_d=rows[:, RUN.abs_d] / n,
            k3=rows[:, RUN.k3] / n,
            ratio=1 + rows[:, RUN.excess] / n,
            mult=mult,
        )
        extremes = SequenceExtremes(
            log_ppl_low=-mean.max(),
            log_ppl_high=-mean.min(),
            geo_low=geo.min(),
            geo_high=geo.max(),
            prod_low=prod.min(),
            prod_high=prod.max(),
            mult_high=mult.max(),
        )
        nonzero = mean != 0
        return cls(
            np.array([float(np.sum(column)) for column in columns]),
            np.array(extremes),
            Pairs.of(np.log(n[nonzero]), np.log(np.abs(mean[nonzero]))),
            *of_lengths,
            int(np.isfinite(advantages).sum()),
            int(((advantages < 0) & (-mean > OPSM_GAP)).sum()),
            int(((mult > MAX_MULT) & np.isfinite(rewards)).sum()),
            int(((mult > MAX_MULT) & (rewards >= CORRECT)).sum()),
        )

    def __add__(self, other: SequenceSummary) -> SequenceSummary:
        extremes = np.maximum(self.extremes, other.extremes)
        extremes[_LOWS] = np.minimum(self.extremes[_LOWS], other.extremes[_LOWS])
        return SequenceSummary(
            self.sums + other.sums,
            extremes,
            self.scaling + other.scaling,
            self.lengths + other.lengths,
            self.sizes + other.sizes,
            self.with_advantage + other.with_advantage,
            self.opsm + other.opsm,
            self.over + other.over,
            self.over_correct + other.over_correct,
        )

    @property
    def n(self) -> int:
        """Sequences with a valid token."""
        return int(self.sums[SEQ.n])

    def mean_of(self, column: int) -> float | None:
        """A column of ``SequenceSums`` over the sequences; None without any."""
        return float(self.sums[column]) / self.n if self.n else None

    def extreme(self, column: int) -> float | None:
        """A column of ``SequenceExtremes``; None without sequences."""
        return float(self.extremes[column]) if self.n else None

    @property
    def log_ppl_diff(self) -> float | None:
        """Mean over sequences of mean right - mean left."""
        return float(self.sums[SEQ.log_ppl_left] - self.sums[SEQ.log_ppl_right]) / self.n if self.n else None

    @property
    def ess(self) -> float | None:
        """ESS of sequence weights, each the product of its tokens' ratios."""
        if not (self.n and self.sums[SEQ.prod2]):
            return None
        return min(float(self.sums[SEQ.prod]) ** 2 / (self.n * float(self.sums[SEQ.prod2])), 1.0)

    @property
    def scaling_slope(self) -> float | None:
        """Slope of ln |mean d| on ln length; None with fewer than 10 sequences or a single length."""
        return self.scaling.slope if self.scaling.n >= 10 else None


def _exp(x: Floats) -> Floats:
    return np.exp(np.clip(x, -CLAMP, CLAMP))


def _outside(x: Floats, band: tuple[float, float]) -> NDArray[np.bool_]:
    return (x < band[0]) | (x > band[1])


def by_sequence(reduced: Reduced, pieces: Pieces, rows: int) -> tuple[Floats, Ints]:
    """The kernel's sums [rows, RunSums] and the trained tokens [rows] of each row; pieces are in order of rows."""
    sums = np.zeros((rows, len(RUN)))
    sums[:, RUN.low], sums[:, RUN.high] = math.inf, -math.inf
    lengths = np.zeros(rows, np.int64)
    if pieces.start.size:
        row = pieces.group_row[pieces.group]
        first = np.flatnonzero(np.diff(row, prepend=-1))
        used = row[first]
        adds = slice(0, RUN.low)
        sums[used, adds] = np.add.reduceat(reduced.sums[:, adds], first)
        sums[used, RUN.low] = np.minimum.reduceat(reduced.sums[:, RUN.low], first)
        sums[used, RUN.high] = np.maximum.reduceat(reduced.sums[:, RUN.high], first)
        lengths[used] = np.add.reduceat(pieces.end - pieces.start, first)
    return sums, lengths
