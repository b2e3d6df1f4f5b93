"""The gap by environment: sums over the sequences of each environment or task that the trainer names. Pure, bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rltop.backend.summary.dimensions import UNKNOWN
from rltop.backend.summary.kernel import FIGURE, MOMENT, RUN, RUN_FIGURES, Floats

NAME = "environment"
"""Name of the dimension, beside those of ``summary.dimensions``, whose strata are fixed."""

MAX_ENVIRONMENTS = 32
OTHER = "(other)"
"""Bound on the environments of a summary: those with the most tokens; all further ones are merged into ``OTHER``."""


@dataclass(frozen=True, slots=True)
class Environments:
    """Moments of the gap over sequences [Figures, Moments], by environment."""

    moments: Mapping[str, Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], rows: Floats) -> Environments:
        """From the environment of each sequence, empty if unknown, and the kernel's sums [sequences, RunSums]."""
        if not names:
            return cls()
        n, sums = rows[:, RUN.n, None], rows[:, RUN_FIGURES]
        n = np.broadcast_to(n, sums.shape)
        moments = np.stack([(n > 0).astype(float), n, sums, n * n, sums * sums, n * sums], axis=2)
        labels, where = np.unique([name or UNKNOWN for name in names], return_inverse=True)
        total = np.zeros((labels.size, len(FIGURE), len(MOMENT)))
        np.add.at(total, where, moments)
        return bounded(dict(zip(labels.tolist(), total, strict=True)))

    def __add__(self, other: Environments) -> Environments:
        if not (self.moments and other.moments):
            return self if self.moments else other
        merged = dict(self.moments)
        for name, moments in other.moments.items():
            merged[name] = merged[name] + moments if name in merged else moments
        return bounded(merged)

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return sum(200 + len(name) + moments.nbytes for name, moments in self.moments.items())


def bounded(moments: dict[str, Floats]) -> Environments:
    """Those with tokens, by falling number of tokens, ``OTHER`` last."""
    tokens = {name: float(own[FIGURE.d, MOMENT.n]) for name, own in moments.items()}
    ordered = sorted(
        (name for name in moments if tokens[name] and name != OTHER), key=lambda name: (-tokens[name], name)
    )
    kept = {name: moments[name] for name in ordered[:MAX_ENVIRONMENTS]}
    rest = [moments[name] for name in (*ordered[MAX_ENVIRONMENTS:], OTHER) if tokens.get(name)]
    return Environments(kept | {OTHER: np.sum(rest, axis=0)} if rest else kept)
