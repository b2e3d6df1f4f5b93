"""The shape of a step's gap for viewers: histogram of d, and size by lag, position, probability and prefix cache.

A compact extract of a step's summaries, which adds up over steps, so that more steps can be kept. Pure, bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rltop.backend.api.profiles import Mismatch, Profile
from rltop.backend.summary import Floats, Ints, Summary
from rltop.backend.summary.dimensions import CACHE, LAG, OFFSET, POSITION, PROBABILITY
from rltop.backend.summary.environments import NAME as ENVIRONMENT
from rltop.backend.summary.environments import Environments
from rltop.backend.summary.kernel import FIGURE, MOMENT
from rltop.backend.summary.moments import MIDDLES
from rltop.backend.util.bounded import ByteBoundedCache

EDGES: tuple[float, ...] = tuple(float(f"{10 ** (power / 2):.3g}") for power in range(-10, 3))
"""Edges of the bins of |d|: two per decade, from 1e-5 to 10 nats, each accurate to the 0.8 % of the summary's own
bins. |d| below the first counts as 0."""

DIMENSIONS = (LAG, POSITION, PROBABILITY, CACHE)
"""Dimensions of the profiles."""

TOTAL_BYTES = 16 << 20
MAX_STEPS = 1000
"""Bounds on past steps in bytes and per answer; the oldest are dropped first."""

_ROWS = np.concatenate([OFFSET[d.name] + np.arange(len(d.strata)) for d in DIMENSIONS])
_SIZES = np.minimum(np.searchsorted(EDGES, np.abs(MIDDLES), side="right"), len(EDGES) - 1)
_COARSE = np.where(MIDDLES < 0, -_SIZES, _SIZES) + len(EDGES) - 1
_BINS = 2 * (len(EDGES) - 1) + 1

COLUMNS, MEANS = 8, 4
"""Columns of ``GapShape.sums``, and how many of them are for means. The others are for intervals; NaN if not kept."""


@dataclass(frozen=True, slots=True)
class GapShape:
    """The gap of one engine's tokens. ``bins``: histogram of d, from the lowest.

    ``sums`` [strata, 8]: tokens, d, |d|, k3; and over sequences of n tokens and sum s of |d|: 1, n n, s s, n s.
    """

    bins: Ints = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    sums: Floats = field(default_factory=lambda: np.zeros((_ROWS.size, COLUMNS)))
    tokens: int = 0
    invalid: int = 0
    environments: Environments = field(default_factory=Environments)

    @classmethod
    def of(cls, summary: Summary) -> GapShape:
        """Extract from a summary."""
        bins = np.bincount(_COARSE, summary.gap.bins, _BINS).astype(np.int64)
        sums = _columns(summary.strata.moments[_ROWS])
        return cls(bins, sums, summary.tokens, summary.gap.invalid, summary.environments)

    def __add__(self, other: GapShape) -> GapShape:
        return GapShape(
            self.bins + other.bins,
            self.sums + other.sums,
            self.tokens + other.tokens,
            self.invalid + other.invalid,
            self.environments + other.environments,
        )


def _columns(moments: Floats) -> Floats:
    """``GapShape.sums`` [strata, COLUMNS] from moments [strata, Figures, Moments]."""
    of_abs = moments[:, FIGURE.abs_d]
    means = [
        moments[:, FIGURE.d, MOMENT.n],
        *(moments[:, f, MOMENT.s] for f in (FIGURE.d, FIGURE.abs_d, FIGURE.k3)),
    ]
    spreads = [of_abs[:, MOMENT.sequences], of_abs[:, MOMENT.nn], of_abs[:, MOMENT.ss], of_abs[:, MOMENT.ns]]
    return np.stack([*means, *spreads], axis=1)


class GapShapes:
    """Shapes of the last steps; answers ``api.AskMismatch``."""

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self._steps: ByteBoundedCache[dict[str, GapShape]] = ByteBoundedCache(total_bytes)

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return self._steps.nbytes

    def put(self, step: int, summaries: dict[str, Summary]) -> None:
        """Store a finished step, replacing an earlier one of that number."""
        self.put_shapes(step, {engine: GapShape.of(summary) for engine, summary in summaries.items() if summary.tokens})

    def put_shapes(self, step: int, found: dict[str, GapShape]) -> None:
        """Store the shapes of a finished step."""
        if found:
            self._steps.put(step, found, _nbytes(found))
        else:
            self._steps.drop(step)

    def of_step(self, step: int) -> dict[str, GapShape]:
        """The shapes of a step by engine; empty if none are kept."""
        return self._steps.get(step) or {}

    def is_full(self, first: int | None, last: int | None) -> bool:
        """Whether the steps kept here fill an answer about this range."""
        return len(self._between(first, last)) == MAX_STEPS

    def _between(self, first: int | None, last: int | None) -> list[int]:
        low, high = (float("-inf") if first is None else first), (float("inf") if last is None else last)
        return [step for step in self._steps if low <= step <= high][-MAX_STEPS:]

    def answer(self, first: int | None, last: int | None) -> Mismatch:
        """The gap over the steps ``first`` to ``last`` (None: no bound), at most the last ``MAX_STEPS`` of them.

        Raises:
            ValueError: no such step is kept.
        """
        chosen = self._between(first, last)
        if not chosen:
            raise ValueError("no step with sequences is kept in that range")
        merged: dict[str, GapShape] = {}
        for step in chosen:
            for engine, shape in self.of_step(step).items():
                merged[engine] = merged[engine] + shape if engine in merged else shape
        return _answer(min(chosen), max(chosen), len(chosen), dict(sorted(merged.items())))


def _nbytes(found: dict[str, GapShape]) -> int:
    return sum(500 + shape.bins.nbytes + shape.sums.nbytes + shape.environments.nbytes for shape in found.values())


def _answer(first: int, last: int, steps: int, merged: dict[str, GapShape]) -> Mismatch:
    profiles, start = [], 0
    for dimension in DIMENSIONS:
        end = start + len(dimension.strata)
        own = {engine: shape.sums[start:end] for engine, shape in merged.items()}
        profiles.append(_profile(dimension.name, list(dimension.strata), own))
        start = end
    if named := sum((shape.environments for shape in merged.values()), Environments()).moments:
        profiles.append(_by_environment(list(named), merged))
    return Mismatch(
        first,
        last,
        steps,
        sum(shape.tokens for shape in merged.values()),
        sum(shape.invalid for shape in merged.values()),
        list(EDGES),
        {engine: shape.bins.tolist() for engine, shape in merged.items()},
        profiles,
    )


def _by_environment(names: list[str], merged: Mapping[str, GapShape]) -> Profile:
    empty = Summary().strata.moments[0]
    own = {
        engine: _columns(np.stack([shape.environments.moments.get(name, empty) for name in names]))
        for engine, shape in merged.items()
    }
    return _profile(ENVIRONMENT, names, own)


def _profile(dimension: str, labels: list[str], own: Mapping[str, Floats]) -> Profile:
    means = {engine: [_means(row) for row in rows] for engine, rows in own.items()}
    spreads = {engine: [_spread(row) for row in rows] for engine, rows in own.items()}
    return Profile(dimension, labels, means, spreads)


def _means(row: Floats) -> tuple[int, float, float, float]:
    n = int(row[0])
    return (n, *(float(total) / n for total in row[1:MEANS])) if n else (0, 0.0, 0.0, 0.0)  # type: ignore[return-value]


def _spread(row: Floats) -> tuple[float, float, float, float] | None:
    kept = row[0] and not np.isnan(row[MEANS:]).any()
    return tuple(map(float, row[MEANS:])) if kept else None  # type: ignore[return-value]
