"""The metrics as data: name, unit, formula, source, thresholds, and what other frameworks call the same thing.

Conventions. ``d = trainer - rollout`` logprob of the sampled token, in nats; ``ratio = exp(d)``; means are over all
trained tokens of update 0 unless said otherwise. d is held to +-20 in ratio, k1 and k3, so that
``kl_k3 - kl_k1 = ratio_mean - 1`` holds exactly; tokens that this touches are ``clamped_frac``. Tokens with a
non-finite logprob are ``invalid_frac`` and left out of the rest. What can't be computed is None, never NaN.

``python -m rltop.backend.metrics > docs/metrics.md`` writes the table down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rltop.backend.summary import Summary


@dataclass(frozen=True)
class Thresholds:
    """Where a metric turns amber and red, and who says so. Starting points; models differ."""

    amber: float
    red: float
    source: str


@dataclass(frozen=True)
class Metric:
    """One figure of a step.

    Attributes:
        name: as in ``view.Step.values`` and in reports.
        unit: nats, share, versions, tokens, sequences, requests, or empty for a plain number.
        level: what the mean runs over: token, sequence, request.
        formula: in words.
        source: where the formula is from.
        bad: which way is bad: ``high``, ``low``, ``away from 0``, ``away from 1``, or ``none``.
        of: the figure of a summary.
        thresholds: None where no source gives any.
        aliases: ``framework: key`` of the same quantity elsewhere.
        per_engine: makes sense for one engine alone.
    """

    name: str
    unit: str
    level: str
    formula: str
    source: str
    bad: str
    of: Callable[[Summary], float | None]
    thresholds: Thresholds | None = None
    aliases: tuple[str, ...] = ()
    per_engine: bool = True


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


_K = "J. Schulman, Approximating KL Divergence (2020)"
_ISSUE = "rltop"
_NEMO = Thresholds(1e-3, 1e-2, "NeMo-RL docs: <= 1e-3 acceptable; tinker-cookbook: stable below 0.01")
_SLIME = Thresholds(0.03, 0.1, "slime CI fails above 0.1; healthy runs report 0.010 to 0.018")
_DENSITY = Thresholds(
    0.01, 0.5, "a mean of 1 is a theorem when the record is the sampling density; verl: red outside 0.5 to 2"
)

METRICS: tuple[Metric, ...] = (
    Metric("reward_mean", "", "sequence", "mean of the sequences' rewards", _ISSUE, "low", lambda s: s.reward.mean,
           aliases=("verl: critic/rewards/mean", "TRL: reward")),
    Metric("logp_diff_mean", "nats", "token", "mean of d", _ISSUE, "away from 0", lambda s: s.gap.mean,
           aliases=("AReaL: behave_approx_kl (old - rollout)",)),
    Metric("logp_diff_min", "nats", "token", "smallest d", _ISSUE, "none", lambda s: s.gap.least),
    Metric("logp_diff_p50", "nats", "token", "median of d", _ISSUE, "away from 0", lambda s: s.gap.quantile(0.5)),
    Metric("logp_diff_p95", "nats", "token", "95th percentile of d", _ISSUE, "high", lambda s: s.gap.quantile(0.95)),
    Metric("logp_diff_p99", "nats", "token", "99th percentile of d", _ISSUE, "high", lambda s: s.gap.quantile(0.99)),
    Metric("logp_diff_max", "nats", "token", "greatest d", _ISSUE, "none", lambda s: s.gap.greatest),
    Metric("logp_abs_diff_mean", "nats", "token", "mean of |d|", _ISSUE, "high", lambda s: s.gap.abs_mean, _SLIME,
           ("TRL: sampling/sampling_logp_difference/mean", "PipelineRL: rl/mean_abs_log_ratio_new_old (sequence mean)",
            "slime, miles: train_rollout_logprob_abs_diff", "SkyRL: policy/rollout_train_logprobs_abs_diff_mean")),
    Metric("logp_abs_diff_p50", "nats", "token", "median of |d|", _ISSUE, "high", lambda s: s.gap.abs_quantile(0.5)),
    Metric("logp_abs_diff_p95", "nats", "token", "95th percentile of |d|", _ISSUE, "high",
           lambda s: s.gap.abs_quantile(0.95)),
    Metric("logp_abs_diff_p99", "nats", "token", "99th percentile of |d|", _ISSUE, "high",
           lambda s: s.gap.abs_quantile(0.99)),
    Metric("logp_abs_diff_max", "nats", "token", "greatest |d|", _ISSUE, "none", lambda s: s.gap.abs_max,
           aliases=("TRL: sampling/sampling_logp_difference/max",)),
    Metric("ratio_mean", "", "token", "mean of exp(d)", "importance sampling: E[exp(d)] = 1", "away from 1",
           lambda s: s.gap.ratio, _DENSITY,
           ("verl: rollout_corr/rollout_is_mean (of applied weights)", "NeMo-RL: sampling_importance_ratio",
            "PipelineRL: rl/ratio_new_old (sequence mean)",
            "TRL: sampling/importance_sampling_ratio/mean (after clipping)")),
    Metric("ratio_mean_se", "", "token", "standard deviation of exp(d) / sqrt(tokens)", _ISSUE, "none",
           lambda s: s.gap.ratio_se),
    Metric("kl_k1", "nats", "token", "mean of -d", _K, "away from 0", lambda s: s.gap.k1,
           aliases=("verl: rollout_corr/kl", "tinker-cookbook: optim/kl_sample_train_v1")),
    Metric("kl_k3", "nats", "token", "mean of exp(d) - 1 - d", _K, "high", lambda s: s.gap.k3, _NEMO,
           ("verl: rollout_corr/k3_kl", "NeMo-RL: gen_kl_error", "prime-rl: mismatch_kl/all/mean",
            "PipelineRL: rl/kl_new_old (sequence mean)")),
    Metric("clip_frac_low", "share", "token; sequence for gspo",
           "advantage < 0 and ratio < clip_low, of all valid tokens of all updates; the ratio's denominator is the "
           "rollout's or the old logprob, as the trainer says. An explicit mask overrides and counts tokens: its low "
           "side is where the advantage is < 0 (ratio < 1 where there is none)",
           "PPO, arXiv 1707.06347; GSPO, arXiv 2507.18071", "high", lambda s: s.clip_low.mean,
           Thresholds(0.2, 0.5, "miles docs; for gspo about 100 times more is normal"),
           ("TRL: clip_ratio/low_mean", "verl: actor/pg_clipfrac (both sides)")),
    Metric("clip_frac_high", "share", "token; sequence for gspo",
           "advantage > 0 and ratio > clip_high, likewise", "PPO, arXiv 1707.06347; GSPO, arXiv 2507.18071", "high",
           lambda s: s.clip_high.mean, Thresholds(0.2, 0.5, "miles docs; for gspo about 100 times more is normal"),
           ("TRL: clip_ratio/high_mean", "verl: actor/pg_clipfrac (both sides)")),
    Metric("ess", "share", "token", "(sum of ratios)^2 / (tokens * sum of squared ratios)", "Kish (1965)", "low",
           lambda s: s.gap.ess, Thresholds(0.95, 0.3, "amber: rltop; red: verl's alert, there on clipped weights"),
           ("PipelineRL: rl/ess", "verl: rollout_corr/rollout_is_eff_sample_size (clipped weights)")),
    Metric("entropy", "nats", "token", "mean of the trainer's entropy, as passed", _ISSUE, "low",
           lambda s: s.entropy.mean, aliases=("verl: actor/entropy", "TRL: entropy", "prime-rl: entropy/all/mean",
                                              "PipelineRL: rl/entropy")),
    Metric("lag_mean", "versions", "token", "trainer's policy version - version that sampled the token", _ISSUE, "high",
           lambda s: s.lag.mean, aliases=("prime-rl: off_policy/mean (trajectories)",
                                          "NeMo-RL: avg_trajectory_age", "PipelineRL: stats/lag (samples)")),
    Metric("lag_max", "versions", "token", "greatest lag of a token", _ISSUE, "high", lambda s: s.lag.max,
           Thresholds(4, 8, "default limits: TRL 3, SkyRL 4, prime-rl 8"), ("prime-rl: off_policy/max",)),
    Metric("spanning_frac", "share", "sequence", "sequences sampled under two or more policy versions", _ISSUE, "none",
           lambda s: _share(s.spanning, s.versioned), aliases=("verl: partial/partial_ratio",)),
    Metric("tokens", "tokens", "token", "trained tokens of update 0", _ISSUE, "none", lambda s: float(s.tokens)),
    Metric("sequences", "sequences", "sequence", "sequences of update 0", _ISSUE, "none",
           lambda s: float(s.sequences)),
    Metric("joined_fraction", "share", "sequence", "sequences found among the engines' rollouts, of those with a "
           "trained token", _ISSUE, "low", lambda s: _share(s.joined, s.joinable), per_engine=False),
    Metric("prefix_hit_rate", "share", "request", "cached / prompt tokens of the joined rollouts; a request whose "
           "lookup was off counts with 0 cached", _ISSUE, "none", lambda s: s.cached.mean),
    Metric("aborted", "requests", "request", "joined rollouts that the engine ended as aborted (also by a stop string "
           "found in the front end)", _ISSUE, "high", lambda s: float(s.aborted)),
    Metric("invalid_frac", "share", "token", "tokens with a non-finite trainer or rollout logprob", _ISSUE, "high",
           lambda s: _share(s.gap.invalid, s.gap.invalid + s.gap.n), Thresholds(0.0, 0.0, "any is a fault")),
    Metric("clamped_frac", "share", "token", "valid tokens with |d| > 20", _ISSUE, "high",
           lambda s: _share(s.gap.clamped, s.gap.n), Thresholds(0.0, 1e-2, "rltop")),
    Metric("backend_abs_diff_mean", "nats", "token", "mean of |old - rollout| where the old logprob was computed under "
           "the version that sampled the token", _ISSUE, "high", lambda s: s.backend.abs_mean, _SLIME),
    Metric("backend_k3", "nats", "token", "mean of exp(d) - 1 - d with d = old - rollout, same tokens", _K, "high",
           lambda s: s.backend.k3, _NEMO),
    Metric("backend_ratio_mean", "", "token", "mean of exp(old - rollout), same tokens", _ISSUE, "away from 1",
           lambda s: s.backend.ratio, _DENSITY),
    Metric("backend_tokens", "tokens", "token", "version-matched tokens", _ISSUE, "none",
           lambda s: float(s.backend.n)),
    Metric("update_abs_diff_mean", "nats", "token", "mean of |trainer - old|", _ISSUE, "none",
           lambda s: s.update.abs_mean),
)  # fmt: skip

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def values(summary: Summary) -> dict[str, float | None]:
    """Every metric of a step."""
    return {metric.name: metric.of(summary) for metric in METRICS}


def engine_values(summary: Summary) -> dict[str, float | None]:
    """The metrics that make sense for one engine, of that engine's part of a step."""
    return {metric.name: metric.of(summary) for metric in METRICS if metric.per_engine}


