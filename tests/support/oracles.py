"""Computes the figures of a step token by token in float64. Shares no code with the hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Row:
    """A trained sequence: what the trainer knows of its tokens, and what the engine that wrote it knows."""

    rollout: Sequence[float]
    trainer: Sequence[float]
    versions: Sequence[int | None]
    engine: str | None = None
    old: Sequence[float] | None = None
    old_versions: Sequence[int | None] = ()
    advantages: Sequence[float] | None = None
    entropy: Sequence[float] | None = None
    reward: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    policy_version: int | None = None


@dataclass
class Clip:
    low: float
    high: float
    objective: str = "ppo"
    base: str = "rollout"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _held(d: float) -> float:
    return max(-20.0, min(20.0, d))


def gap(differences: Sequence[float]) -> dict[str, float | None]:
    valid = [d for d in differences if math.isfinite(d)]
    ratios = [math.exp(_held(d)) for d in valid]
    absolute = [abs(d) for d in valid]
    n = len(valid)
    spread = float(np.std(ratios)) if n else 0.0
    return {
        "logp_diff_mean": _mean(valid),
        "logp_diff_min": min(valid, default=None),
        "logp_diff_max": max(valid, default=None),
        **{f"logp_diff_p{q}": float(np.quantile(valid, q / 100)) if n else None for q in (50, 95, 99)},
        "logp_abs_diff_mean": _mean(absolute),
        "logp_abs_diff_max": max(absolute, default=None),
        **{f"logp_abs_diff_p{q}": float(np.quantile(absolute, q / 100)) if n else None for q in (50, 95, 99)},
        "ratio_mean": _mean(ratios),
        "ratio_mean_se": spread / math.sqrt(n) if n else None,
        "kl_k1": _mean([-_held(d) for d in valid]),
        "kl_k3": _mean([math.expm1(_held(d)) - _held(d) for d in valid]),
        "ess": math.fsum(ratios) ** 2 / (n * math.fsum(r * r for r in ratios)) if n else None,
        "invalid_frac": (len(differences) - n) / len(differences) if len(differences) else None,
        "clamped_frac": sum(a > 20 for a in absolute) / n if n else None,
    }


def clip_fractions(rows: Sequence[Row], clip: Clip) -> tuple[float | None, float | None]:
    low, high, total = 0, 0, 0
    for row in rows:
        base = row.old if clip.base == "old" else row.rollout
        if base is None or row.advantages is None:
            continue
        pairs = [(t - b, a) for t, b, a in zip(row.trainer, base, row.advantages, strict=True) if math.isfinite(t - b)]
        if clip.objective == "gspo":
            pairs = [(float(np.mean([d for d, _ in pairs])), float(np.mean([a for _, a in pairs])))] if pairs else []
        for d, advantage in pairs:
            ratio = math.exp(_held(d))
            low += advantage < 0 and ratio < clip.low
            high += advantage > 0 and ratio > clip.high
            total += 1
    return (low / total, high / total) if total else (None, None)


@dataclass
class Step:
    """The metrics of a step from its rows; ``rows`` of update 0, ``updates`` all of them."""

    rows: Sequence[Row]
    clip: Clip | None = None
    updates: Sequence[Row] = field(default_factory=list)

    def values(self) -> dict[str, float | None]:
        rows = self.rows
        token_gaps = [t - r for row in rows for t, r in zip(row.trainer, row.rollout, strict=True)]
        matched, update, lags = [], [], []
        for row in rows:
            if row.old is not None:
                for t, o, r, ov, v in zip(
                    row.trainer, row.old, row.rollout, row.old_versions, row.versions, strict=True
                ):
                    if ov is not None and ov == v:
                        matched.append(o - r)
                    if math.isfinite(o):
                        update.append(t - o)
            if row.policy_version is not None:
                lags += [float(row.policy_version - v) for v in row.versions if v is not None]
        backend, old_update = gap(matched), gap(update)
        versioned = [{v for v in row.versions if v is not None} for row in rows]
        versioned = [versions for versions in versioned if versions]
        prompts = sum(row.prompt_tokens for row in rows if row.engine)
        low, high = clip_fractions(self.updates or rows, self.clip) if self.clip else (None, None)
        return {
            **gap(token_gaps),
            "reward_mean": _mean([row.reward for row in rows if row.reward is not None]),
            "clip_frac_low": low,
            "clip_frac_high": high,
            "entropy": _mean([e for row in rows for e in (row.entropy or ()) if math.isfinite(e)]),
            "lag_mean": _mean(lags),
            "lag_max": max(lags, default=None),
            "spanning_frac": _mean([float(len(versions) > 1) for versions in versioned]),
            "tokens": float(len(token_gaps)),
            "sequences": float(len(rows)),
            "joined_fraction": _mean([float(row.engine is not None) for row in rows if len(row.trainer)]),
            "prefix_hit_rate": sum(row.cached_tokens for row in rows if row.engine) / prompts if prompts else None,
            "backend_abs_diff_mean": backend["logp_abs_diff_mean"],
            "backend_k3": backend["kl_k3"],
            "backend_ratio_mean": backend["ratio_mean"],
            "backend_tokens": float(len([d for d in matched if math.isfinite(d)])),
            "update_abs_diff_mean": old_update["logp_abs_diff_mean"],
        }
