"""Prompt groups: the sequences sampled from one prompt. Pure.

At most ``MAX_GROUPS`` groups are kept, those with the smallest keys. Keys are hashes, so this is an unbiased sample of
complete groups, and does not depend on the order in which summaries are merged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import FIGURE, MOMENT, RUN, RUN_FIGURES, Floats

MAX_GROUPS = 1024

Keys = NDArray[np.uint64]

_NO_KEYS: Keys = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Groups:
    """Sums by prompt group.

    Attributes:
        keys: rising [groups]. moments: of the gap over the group's sequences [groups, Figures, Moments].
        rewards: number of known rewards, their minimum and maximum [groups, 3].
    """

    keys: Keys = field(default_factory=lambda: _NO_KEYS)
    moments: Floats = field(default_factory=lambda: np.zeros((0, len(FIGURE), len(MOMENT))))
    rewards: Floats = field(default_factory=lambda: np.zeros((0, 3)))

    @classmethod
    def of(cls, keys: Keys, rows: Floats, rewards: Floats) -> Groups:
        """From the group keys of sequences, the kernel's sums [sequences, RunSums], and rewards, NaN if unknown."""
        n, sums = rows[:, RUN.n, None], rows[:, RUN_FIGURES]
        n = np.broadcast_to(n, sums.shape)
        moments = np.stack([(n > 0).astype(float), n, sums, n * n, sums * sums, n * sums], axis=2)
        known = np.isfinite(rewards)
        low, high = (np.where(known, rewards, none) for none in (math.inf, -math.inf))
        return cls(keys, moments, np.stack([known.astype(float), low, high], axis=1))._merged()

    def __add__(self, other: Groups) -> Groups:
        if not (self.keys.size and other.keys.size):
            return self if self.keys.size else other
        return Groups(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.moments, other.moments]),
            np.concatenate([self.rewards, other.rewards]),
        )._merged()

    def _merged(self) -> Groups:
        """Merge the entries of each key, and keep at most ``MAX_GROUPS`` keys."""
        keys, where = np.unique(self.keys, return_inverse=True)
        moments = np.zeros((keys.size, len(FIGURE), len(MOMENT)))
        np.add.at(moments, where, self.moments)
        rewards = np.tile([0.0, math.inf, -math.inf], (keys.size, 1))
        np.add.at(rewards[:, 0], where, self.rewards[:, 0])
        np.minimum.at(rewards[:, 1], where, self.rewards[:, 1])
        np.maximum.at(rewards[:, 2], where, self.rewards[:, 2])
        kept = slice(MAX_GROUPS)
        return Groups(keys[kept], moments[kept], rewards[kept])

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 400 + self.keys.nbytes + self.moments.nbytes + self.rewards.nbytes

    @property
    def zero_std(self) -> float | None:
        """Share of groups with equal rewards among those with two or more; None without such a group."""
        several = self.rewards[:, 0] > 1
        if not several.any():
            return None
        return float(np.mean(self.rewards[several, 1] == self.rewards[several, 2]))