def document() -> str:
    """``docs/metrics.md``: conventions, every metric, thresholds, and names elsewhere."""
    conventions = (__doc__ or "").split("\n\n")[1].removeprefix("Conventions. ").replace("``", "`")
    measured = [
        (f"`{m.name}`", m.unit or "-", m.level, m.formula, m.source, "yes" if m.per_engine else "no") for m in METRICS
    ]
    limits = [
        (f"`{m.name}`", m.bad, f"{m.thresholds.amber:g}", f"{m.thresholds.red:g}", m.thresholds.source)
        for m in METRICS
        if m.thresholds
    ]
    names = [(f"`{m.name}`", "; ".join(m.aliases)) for m in METRICS if m.aliases]
    return "\n".join(
        [
            "# Metrics",
            "",
            "Made from the table in [`backend/metrics.py`](../backend/metrics.py), which is what the hub computes by:",
            "`python -m rltop.backend.metrics > docs/metrics.md`.",
            "",
            conventions,
            "",
            *_table(("metric", "unit", "level", "formula", "source", "per engine"), measured),
            "",
            "## Thresholds",
            "",
            "Starting points, since models differ. Where *bad* is *away from* a value, they are distances from it.",
            "",
            *_table(("metric", "bad", "amber", "red", "who says so"), limits),
            "",
            "## Names elsewhere",
            "",
            *_table(("metric", "framework: key"), names),
            "",
        ]
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    rule = tuple("---" for _ in heads)
    escaped = (tuple(cell.replace("|", "\\|") for cell in row) for row in rows)
    return ["| " + " | ".join(row) + " |" for row in (heads, rule, *escaped)]


if __name__ == "__main__":
    sys.stdout.write(document())
