"""Metrics of tokens: validity of the logprobs, size of the gap, distance between the policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rltop.backend.metrics.metric import (
    ANY,
    DENSITY,
    MISMATCH,
    NEMO_K3,
    SAMPLING,
    SCHULMAN,
    SLIME_ABS,
    VERL,
    Metric,
    MetricFamily,
    Thresholds,
    share,
)
from rltop.backend.summary.dimensions import OFFSET, PROBABILITY
from rltop.backend.summary.kernel import FIGURE, MOMENT, POSITIVE, PROB_BINS, SUM, TIS_CAP, ZERO_GAP
from rltop.backend.summary.sequences import SEQ

if TYPE_CHECKING:
    from rltop.backend.summary import Summary


_FIRST_PROB = OFFSET[PROBABILITY.name]
_LOW_PROB = slice(_FIRST_PROB, _FIRST_PROB + 2)
_EVERY_PROB = slice(_FIRST_PROB, _FIRST_PROB + PROB_BINS)


def minus_one(value: float | None) -> float | None:
    """``value - 1``."""
    return None if value is None else value - 1


def entropy_ratio(s: Summary) -> float | None:
    """k3 over entropy."""
    k3, entropy = s.gap.k3, s.entropy.mean
    return None if k3 is None or not entropy else k3 / entropy


def low_probability(s: Summary) -> float | None:
    """Share of tokens in the strata of rollout probability below 1e-3."""
    return share(float(s.strata.moments[_LOW_PROB, FIGURE.d, MOMENT.n].sum()), s.gap.n)


def low_probability_mean(s: Summary) -> float | None:
    """Mean of d over those tokens."""
    n, total = (float(s.strata.moments[_LOW_PROB, FIGURE.d, moment].sum()) for moment in (MOMENT.n, MOMENT.s))
    return share(total, n)


def low_probability_part(s: Summary) -> float | None:
    """Share of those tokens in the sum of k3."""
    low, every = (float(s.strata.moments[rows, FIGURE.k3, MOMENT.s].sum()) for rows in (_LOW_PROB, _EVERY_PROB))
    return share(low, every)


def per_others(s: Summary) -> float | None:
    """Mean |d| over the mean of 1 - p, p the rollout probability."""
    return share(float(s.strata.moments[_EVERY_PROB, FIGURE.abs_d, MOMENT.s].sum()), float(s.strata.others.sum()))


CORRECTNESS = MetricFamily(
    "Are the rollout logprobs valid?",
    "Tests of what the logprobs mean. They hold for any two policies, however far apart.",
    (
        Metric("ratio_mean", "ratio", "token", "mean of exp(d)", SAMPLING, "away from 1", lambda s: s.gap.ratio,
               DENSITY, reading="1 for any two policies if rollout logprobs are those "
                       "of the sampling distribution. Below 1: top_p or top_k removed tokens, and this is the kept "
                       "mass; above: raw logprobs at T != 1, or different tokens."),
        Metric("ratio_mean_se", "ratio", "token", "standard deviation of exp(d) / sqrt(tokens)", MISMATCH, "none",
               lambda s: s.gap.ratio_se),
        Metric("ratio_mean_z", "standard errors", "token", "(ratio_mean - 1) / ratio_mean_se", SAMPLING, "away from 0",
               lambda s: s.gap.ratio_z, reading="Judge it together with ratio_mean: |z| > 4 and |ratio_mean - 1| > "
                       "0.01, with 5000 tokens or more."),
        Metric("shift_probe", "tokens", "token", "shift of the rollout logprobs by -1, 0 or 1 tokens that minimises "
               "mean |d|", "ms-swift issue 8196", "away from 0", lambda s: s.gap.shift, ANY,
               reading="Not 0: one array is off by one."),
        Metric("surprisal_slope", "nats per nat", "token", "least-squares slope of d on the rollout logprob", MISMATCH,
               "away from 0", lambda s: s.gap.surprisal.slope,
               Thresholds(0.05, 0.2, "rltop: 0.31 at T = 0.7 in simulation"), reading="Large: the temperatures "
                       "differ, or raw logprobs are compared with processed ones."),
        Metric("invalid_frac", "share", "token", "tokens with a non-finite trainer or rollout logprob", MISMATCH,
               "high", lambda s: share(s.gap.invalid, s.gap.tokens), ANY),
        Metric("nan_logprob_frac", "share", "token", "tokens with a NaN logprob", MISMATCH, "high",
               lambda s: s.gap.share_of_all(SUM.nan), ANY),
        Metric("inf_logprob_frac", "share", "token", "tokens with an infinite logprob and no NaN", MISMATCH, "high",
               lambda s: s.gap.share_of_all(SUM.infinite), ANY),
        Metric("zero_logprob_frac", "share", "token",
               f"rollout logprob exactly 0.0 and trainer logprob below -{ZERO_GAP}; all other metrics include them",
               "rllm issue 816", "high", lambda s: s.gap.share_of_all(SUM.suspect_zero), ANY,
               reading="Placeholders instead of logprobs, or top_k = 1 (top_p below 0.78) with processed logprobs."),
        Metric("positive_logprob_frac", "share", "token", f"tokens with a logprob above {POSITIVE}", MISMATCH, "high",
               lambda s: s.gap.share_of_all(SUM.positive), ANY, reading="No probability exceeds 1: these are no "
                       "logprobs."),
        Metric("clamped_frac", "share", "token", "valid tokens with |d| > 20, where d is clamped", MISMATCH,
               "high", lambda s: s.gap.mean_of(SUM.clamped), Thresholds(0.0, 1e-2, "rltop")),
    ),
)  # fmt: skip

LOGPROB_GAP = MetricFamily(
    "How large is the gap in logprobs?",
    "d in nats. Not comparable with differences of probabilities.",
    (
        Metric("logp_diff_mean", "nats", "token", "mean of d", MISMATCH, "away from 0", lambda s: s.gap.mean,
               reading="About -k3 for two policies. Above 0 by 3 "
                       "standard errors: rollout logprobs are not those of the sampling distribution."),
        Metric("logp_diff_std", "nats", "token", "standard deviation of d", MISMATCH, "high", lambda s: s.gap.std),
        Metric("logp_diff_min", "nats", "token", "minimum d", MISMATCH, "none", lambda s: s.gap.least),
        Metric("logp_diff_p50", "nats", "token", "median of d", MISMATCH, "away from 0", lambda s: s.gap.quantile(0.5)),
        Metric("logp_diff_p95", "nats", "token", "95th percentile of d", MISMATCH, "high",
               lambda s: s.gap.quantile(0.95)),
        Metric("logp_diff_p99", "nats", "token", "99th percentile of d", MISMATCH, "high",
               lambda s: s.gap.quantile(0.99)),
        Metric("logp_diff_max", "nats", "token", "maximum d", MISMATCH, "none", lambda s: s.gap.greatest),
        Metric("logp_abs_diff_mean", "nats", "token", "mean of |d|", MISMATCH, "high", lambda s: s.gap.abs_mean,
               SLIME_ABS),
        Metric("logp_abs_diff_std", "nats", "token", "standard deviation of |d|", MISMATCH, "high",
               lambda s: s.gap.abs_std),
        Metric("logp_abs_diff_p50", "nats", "token", "median of |d|", MISMATCH, "high",
               lambda s: s.gap.abs_quantile(0.5)),
        Metric("logp_abs_diff_p95", "nats", "token", "95th percentile of |d|", MISMATCH, "high",
               lambda s: s.gap.abs_quantile(0.95)),
        Metric("logp_abs_diff_p99", "nats", "token", "99th percentile of |d|", MISMATCH, "high",
               lambda s: s.gap.abs_quantile(0.99)),
        Metric("logp_abs_diff_max", "nats", "token", "maximum |d|", MISMATCH, "none", lambda s: s.gap.abs_max),
        Metric("logp_abs_diff_seq_mean", "nats", "sequence", "mean over sequences of mean |d|", MISMATCH, "high",
               lambda s: s.per_sequence.mean_of(SEQ.abs_d), SLIME_ABS,
               reading="Short and long sequences have the same weight."),
    ),
)  # fmt: skip

PROB_GAP = MetricFamily(
    "How large is the gap in probabilities?",
    "p = exp(logprob). Not comparable with nats.",
    (
        Metric("probs_diff_mean", "probability", "token", "mean of |p trainer - p rollout|", "verl debug metrics",
               "high", lambda s: s.gap.mean_of(SUM.prob_gap),
               Thresholds(0.005, 0.01, "verl FAQ: below 0.005 normal, above 0.01 a fault")),
        Metric("probs_diff_std", "probability", "token", "standard deviation of the same", "verl debug metrics", "high",
               lambda s: s.gap.prob_std),
        Metric("probs_diff_max", "probability", "token", "maximum of the same", "verl debug metrics", "none",
               lambda s: s.gap.prob_max),
        Metric("probs_pearson", "correlation", "token", "Pearson correlation of p trainer and p rollout",
               "MiniMax-M1, arXiv 2506.13585", "low", lambda s: s.gap.probs.correlation,
               Thresholds(0.995, 0.99, "MiniMax-M1: 0.987 before a float32 head, 0.997 with one; cut-offs: rltop")),
    ),
)  # fmt: skip

DIVERGENCES = MetricFamily(
    "How far apart are the policies?",
    "Sample estimates, unbiased if rollout logprobs are those of the sampling distribution.",
    (
        Metric("kl_k1", "nats", "token", "mean of -d", SCHULMAN, "away from 0", lambda s: s.gap.k1,
               reading="KL(rollout || trainer); within 2 kl_k1_se of 0 its sign means nothing."),
        Metric("kl_k1_se", "nats", "token", "standard deviation of d / sqrt(tokens)", MISMATCH, "none",
               lambda s: s.gap.k1_se),
        Metric("kl_k2", "nats", "token", "mean of d^2 / 2", SCHULMAN, "high", lambda s: s.gap.k2),
        Metric("kl_k3", "nats", "token", "mean of exp(d) - 1 - d", SCHULMAN, "high", lambda s: s.gap.k3, NEMO_K3,
               reading="KL(rollout || trainer), never negative. "
                       "Includes staleness: see lag0_k3, backend_k3."),
        Metric("kl_k3_seq_mean", "nats", "sequence", "mean over sequences of mean exp(d) - 1 - d", SCHULMAN,
               "high", lambda s: s.per_sequence.mean_of(SEQ.k3), NEMO_K3),
        Metric("kl_k3_rev", "nats", "token", "mean of exp(-d) - 1 + d", "NeMo-RL loss functions", "high",
               lambda s: s.gap.mean_of(SUM.k3_reverse),
               reading="Far above kl_k3: tokens that are almost impossible for the trainer."),
        Metric("js", "nats", "token", "mean of (exp(d) ln(2 exp(d) / (1 + exp(d))) + ln(2 / (1 + exp(d)))) / 2",
               "f-divergence, sampled", "high", lambda s: s.gap.mean_of(SUM.js),
               reading="Jensen-Shannon divergence; about kl_k3 / 4 for small gaps."),
        Metric("tv", "probability", "token", "mean of |exp(d) - 1| / 2", "f-divergence, sampled", "high",
               lambda s: s.gap.tv, reading="Total variation distance."),
        Metric("token_mult_prob_error", "ratio", "token", "mean of exp(|d|)", "NeMo-RL docs", "high",
               lambda s: s.gap.mean_of(SUM.mult),
               Thresholds(1.05, 1.10, "NeMo-RL docs: above 1.05 investigate; CI fails above 1.1")),
        Metric("kl_ent_ratio", "ratio", "token", "kl_k3 / entropy", "prime-rl", "high", entropy_ratio),
    ),
)  # fmt: skip

RATIOS = MetricFamily(
    "How are the importance ratios distributed?",
    "Before any clipping or masking, unless named capped.",
    (
        Metric("ratio_std", "ratio", "token", "standard deviation of exp(d)", VERL, "high", lambda s: s.gap.ratio_std,
               Thresholds(0.5, 1.0, "red: verl docs; amber: rltop")),
        Metric("ratio_min", "ratio", "token", "minimum exp(d)", VERL, "none", lambda s: s.gap.ratio_least),
        Metric("ratio_max", "ratio", "token", "maximum exp(d)", VERL, "none", lambda s: s.gap.ratio_greatest),
        Metric("ratio_seq_mean", "ratio", "sequence", "mean over sequences of mean exp(d)", SAMPLING,
               "away from 1", lambda s: s.per_sequence.mean_of(SEQ.ratio), DENSITY),
        Metric("ratio_capped_mean", "ratio", "token", f"mean of min(exp(d), {TIS_CAP:g})", VERL, "none",
               lambda s: s.gap.mean_of(SUM.capped)),
        Metric("chi2_token", "chi^2", "token", "mean of exp(2 d) - 1", VERL, "high", lambda s: s.gap.chi2,
               Thresholds(0.1, 1.0, "red: verl docs, severe shift; amber: rltop")),
        Metric("chi2_seq", "chi^2", "sequence", "mean over sequences of exp(2 sum of d) - 1, the sum clamped to "
               "+-20", VERL, "high", lambda s: minus_one(s.per_sequence.mean_of(SEQ.prod2))),
        Metric("chi2_seq_geo", "chi^2", "sequence", "mean over sequences of exp(2 mean d) - 1", "ms-swift", "high",
               lambda s: minus_one(s.per_sequence.mean_of(SEQ.geo2))),
        Metric("ess", "share", "token", "(sum of ratios)^2 / (tokens * sum of squared ratios)", "Kish (1965)", "low",
               lambda s: s.gap.ess, Thresholds(0.95, 0.3, "amber: rltop; red: verl's alert, there on clipped weights")),
        Metric("ess_capped", "share", "token", f"the same, of min(exp(d), {TIS_CAP:g})", "Kish (1965)", "low",
               lambda s: s.gap.ess_capped, Thresholds(0.5, 0.3, "verl docs: above 0.5 good, below 0.3 alert")),
        Metric("ess_seq", "share", "sequence", "the same, of exp(sum of d) per sequence, the sum clamped to +-20",
               "Kish (1965)", "low", lambda s: s.per_sequence.ess, Thresholds(0.5, 0.3, "verl docs"),
               reading="Falls with length even if every token is healthy."),
    ),
)  # fmt: skip

TAIL = MetricFamily(
    "What is in the tail?",
    "Rare tokens do the damage and are invisible in means.",
    (
        Metric("extreme_frac_tau2", "share", "token", "tokens with |d| > ln 2", "R3, arXiv 2510.11370: F(2)", "high",
               lambda s: s.gap.mean_of(SUM.beyond_2x), Thresholds(1e-2, 0.1, "red: R3; amber: rltop")),
        Metric("extreme_frac_tau5", "share", "token", "tokens with |d| > ln 5", "R3, arXiv 2510.11370: F(5)", "high",
               lambda s: s.gap.mean_of(SUM.beyond_5x)),
        Metric("band_0p1_frac", "share", "token", "tokens with exp(d) outside 0.9 to 1.1", "TRL issue 6789", "high",
               lambda s: s.gap.mean_of(SUM.outside_band), reading="7.5 % was healthy for a 0.5B model in bfloat16."),
        Metric("catastrophic_token_frac", "share", "token", "tokens with exp(d) < 1e-4", "slime and SkyRL: veto",
               "high", lambda s: s.gap.mean_of(SUM.vanished), Thresholds(0.0, 1e-3, "rltop")),
        Metric("exploded_token_frac", "share", "token", "tokens with exp(d) > 100", "SkyRL: outlier mask", "high",
               lambda s: s.gap.mean_of(SUM.exploded), Thresholds(0.0, 1e-3, "rltop")),
        Metric("catastrophic_seq_frac", "share", "sequence", "sequences with a token of exp(d) < 1e-4", "slime: veto",
               "high", lambda s: s.per_sequence.mean_of(SEQ.vanished), Thresholds(0.0, 1e-2, "rltop")),
        Metric("low_prob_frac", "share", "token", "tokens with a rollout probability below 1e-3", MISMATCH, "high",
               low_probability, reading="Rising: out-of-distribution contexts, or exploding entropy."),
        Metric("low_prob_diff_mean", "nats", "token", "mean of d over the same tokens", MISMATCH, "away from 0",
               low_probability_mean, reading="About 0 if the gap is noise. Far below 0 while logp_diff_mean is not: "
                       "rare tokens are likelier in the engine than in the trainer."),
        Metric("low_prob_k3_share", "share", "token", "their share of the sum of k3", MISMATCH, "none",
               low_probability_part, reading="With low_prob_frac: how much of the gap is in the tail."),
        Metric("logp_abs_diff_per_1_minus_p", "nats per probability", "token", "sum of |d| / sum of 1 - p rollout",
               MISMATCH, "high", per_others, reading="Logit noise moves a token's logprob in proportion to 1 - p, "
                       "so this is flat over the strata of probability (rltop attribution)."),
    ),
)  # fmt: skip
