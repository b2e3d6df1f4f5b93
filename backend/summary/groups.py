"""Prompt groups: the sequences of one prompt taken together. Pure.

Of more than ``MAX_GROUPS`` groups those with the smallest keys are kept. Keys are hashes, so that is an unbiased
sample, whole in itself, and merging keeps it so in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary import kernel as k
from rltop.backend.summary.kernel import FIGURES, MOMENTS, Floats

MAX_GROUPS = 1024

Keys = NDArray[np.uint64]

_NO_KEYS: Keys = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Groups:
    """What is kept of prompt groups.

    Attributes:
        keys: rising [groups]. moments: of the gap over the group's sequences [groups, FIGURES, MOMENTS].
        rewards: how many, and their smallest and greatest [groups, 3].
    """

    keys: Keys = field(default_factory=lambda: _NO_KEYS)
    moments: Floats = field(default_factory=lambda: np.zeros((0, FIGURES, MOMENTS)))
    rewards: Floats = field(default_factory=lambda: np.zeros((0, 3)))

    @classmethod
    def of(cls, keys: Keys, rows: Floats, rewards: Floats) -> Groups:
        """Of sequences with their group's key, the kernel's sums [sequences, PIECE_SUMS], and rewards, NaN unknown."""
        n, sums = rows[:, k.PIECE_N, None], rows[:, k.PIECE_D : k.PIECE_D + FIGURES]
        n = np.broadcast_to(n, sums.shape)
        moments = np.stack([(n > 0).astype(float), n, sums, n * n, sums * sums, n * sums], axis=2)
        known = np.isfinite(rewards)
        told = np.stack(
            [known.astype(float), np.where(known, rewards, math.inf), np.where(known, rewards, -math.inf)], axis=1
        )
        return cls(keys, moments, told)._whole()

    def __add__(self, other: Groups) -> Groups:
        if not (self.keys.size and other.keys.size):
            return self if self.keys.size else other
        return Groups(
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.moments, other.moments]),
            np.concatenate([self.rewards, other.rewards]),
        )._whole()

    def _whole(self) -> Groups:
        """Each key once, and no more of them than are kept."""
        keys, where = np.unique(self.keys, return_inverse=True)
        moments = np.zeros((keys.size, FIGURES, MOMENTS))
        np.add.at(moments, where, self.moments)
        rewards = np.tile([0.0, math.inf, -math.inf], (keys.size, 1))
        np.add.at(rewards[:, 0], where, self.rewards[:, 0])
        np.minimum.at(rewards[:, 1], where, self.rewards[:, 1])
        np.maximum.at(rewards[:, 2], where, self.rewards[:, 2])
        kept = slice(MAX_GROUPS)
        return Groups(keys[kept], moments[kept], rewards[kept])

    @property
    def nbytes(self) -> int:
        """What it holds, roughly."""
        return 400 + self.keys.nbytes + self.moments.nbytes + self.rewards.nbytes

    @property
    def zero_std(self) -> float | None:
        """Share of the groups of several rewards whose rewards are all the same; None of no such group."""
        several = self.rewards[:, 0] > 1
        if not several.any():
            return None
        return float(np.mean(self.rewards[several, 1] == self.rewards[several, 2]))
