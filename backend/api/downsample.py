"""Bounds the snapshot of a long run: recent steps whole, older ones as headline metrics, the oldest thinned. Pure.

A whole step takes some 10 kB, most of it per engine. The newest ``WHOLE_STEPS`` steps stay whole; older steps keep only
the metrics of ``HEADLINE``. Beyond ``ROOM[0]`` steps, old stretches are thinned: the first and the last step stay, and
for every metric of ``EXTREMES`` the steps with its minimum and its maximum, so a spike never disappears. Nothing is
averaged. Each thinning raises a step's level; when a level is full, its oldest stretch is thinned again. The store
keeps every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from rltop.backend.api.step import Step

HEADLINE: tuple[str, ...] = (
    "tokens", "joined_fraction", "reward_mean", "logp_diff_mean", "logp_abs_diff_mean", "logp_abs_diff_p95",
    "logp_abs_diff_max", "invalid_frac", "backend_abs_diff_mean",
    "noise_abs_diff", "ratio_mean", "kl_k1", "kl_k3", "noise_k3", "lag0_k3", "clip_frac_low", "clip_frac_high",
    "noise_clip_frac_low", "noise_clip_frac_high", "entropy", "ess", "lag_mean", "lag_max", "prefix_hit_rate",
    "engine_z",
)  # fmt: skip
"""Metrics (``rltop.backend.metrics``) that steps keep for as long as they are in a picture."""

WHOLE_STEPS = 300
"""The newest steps of a picture that are whole."""

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


_NOTHING: dict[str, Any] = {}


def headline(step: Step, like: Step | None = None) -> Step:
    """The step with no more than its headline, and how its rows were joined; itself if that is all it has.

    How rows are joined hardly changes: what is as in the step ``like`` is shared with it, and takes no room.
    """
    kept = {name: step.values[name] for name in HEADLINE if name in step.values}
    if not (step.engines or step.trainer) and len(step.values) == len(kept):
        return step
    own = {name: getattr(step, name) for name in ("unjoined", "joins", "unused", "copies", "lost")}
    shared = {} if like is None else {name: then for name in own if own[name] == (then := getattr(like, name))}
    return msgspec.structs.replace(step, values=kept, engines=_NOTHING, trainer=_NOTHING, **shared)
