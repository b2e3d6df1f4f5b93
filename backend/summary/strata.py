"""The gap by stratum: moments over sequences, which are the independent units. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.dimensions import ALL, DIMENSIONS, OFFSET, POSITION, PROBABILITY, STRATA, Dimension
from rltop.backend.summary.kernel import FIGURE, MOMENT, PROB_BINS, TAIL, Floats, Ints, compiled
from rltop.backend.summary.token_runs import Pieces, Reduced, reduce, single_piece


@dataclass(frozen=True, slots=True)
class Strata:
    """Moments of every stratum of every dimension, in the order of ``DIMENSIONS``.

    Attributes:
        moments: [STRATA, Figures, Moments]. others: sum of 1 - p over the tokens of each stratum of the rollout
            probability p [PROB_BINS].
    """

    moments: Floats = field(default_factory=lambda: np.zeros((STRATA, len(FIGURE), len(MOMENT))))
    others: Floats = field(default_factory=lambda: np.zeros(PROB_BINS))

    @staticmethod
    def of(reduced: Reduced, pieces: Pieces, labels: Mapping[str, Ints]) -> list[Strata]:
        """Strata of each engine. ``labels``: stratum of each run [runs] by dimension; absent dimensions stay empty."""
        moments = np.zeros((pieces.engines, STRATA, len(FIGURE), len(MOMENT)))
        add = compiled().strata
        parts = np.ascontiguousarray(reduced.sums[:, : 1 + len(FIGURE)])
        add(parts, pieces.group, pieces.position[None] + OFFSET[POSITION.name], pieces.group_engine, moments)
        first = np.flatnonzero(np.diff(pieces.run, prepend=-1))
        run = pieces.run[first]
        index = np.full((1 + len(labels), run.size), OFFSET[ALL.name])
        for row, (name, strata) in enumerate(labels.items(), 1):
            index[row] = strata[run] + OFFSET[name]
        if run.size:
            add(np.add.reduceat(parts, first), pieces.group[first], index, pieces.group_engine, moments)
        groups = pieces.group_engine.size
        tail_index = np.tile(np.arange(PROB_BINS) + OFFSET[PROBABILITY.name], groups)[None]
        tail_group = np.repeat(np.arange(groups), PROB_BINS)
        add(reduced.tail.reshape(-1, len(TAIL)), tail_group, tail_index, pieces.group_engine, moments)
        others = np.zeros((pieces.engines, PROB_BINS))
        np.add.at(others, pieces.group_engine, reduced.tail[:, :, TAIL.others])
        return list(map(Strata, moments, others))

    def __add__(self, other: Strata) -> Strata:
        return Strata(self.moments + other.moments, self.others + other.others)

    def __iter__(self) -> Iterator[tuple[Dimension, str, Floats]]:
        """Dimension, label and moments [Figures, Moments] of every stratum that has tokens."""
        for dimension in DIMENSIONS:
            first = OFFSET[dimension.name]
            for number, label in enumerate(dimension.strata):
                if self.moments[first + number, FIGURE.d, MOMENT.n]:
                    yield dimension, label, self.moments[first + number]

    def packed(self) -> Packed:
        """The sparse form: most strata have no tokens."""
        rows = np.flatnonzero(self.moments.any(axis=(1, 2))).astype(np.uint16)
        return Packed(rows, self.moments[rows], self.others)


@dataclass(frozen=True, slots=True)
class Packed:
    """The non-empty strata: their ``rows`` in ``Strata.moments`` [n], and their ``moments`` [n, Figures, Moments]."""

    rows: NDArray[np.uint16]
    moments: Floats
    others: Floats

    @staticmethod
    def total(parts: Iterable[Packed]) -> Strata:
        """The sum of all parts."""
        total = Strata()
        for part in parts:
            total.moments[part.rows] += part.moments
            total.others[:] += part.others
        return total

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 300 + self.rows.nbytes + self.moments.nbytes + self.others.nbytes


def warm() -> None:
    """Compile the kernel, or load it from the cache, for the array types that the wire delivers."""
    logprobs = np.zeros(1, np.float32)
    pieces = single_piece(1)
    Strata.of(reduce(logprobs, logprobs, pieces), pieces, {})
    zero = np.zeros(1, np.int64)
    compiled().distinct_ids(np.zeros(1, np.int32), zero, zero, zero)
