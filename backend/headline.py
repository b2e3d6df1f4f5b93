"""What a picture keeps of an old step: the figures that plots, reports and verdicts follow over a whole run. Pure.

All of a step is some 10 kB, most of it engine by engine: of the 20,000 steps of a picture that would be hundreds of
megabytes, in the hub and in every viewer. The store keeps everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rltop.backend.view import Step

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
