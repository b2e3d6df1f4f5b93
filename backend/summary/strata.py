"""How the gap is told apart: moments by stratum, with whole sequences as the independent units. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary import kernel as k
from rltop.backend.summary.dimensions import ALL, DIMENSIONS, OFFSET, POSITION, PROBABILITY, STRATA, Dimension
from rltop.backend.summary.kernel import FIGURES, MOMENTS, Floats, Ints
from rltop.backend.summary.token_runs import Pieces, Reduced, reduce, whole

D, ABS, K3, X = range(FIGURES)
"""Figures of a stratum: d, |d|, k3 and ratio - 1."""


@dataclass(frozen=True, slots=True)
class Strata:
    """What is kept of every stratum of every dimension, in the order of ``DIMENSIONS``.

    Attributes:
        moments: [STRATA, FIGURES, MOMENTS]. others: by stratum of the rollout probability p, the sum of 1 - p over
            tokens [PROB_BINS].
    """

    moments: Floats = field(default_factory=lambda: np.zeros((STRATA, FIGURES, MOMENTS)))
    others: Floats = field(default_factory=lambda: np.zeros(k.PROB_BINS))

    @staticmethod
    def of(reduced: Reduced, pieces: Pieces, labels: Mapping[str, Ints]) -> list[Strata]:
        """Of each place. ``labels``: by dimension, the stratum of each run [runs]; absent dimensions stay empty."""
        out = np.zeros((pieces.places, STRATA, FIGURES, MOMENTS))
        loop = k.compiled().strata
        parts = np.ascontiguousarray(reduced.sums[:, : 1 + FIGURES])
        loop(parts, pieces.group, pieces.position[None] + OFFSET[POSITION.name], pieces.group_place, out)
        first = np.flatnonzero(np.diff(pieces.run, prepend=-1))
        run = pieces.run[first]
        index = np.full((1 + len(labels), run.size), OFFSET[ALL.name])
        for row, (name, strata) in enumerate(labels.items(), 1):
            index[row] = strata[run] + OFFSET[name]
        if run.size:
            loop(np.add.reduceat(parts, first), pieces.group[first], index, pieces.group_place, out)
        groups = pieces.group_place.size
        tail_index = np.tile(np.arange(k.PROB_BINS) + OFFSET[PROBABILITY.name], groups)[None]
        tail_group = np.repeat(np.arange(groups), k.PROB_BINS)
        loop(reduced.tail.reshape(-1, k.TAIL_SUMS), tail_group, tail_index, pieces.group_place, out)
        others = np.zeros((pieces.places, k.PROB_BINS))
        np.add.at(others, pieces.group_place, reduced.tail[:, :, -1])
        return [Strata(*kept) for kept in zip(out, others, strict=True)]

    def __add__(self, other: Strata) -> Strata:
        return Strata(self.moments + other.moments, self.others + other.others)

    def __iter__(self) -> Iterator[tuple[Dimension, str, Floats]]:
        """Dimension, label and moments [FIGURES, MOMENTS] of every stratum that has tokens."""
        for dimension in DIMENSIONS:
            first = OFFSET[dimension.name]
            for number, label in enumerate(dimension.strata):
                if self.moments[first + number, 0, 1]:
                    yield dimension, label, self.moments[first + number]

    def packed(self) -> Packed:
        """The same in less room: most strata have no tokens."""
        rows = np.flatnonzero(self.moments.any(axis=(1, 2))).astype(np.uint16)
        return Packed(rows, self.moments[rows], self.others)


@dataclass(frozen=True, slots=True)
class Packed:
    """Strata without those that have nothing: ``rows`` of ``Strata.moments`` [n], their ``moments`` [n, ...]."""

    rows: NDArray[np.uint16]
    moments: Floats
    others: Floats

    @staticmethod
    def total(parts: Iterable[Packed]) -> Strata:
        """All of them together."""
        whole = Strata()
        for part in parts:
            whole.moments[part.rows] += part.moments
            whole.others[:] += part.others
        return whole

    @property
    def nbytes(self) -> int:
        """What it holds, roughly."""
        return 300 + self.rows.nbytes + self.moments.nbytes + self.others.nbytes


def warm() -> None:
    """Have the kernel compiled, or its kept code loaded, for what the wire brings."""
    nothing = np.zeros(1, np.float32)
    pieces = whole(1)
    Strata.of(reduce(nothing, nothing, pieces), pieces, {})
    zero = np.zeros(1, np.int64)
    k.compiled().kinds(np.zeros(1, np.int32), zero, zero, zero)
