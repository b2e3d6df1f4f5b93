"""Metrics of sequences, requests, clipping, entropy, lag, and the three-way split of the gap."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rltop.backend.metrics.metric import (
    DENSITY,
    MISMATCH,
    NEMO_K3,
    PPO,
    SCHULMAN,
    SLIME_ABS,
    VERL,
    Metric,
    MetricFamily,
    Thresholds,
    share,
)
from rltop.backend.metrics.trainer_metrics import GRAD_NORM_Z
from rltop.backend.summary.engine_summary import ADVANTAGE
from rltop.backend.summary.kernel import SUM, TIS_CAP
from rltop.backend.summary.lagline import END, MIN_SPAN, lag_line
from rltop.backend.summary.sequences import CORRECT, SEQ, SEQ_CAP, SEQ_EXTREME

if TYPE_CHECKING:
    from rltop.backend.summary import Gap, Summary

_MATCHED = "version-matched tokens: old logprobs with their version, or tokens at lag 0"
_WEIGHTS = "weights of the loss"
_BOUND = f"clip bounds and advantages, and {_MATCHED}"
_SPAN = f"lags that span {MIN_SPAN} versions or more, with one token in {END} at either end"
_MILES = Thresholds(0.2, 0.5, "miles docs; for gspo about 100 times more is normal")


def negative(value: float | None) -> float | None:
    """``-value``."""
    return None if value is None else -value


def nll_minus_entropy(s: Summary) -> float | None:
    """Mean of -trainer logprob, minus the mean entropy."""
    nll = negative(s.gap.mean_of(SUM.left))
    return None if nll is None or s.entropy.mean is None else nll - s.entropy.mean


def correction(s: Summary) -> Gap:
    """The gap that importance weights correct: old - rollout over all tokens, else trainer - rollout."""
    split = s.backend + s.stale
    return split if split.n else s.gap


def lag_estimate(s: Summary, *, intercept: bool, error: bool = False) -> float | None:
    """Intercept or slope of the regression of k3 on lag, or its standard error; None if the lags do not support it."""
    line = lag_line(s.lag_regression, s.strata)
    estimate = None if line is None else line.at_lag0 if intercept else line.per_lag
    return None if estimate is None else estimate[error]


def noise_k3(s: Summary) -> float | None:
    """k3 of Gaussian noise with standard deviation ``Summary.noise``."""
    return None if s.noise is None else s.noise**2 / 2


def noise_abs_diff(s: Summary) -> float | None:
    """Mean |d| of such noise."""
    return None if s.noise is None else s.noise * math.sqrt(2 / math.pi)


def noise_ess(s: Summary) -> float | None:
    """ESS of such noise."""
    return None if s.noise is None else math.exp(-min(s.noise**2, 700.0))


SEQUENCES = MetricFamily(
    "How far apart are whole sequences?",
    "Computed per sequence, then averaged over sequences.",
    (
        Metric("trainer_log_ppl", "nats", "sequence", "mean over sequences of -mean trainer logprob", VERL, "none",
               lambda s: s.per_sequence.mean_of(SEQ.log_ppl_left)),
        Metric("rollout_log_ppl", "nats", "sequence", "mean over sequences of -mean rollout logprob", VERL, "none",
               lambda s: s.per_sequence.mean_of(SEQ.log_ppl_right)),
        Metric("trainer_ppl", "perplexity", "sequence", "mean over sequences of exp(-mean trainer logprob)", VERL,
               "none", lambda s: s.per_sequence.mean_of(SEQ.ppl_left)),
        Metric("rollout_ppl", "perplexity", "sequence", "mean over sequences of exp(-mean rollout logprob)", VERL,
               "none", lambda s: s.per_sequence.mean_of(SEQ.ppl_right)),
        Metric("log_ppl_diff", "nats", "sequence", "mean over sequences of -mean d", VERL, "away from 0",
               lambda s: s.per_sequence.log_ppl_diff),
        Metric("log_ppl_abs_diff", "nats", "sequence", "mean over sequences of |mean d|", VERL, "high",
               lambda s: s.per_sequence.mean_of(SEQ.log_ppl_abs)),
        Metric("log_ppl_diff_max", "nats", "sequence", "maximum over sequences of -mean d", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.log_ppl_high)),
        Metric("log_ppl_diff_min", "nats", "sequence", "minimum over sequences of -mean d", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.log_ppl_low)),
        Metric("ppl_ratio", "ratio", "sequence", "mean over sequences of exp(-mean d)", VERL, "away from 1",
               lambda s: s.per_sequence.mean_of(SEQ.ppl_ratio)),
        Metric("seq_mult_prob_error", "ratio", "sequence", "mean over sequences of mean exp(|d|)", "NeMo-RL",
               "high", lambda s: s.per_sequence.mean_of(SEQ.mult)),
        Metric("seq_mult_prob_error_max", "ratio", "sequence", "maximum over sequences of mean exp(|d|)", "NeMo-RL",
               "none", lambda s: s.per_sequence.extreme(SEQ_EXTREME.mult_high)),
        Metric("seq_ratio_geo_min", "ratio", "sequence", "minimum over sequences of exp(mean d)", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.geo_low)),
        Metric("seq_ratio_geo_max", "ratio", "sequence", "maximum over sequences of exp(mean d)", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.geo_high)),
        Metric("seq_ratio_prod_min", "ratio", "sequence", "minimum over sequences of exp(sum of d)", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.prod_low)),
        Metric("seq_ratio_prod_max", "ratio", "sequence", "maximum over sequences of exp(sum of d)", VERL, "none",
               lambda s: s.per_sequence.extreme(SEQ_EXTREME.prod_high)),
        Metric("seq_ratio_capped_mean", "ratio", "sequence",
               f"mean over sequences of min(exp(sum of d), {SEQ_CAP:g})", "TRL: sequence_truncate", "none",
               lambda s: s.per_sequence.mean_of(SEQ.prod_capped)),
        Metric("seq_ratio_kept_mean", "ratio", "sequence", f"mean over sequences of exp(sum of d), 0 above {SEQ_CAP:g}",
               "TRL: sequence_mask", "none", lambda s: s.per_sequence.mean_of(SEQ.prod_kept), reading="Far below "
                       "seq_ratio_capped_mean: the mask drops sequences."),
        Metric("len_scaling_slope", "per e-fold", "sequence", "least-squares slope of ln |mean d| on ln length",
               "tunix issue 2129", "high", lambda s: s.per_sequence.scaling_slope,
               reading="About -0.5: independent noise per token. About 0: a bias shared by all tokens."),
    ),
)  # fmt: skip

LOSS = MetricFamily(
    "What enters the loss?",
    "By the weights that the trainer passes: factors of the loss, 0 for tokens that it masks. The gap covers all "
    "trained tokens, whatever their weight; clip rates those in the loss, where TRL and verl count all.",
    (
        Metric("tokens_in_loss", "tokens", "token", "trained tokens whose weight is not 0; without weights, all",
               MISMATCH, "none", lambda s: float(s.tokens) - s.cut.total),
        Metric("weight_cut_frac", "share", "token", "tokens with weight 0, of those with a weight", MISMATCH, "high",
               lambda s: s.cut.mean, needs=_WEIGHTS,
               reading="The share that masks cut. A falling share alone is no recovery: compare kl_k3."),
        Metric("weight_cut_seq_frac", "share", "sequence", "sequences in which every weight is 0, of those with a "
               "trained token", MISMATCH, "high", lambda s: s.cut_sequences.mean, needs=_WEIGHTS),
        Metric("weight_mean", "ratio", "token", "mean of the weights", MISMATCH, "none", lambda s: s.weights.mean,
               needs=_WEIGHTS),
        Metric("weight_max", "ratio", "token", "maximum weight", MISMATCH, "none", lambda s: s.weights.max,
               needs=_WEIGHTS),
        Metric("weight_ess", "share", "token", "(sum of weights)^2 / (tokens * sum of squared weights), tokens with "
               "weight 0 included", "Kish (1965)", "low", lambda s: s.weights.ess,
               Thresholds(0.5, 0.3, "verl docs: above 0.5 good, below 0.3 alert"), needs=f"{_WEIGHTS}, not all 0"),
    ),
)  # fmt: skip

MASKS = MetricFamily(
    "What would corrections remove?",
    "At the usual bounds, whether the trainer corrects or not. A falling share alone is no recovery: compare kl_k3.",
    (
        Metric("clip_frac_low", "share", "token; sequence for gspo", "advantage < 0 and ratio < clip_low, of all valid "
               "tokens in the loss of all updates; the ratio is to the rollout or the old logprob, as the trainer "
               "declares, or 1: to its current logprob, also in update 0 without old logprobs. An explicit mask "
               "overrides this and counts tokens: on the low side if the advantage is < 0, or the ratio < 1 without "
               "advantages", PPO, "high", lambda s: s.clip_low.mean, _MILES),
        Metric("clip_frac_high", "share", "token; sequence for gspo", "advantage > 0 and ratio > clip_high, as above",
               PPO, "high", lambda s: s.clip_high.mean, _MILES),
        Metric("kept_token_frac", "share", "token", "tokens in the loss that are clipped on neither side, "
               "counted as in clip_frac_low and clip_frac_high, of all; for gspo, all tokens of a clipped sequence are "
               "clipped", PPO, "low",
               lambda s: s.unclipped.mean, Thresholds(0.8, 0.5, "rltop; miles docs: 0.2 clipped is the end of healthy"),
               reading="The share of tokens with a gradient. It falls when a correction masks more and more, while "
                       "other metrics improve.", needs="clip bounds and advantages, or an explicit clip mask"),
        Metric("noise_clip_frac_low", "share", "token; sequence for gspo", "clip_frac_low of Gaussian noise with "
               "standard deviation noise_std: share of A < 0 times P(exp(N(0, noise_std^2)) < clip_low); "
               "noise_std / sqrt(T) for a gspo sequence of T tokens",
               "rltop, after the Gaussian noise table of Fast-LLM PR 525", "none", lambda s: s.noise_clip(high=False),
               needs=_BOUND),
        Metric("noise_clip_frac_high", "share", "token; sequence for gspo", "the same for clip_frac_high", "rltop",
               "none", lambda s: s.noise_clip(high=True), needs=_BOUND),
        Metric("tis_clip_frac", "share", "token", f"tokens with exp(d) > {TIS_CAP:g}", VERL, "high",
               lambda s: s.gap.mean_of(SUM.over_cap), Thresholds(1e-3, 1e-2, "rltop")),
        Metric("tis_seq_clip_frac", "share", "sequence", f"sequences with exp(sum of d) > {TIS_CAP:g}", VERL, "high",
               lambda s: s.per_sequence.mean_of(SEQ.over_cap)),
        Metric("icepop_mask_frac", "share", "token", "tokens with exp(d) outside 0.5 to 5", "IcePop", "high",
               lambda s: s.gap.mean_of(SUM.outside_icepop), Thresholds(1e-3, 1e-2, "rltop")),
        Metric("geo_mask_frac", "share", "sequence", "sequences with exp(mean d) outside 0.99 to 1.01", "SkyRL", "high",
               lambda s: s.per_sequence.mean_of(SEQ.outside_geo)),
        Metric("prod_mask_frac", "share", "sequence", "sequences with exp(sum of d) outside 0.5 to 2", "SkyRL", "high",
               lambda s: s.per_sequence.mean_of(SEQ.outside_prod),
               reading="Rises with length even if every token is healthy."),
        Metric("seq_err_mask_frac", "share", "sequence", "sequences with mean exp(|d|) > 2", "NeMo-RL", "high",
               lambda s: s.per_sequence.mean_of(SEQ.over_mult)),
        Metric("masked_correct_frac", "share", "sequence", f"sequences with a reward of {CORRECT:g} or more, of "
               "those with mean exp(|d|) > 2", "NeMo-RL", "high",
               lambda s: share(s.per_sequence.over_correct, s.per_sequence.over),
               needs="rewards, and a sequence that the error mask rejects",
               reading="Far above the share of correct sequences overall: the mask discards correct answers."),
        Metric("opsm_mask_frac", "share", "sequence", "mean advantage < 0 and -mean d > 0.5, of sequences with "
               "advantages", "DeepSeek-V3.2; TRL's example bound", "high",
               lambda s: share(s.per_sequence.opsm, s.per_sequence.with_advantage)),
        Metric("adv_weighted_diff", "nats", "token", "mean of A d", MISMATCH, "away from 0",
               lambda s: share(float(s.advantage[ADVANTAGE.d]), float(s.advantage[ADVANTAGE.n])),
               reading="First-order bias of the policy-gradient objective."),
        Metric("adv_weighted_abs_diff", "nats", "token", "sum of |A| |d| / sum of |A|", MISMATCH, "high",
               lambda s: share(float(s.advantage[ADVANTAGE.abs_d]), float(s.advantage[ADVANTAGE.size]))),
    ),
)  # fmt: skip

ENTROPY = MetricFamily(
    "How certain are the policies?",
    "",
    (
        Metric("entropy", "nats", "token", "mean of the entropy that the trainer passes", MISMATCH, "low",
               lambda s: s.entropy.mean),
        Metric("entropy_sample_rollout", "nats", "token", "mean of -rollout logprob", "tinker-cookbook", "none",
               lambda s: negative(s.gap.mean_of(SUM.right))),
        Metric("entropy_sample_trainer", "nats", "token", "mean of -exp(d) trainer logprob", "NeMo-RL", "none",
               lambda s: negative(s.gap.mean_of(SUM.ratio_left))),
        Metric("nll_minus_entropy", "nats", "token", "mean of -trainer logprob - entropy", MISMATCH, "away from 0",
               nll_minus_entropy,
               Thresholds(0.1, 0.2, "rltop: -0.3 at T = 0.7 or top_p = 0.9, within 0.05 in healthy runs"),
               reading="Far below 0: tokens were sampled from a sharper distribution than the trainer's, even if the "
                       "rollout logprobs agree."),
    ),
)  # fmt: skip

LAG = MetricFamily(
    "How stale are the tokens?",
    "",
    (
        Metric("lag_mean", "versions", "token", "trainer's policy version - version that sampled the token, in updates",
               MISMATCH, "high", lambda s: s.lag.mean),
        Metric("lag_p95", "versions", "token", "95th percentile of the lag", MISMATCH, "high",
               lambda s: s.lags.quantile(0.95)),
        Metric("lag_max", "versions", "token", "maximum lag", MISMATCH, "high", lambda s: s.lag.max,
               Thresholds(4, 8, "default limits: TRL 3, SkyRL 4, prime-rl 8")),
        Metric("lag_unknown_frac", "share", "token", "tokens of unknown version, if the trainer passes its own "
               "version", MISMATCH, "high", lambda s: share(s.lag_expected - s.lag.n, s.lag_expected)),
        Metric("lag_inferred_frac", "share", "token", "tokens whose version comes from an engine's count of updates, "
               "of those of known version", MISMATCH, "high", lambda s: share(s.lag_inferred, s.lag.n), reading="Above "
               "0: neither the engine nor the trainer states the version of these tokens; pass `rollout_versions`."),
        Metric("spanning_frac", "share", "sequence", "sequences sampled under two or more policy versions", MISMATCH,
               "none", lambda s: share(s.spanning, s.versions.n)),
        Metric("versions_per_seq_mean", "versions", "sequence", "policy versions that sampled a sequence, mean over "
               "sequences", MISMATCH, "none", lambda s: s.versions.mean, reading="1: no weight update in flight."),
        Metric("versions_per_seq_max", "versions", "sequence", "maximum of the same", MISMATCH, "none",
               lambda s: s.versions.max),
        Metric("k3_at_lag0", "nats", "token", "a of the least-squares line k3 = a + b lag over tokens", MISMATCH,
               "high", lambda s: lag_estimate(s, intercept=True), NEMO_K3,
               needs=f"{_SPAN}, and tokens within {MIN_SPAN} versions of lag 0",
               reading="The part of the gap that is not staleness. k3 grows faster than lag, so staleness "
                       "alone gives 0 or a little less."),
        Metric("k3_at_lag0_se", "nats", "token", "its standard error, clustered by sequence",
               "Liang and Zeger (1986)", "none", lambda s: lag_estimate(s, intercept=True, error=True)),
        Metric("k3_per_lag", "nats per version", "token", "b of the same line", MISMATCH, "high",
               lambda s: lag_estimate(s, intercept=False), needs=_SPAN, reading="Drift of the policy per version."),
        Metric("k3_per_lag_se", "nats per version", "token", "its standard error, clustered by sequence",
               "Liang and Zeger (1986)", "none", lambda s: lag_estimate(s, intercept=False, error=True)),
    ),
)  # fmt: skip

SPLIT = MetricFamily(
    "Engine or staleness?",
    "With old logprobs: backend (old - rollout, version-matched) + update (trainer - old) = the gap. Without: lag 0.",
    (
        Metric("backend_abs_diff_mean", "nats", "token", "mean of |old - rollout| over tokens whose old logprob was "
               "computed under the version that sampled them", MISMATCH, "high",
               lambda s: s.backend.abs_mean, SLIME_ABS),
        Metric("backend_diff_mean", "nats", "token", "mean of old - rollout, same tokens", MISMATCH, "away from 0",
               lambda s: s.backend.mean),
        Metric("backend_k3", "nats", "token", "mean of exp(d) - 1 - d with d = old - rollout, same tokens", SCHULMAN,
               "high", lambda s: s.backend.k3, NEMO_K3),
        Metric("backend_ratio_mean", "ratio", "token", "mean of exp(old - rollout), same tokens", MISMATCH,
               "away from 1", lambda s: s.backend.ratio, DENSITY),
        Metric("backend_abs_diff_max", "nats", "token", "maximum |old - rollout|, same tokens", MISMATCH, "none",
               lambda s: s.backend.abs_max),
        Metric("backend_tokens", "tokens", "token", "version-matched tokens with an old logprob", MISMATCH, "none",
               lambda s: float(s.backend.n)),
        Metric("stale_backend_abs_diff_mean", "nats", "token", "mean of |old - rollout| over tokens whose versions "
               "differ or are not known: staleness and backend combined", MISMATCH, "high", lambda s: s.stale.abs_mean),
        Metric("stale_backend_k3", "nats", "token", "mean of exp(d) - 1 - d with d = old - rollout, same tokens",
               SCHULMAN, "high", lambda s: s.stale.k3),
        Metric("stale_backend_tokens", "tokens", "token", "number of those tokens", MISMATCH, "none",
               lambda s: float(s.stale.n)),
        Metric("update_diff_mean", "nats", "token", "mean of trainer - old", MISMATCH, "away from 0",
               lambda s: s.update.mean),
        Metric("update_abs_diff_mean", "nats", "token", "mean of |trainer - old|", MISMATCH, "none",
               lambda s: s.update.abs_mean),
        Metric("update_k3", "nats", "token", "mean of exp(d) - 1 - d with d = trainer - old", SCHULMAN, "none",
               lambda s: s.update.k3),
        Metric("ppo_kl", "nats", "token", "mean of old - trainer", SCHULMAN, "away from 0", lambda s: s.update.k1,
               reading="0 in the first update on fresh rollouts; otherwise the trainer's forward pass is not "
                       "reproducible."),
        Metric("correction_ess", "share", "token", "ESS of exp(old - rollout), all tokens with an old logprob; of "
               "exp(trainer - rollout) without old logprobs", "Kish (1965)", "low", lambda s: correction(s).ess,
               Thresholds(0.95, 0.3, "amber: rltop; red: verl's alert")),
        Metric("correction_ess_capped", "share", "token", f"the same, weights capped at {TIS_CAP:g}", "Kish (1965)",
               "low", lambda s: correction(s).ess_capped, Thresholds(0.5, 0.3, "verl docs")),
        Metric("lag0_abs_diff_mean", "nats", "token", "mean of |d| over tokens that the trainer's own version sampled",
               MISMATCH, "high", lambda s: s.lag0.abs_mean, SLIME_ABS, reading="The version-matched estimate "
                       "without old logprobs."),
        Metric("lag0_k3", "nats", "token", "mean of exp(d) - 1 - d, same tokens", SCHULMAN, "high",
               lambda s: s.lag0.k3, NEMO_K3, reading="Above 0.01 in the first step: different tokens, template or "
                       "weights (tinker-cookbook)."),
        Metric("lag0_ratio_mean", "ratio", "token", "mean of exp(d), same tokens", MISMATCH, "away from 1",
               lambda s: s.lag0.ratio, DENSITY),
        Metric("lag0_tokens", "tokens", "token", "number of those tokens", MISMATCH, "none", lambda s: float(s.lag0.n)),
        Metric("noise_std", "nats", "token", "standard deviation of the version-matched d: old - rollout, else "
               "trainer - rollout at lag 0", MISMATCH, "high", lambda s: s.noise,
               needs=_MATCHED, reading="0.022 for a 7B model in bfloat16 with a float32 head on both sides, 0.039 "
                       "without (Fast-LLM PR 525)."),
        Metric("noise_abs_diff", "nats", "token", "noise_std sqrt(2 / pi): the mean |d| of Gaussian noise",
               "Fast-LLM PR 525", "none", noise_abs_diff, needs=_MATCHED),
        Metric("noise_k3", "nats", "token", "noise_std^2 / 2: the k3 of Gaussian noise", "Fast-LLM PR 525", "none",
               noise_k3, needs=_MATCHED),
        Metric("noise_ess", "share", "token", "exp(-noise_std^2): the ESS of Gaussian noise", "Fast-LLM PR 525", "none",
               noise_ess, needs=_MATCHED),
    ),
)  # fmt: skip

HEALTH = MetricFamily(
    "Is the rest of the run healthy?",
    "",
    (
        Metric("reward_mean", "", "sequence", "mean of the sequences' rewards", MISMATCH, "low",
               lambda s: s.reward.mean),
        Metric("reward_std", "", "sequence", "standard deviation of the sequences' rewards", MISMATCH, "none",
               lambda s: s.reward.std),
        Metric("zero_std_group_frac", "share", "group", "prompts with equal rewards, of those with two or more",
               "miles docs", "high", lambda s: s.groups.zero_std,
               Thresholds(0.5, 0.8, "amber: miles docs; red: rltop")),
        Metric("tokens", "tokens", "token", "trained tokens of the step's first update", MISMATCH, "none",
               lambda s: float(s.tokens)),
        Metric("sequences", "sequences", "sequence", "sequences of the step's first update", MISMATCH, "none",
               lambda s: float(s.sequences)),
        Metric("response_len_mean", "tokens", "sequence", "mean of the sequences' trained tokens", MISMATCH, "none",
               lambda s: s.per_sequence.lengths.mean),
        Metric("response_len_p95", "tokens", "sequence", "95th percentile of the same", MISMATCH, "none",
               lambda s: s.per_sequence.sizes.quantile(0.95)),
        Metric("response_len_max", "tokens", "sequence", "maximum of the same", MISMATCH, "none",
               lambda s: s.per_sequence.lengths.max),
        Metric("joined_fraction", "share", "sequence", "sequences found among the engines' rollouts, of those with a "
               "trained token", MISMATCH, "low", lambda s: share(s.joined, s.joinable)),
        Metric("prefix_hit_rate", "share", "request", "cached / prompt tokens of the joined rollouts; a request whose "
               "lookup was off counts with 0 cached", MISMATCH, "none", lambda s: s.cached.mean),
        Metric("truncated_frac", "share", "request", "joined rollouts that ended at the token limit",
               "ScaleRL, arXiv 2510.13786", "high", lambda s: share(s.truncated, s.requests),
               Thresholds(0.1, 0.25, "amber: ScaleRL; red: miles docs")),
        Metric("requests", "requests", "request", "joined rollouts", MISMATCH, "none", lambda s: float(s.requests)),
        Metric("aborted", "requests", "request", "joined rollouts that ended as aborted, but for those with stop "
               "strings, which their front end ends in the same way", MISMATCH, "high", lambda s: float(s.aborted)),
        Metric("aborted_frac", "share", "request", "the same, of all joined rollouts", MISMATCH, "high",
               lambda s: share(s.aborted, s.requests),
               Thresholds(0.05, 0.25, "amber: miles, prime-rl docs; red: rltop")),
        Metric("failed_frac", "share", "request", "joined rollouts that ended in an error", MISMATCH, "high",
               lambda s: share(s.failed, s.requests), Thresholds(0.05, 0.25, "amber: prime-rl docs; red: rltop")),
        Metric("repetition_frac", "share", "sequence", "sequences of 256 trained tokens or more whose last 2500, coded "
               "as one byte per distinct token, zlib compresses tenfold, of all", "slime: has_repetition, over 10,000 "
               "characters", "high", lambda s: share(s.repetitive, s.repetition_checked),
               Thresholds(0.05, 0.25, "amber: prime-rl, miles docs; red: rltop"),
               reading="Sequences that end in a loop: a collapsing policy, or one that can't end within its budget."),
        GRAD_NORM_Z,
    ),
)  # fmt: skip
