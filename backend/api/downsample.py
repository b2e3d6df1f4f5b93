"""Bounds the snapshot of a long run: recent steps complete, older ones with headline metrics, the oldest downsampled.

A complete step takes about 10 kB, most of it per engine. The newest ``WHOLE_STEPS`` steps stay complete; older steps
keep the metrics of ``HEADLINE``. Beyond ``ROOM[0]`` steps, blocks of old steps are downsampled: the first and the last
step stay, and the steps with the minimum and the maximum of every metric of ``EXTREMES``, so a spike never disappears.
Nothing is averaged. Downsampling raises the level of a step; when a level is full, its oldest block is downsampled
again. The store keeps every step. Pure.
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
    "backend_k3", "backend_tokens", "noise_abs_diff", "ratio_mean", "kl_k1", "kl_k3", "noise_k3",
    "lag0_abs_diff_mean", "lag0_k3", "lag0_tokens", "clip_frac_low", "clip_frac_high",
    "noise_clip_frac_low", "noise_clip_frac_high", "entropy", "ess", "lag_mean", "lag_max", "prefix_hit_rate",
    "engine_z", "lag_inferred_frac", "weight_cut_frac",
)  # fmt: skip
"""Metrics (``rltop.backend.metrics``) that every step of a snapshot keeps."""

WHOLE_STEPS = 300
"""Number of newest steps of a snapshot that stay complete."""

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
"""Metrics whose extremes survive downsampling."""

ROOM = (4_000, 750, 915, 1_000)
"""Steps per level of a snapshot, besides the block that is being filled. With about 16 steps kept per block, level 1
reaches back 16,000 steps, level 2 250,000, and level 3 further."""

BLOCK = 256
"""Steps that are downsampled together."""

MAX_STEPS = sum(ROOM) + BLOCK * len(ROOM)
"""Most steps in a snapshot, apart from those of one frame."""

CHECK_EVERY = 32
"""Steps between two checks of the number of steps per level."""


def representative(steps: Sequence[Step]) -> set[int]:
    """Numbers of the steps of a block, in order of arrival, that downsampling keeps."""
    kept = {steps[0].step, steps[-1].step}
    for name in EXTREMES:
        known = {step.step: value for step in steps if (value := step.values.get(name)) is not None}
        if known:
            kept |= {min(known, key=known.__getitem__), max(known, key=known.__getitem__)}
    return kept


def downsample(steps: dict[int, Step]) -> None:
    """Downsample the full levels of a snapshot's steps (by number, in order of arrival) in place."""
    levels = Counter(step.level for step in steps.values())
    for level, room in enumerate(ROOM):
        while levels[level] >= room + BLOCK:
            oldest = list(islice(_of_level(steps.values(), level), BLOCK))
            kept, coarser = representative(oldest), min(level + 1, len(ROOM) - 1)
            for step in oldest:
                if step.step in kept:
                    steps[step.step] = msgspec.structs.replace(step, level=coarser)
                else:
                    del steps[step.step]
            levels[level] -= len(oldest)
            levels[coarser] += len(kept)


def _of_level(steps: Iterable[Step], level: int) -> Iterable[Step]:
    return (step for step in steps if step.level == level)


_EMPTY: dict[str, Any] = {}


def headline(step: Step, like: Step | None = None) -> Step:
    """The step with its headline metrics and join statistics only; the step itself if it has nothing else.

    Join statistics rarely change: those equal to the step ``like`` are shared with it to save memory.
    """
    kept = {name: step.values[name] for name in HEADLINE if name in step.values}
    if not (step.engines or step.trainer) and len(step.values) == len(kept):
        return step
    own = {name: getattr(step, name) for name in ("unjoined", "joins", "unused", "copies", "lost", "violations")}
    shared = {} if like is None else {name: value for name in own if own[name] == (value := getattr(like, name))}
    return msgspec.structs.replace(step, values=kept, engines=_EMPTY, trainer=_EMPTY, **shared)
