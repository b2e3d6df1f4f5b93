"""How a long run's picture stays small: the newest steps one by one, of older ones those that stand out. Pure.

Nothing is averaged: steps that stay are real ones. Of a stretch of old steps the first and the last stay, and for every
metric of ``EXTREMES`` those with its least and its greatest value, so a spike stays, however old. They are one level
coarser then; where too many are of a level, its oldest stretch is thinned again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rltop.backend.view import Step

EXTREMES = (
    "reward_mean",
    "logp_abs_diff_mean",
    "logp_abs_diff_max",
    "ratio_mean",
    "kl_k3",
    "clip_frac_low",
    "clip_frac_high",
    "entropy",
    "ess",
    "lag_max",
    "joined_fraction",
    "invalid_frac",
)
"""Metrics whose extremes are kept."""

ROOM = (4_000, 750, 915, 1_000)
"""Steps of each level in a picture, beside a stretch that is being filled: with some 16 kept of a stretch, level 1
reaches back 16,000 steps, level 2 250,000, and level 3 beyond."""

STRETCH = 256
"""Steps that are thinned at a time."""

MOST = sum(ROOM) + STRETCH * len(ROOM)
"""Steps in a picture at most, but for those of one frame."""

LOOK_EVERY = 32
"""Steps between two looks at how many there are of each level."""


def standing_out(steps: Sequence[Step]) -> set[int]:
    """Numbers of those that stay, of steps in order of arrival."""
    kept = {steps[0].step, steps[-1].step}
    for name in EXTREMES:
        known = {step.step: value for step in steps if (value := step.values.get(name)) is not None}
        if known:
            kept |= {min(known, key=known.__getitem__), max(known, key=known.__getitem__)}
    return kept


def thin(steps: dict[int, Step]) -> None:
    """Thin what is too much in a picture's steps, by number and in order of arrival."""
    levels = Counter(step.level for step in steps.values())
    for level, room in enumerate(ROOM):
        while levels[level] >= room + STRETCH:
            oldest = list(islice(_of_level(steps.values(), level), STRETCH))
            kept, coarser = standing_out(oldest), min(level + 1, len(ROOM) - 1)
            for step in oldest:
                if step.step in kept:
                    steps[step.step] = msgspec.structs.replace(step, level=coarser)
                else:
                    del steps[step.step]
            levels[level] -= len(oldest)
            levels[coarser] += len(kept)


def _of_level(steps: Iterable[Step], level: int) -> Iterable[Step]:
    return (step for step in steps if step.level == level)
