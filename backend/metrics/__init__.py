"""The metrics as data: name, unit, formula, source, thresholds, and the names that other frameworks use.

Conventions. ``d = trainer - rollout`` logprob of the sampled token, in nats; ``ratio = exp(d)``; means are over all
trained tokens of the step's first update unless stated otherwise. d is clamped to +-20 in ratio, k1, k2, k3 and
wherever it is exponentiated, so that ``kl_k3 - kl_k1 = ratio_mean - 1`` holds exactly; ``clamped_frac`` counts the
tokens that this affects. Tokens with a non-finite logprob are counted by kind and excluded from all other metrics;
every other token is included. A metric that can't be computed is None, never NaN. Quantiles are accurate to 1 %.

``python -m rltop.backend.metrics > docs/metrics.md`` writes the reference page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rltop.backend.metrics import location_metrics, policy_metrics, token_metrics
from rltop.backend.metrics.metric import Metric, MetricFamily, Thresholds, Values
from rltop.backend.metrics.trainer_metrics import TRAILING, Scalars

if TYPE_CHECKING:
    from rltop.backend.summary import Summary

__all__ = [
    "BY_NAME",
    "FAMILIES",
    "METRICS",
    "PER_ENGINE",
    "TRAILING",
    "Metric",
    "MetricFamily",
    "Scalars",
    "Thresholds",
    "Values",
    "of_engines",
    "values",
]  # fmt: skip

FAMILIES: tuple[MetricFamily, ...] = (
    policy_metrics.HEALTH,
    token_metrics.CORRECTNESS,
    token_metrics.LOGPROB_GAP,
    token_metrics.PROB_GAP,
    token_metrics.DIVERGENCES,
    token_metrics.RATIOS,
    token_metrics.TAIL,
    location_metrics.WHERE,
    policy_metrics.SPLIT,
    policy_metrics.LAG,
    policy_metrics.SEQUENCES,
    policy_metrics.LOSS,
    policy_metrics.MASKS,
    policy_metrics.ENTROPY,
)

METRICS: tuple[Metric, ...] = tuple(metric for family in FAMILIES for metric in family.metrics)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}

PER_ENGINE: tuple[str, ...] = (
    "reward_mean", "logp_diff_mean", "logp_diff_min", "logp_diff_p50", "logp_diff_p95", "logp_diff_p99",
    "logp_diff_max", "logp_abs_diff_mean", "logp_abs_diff_p50", "logp_abs_diff_p95", "logp_abs_diff_p99",
    "logp_abs_diff_max", "ratio_mean", "ratio_mean_se", "kl_k1", "kl_k3", "kl_k3_rev", "probs_diff_mean",
    "clip_frac_low", "clip_frac_high", "ess", "entropy", "entropy_sample_rollout", "extreme_frac_tau2", "lag_mean",
    "lag_max", "spanning_frac", "tokens", "sequences", "prefix_hit_rate", "aborted", "truncated_frac", "invalid_frac",
    "weight_cut_frac", "zero_logprob_frac", "clamped_frac", "backend_abs_diff_mean", "backend_k3",
    "backend_ratio_mean", "backend_tokens", "update_abs_diff_mean", "lag0_abs_diff_mean", "lag0_k3", "lag0_tokens",
    "engine_z", "repetition_frac",
)  # fmt: skip
"""Metrics stored per engine for every step; of the others only the fleet's value is stored."""


def values(
    summary: Summary,
    engines: Mapping[str, Values] | None = None,
    scalars: Scalars | None = None,
    before: Sequence[Scalars] = (),
) -> dict[str, float | None]:
    """Every metric of a step.

    Args:
        summary: of the whole step.
        engines: ``of_engines`` of its parts.
        scalars: of the trainer, for this step.
        before: scalars of earlier steps, oldest first.
    """
    found = {m.name: m.of(summary) if m.of else None for m in METRICS}
    found |= {m.name: m.across(engines) for m in METRICS if m.across and engines}
    return found | {m.name: m.trailing(scalars, before) for m in METRICS if m.trailing and scalars}


def of_engines(parts: Mapping[str, Summary]) -> dict[str, dict[str, float | None]]:
    """The metrics ``PER_ENGINE`` for each engine's part of a step."""
    own = {
        engine: {name: of(part) for name in PER_ENGINE if (of := BY_NAME[name].of)} for engine, part in parts.items()
    }
    z = location_metrics.engine_z(own)
    return {engine: values | {"engine_z": z[engine]} for engine, values in own.items()}
