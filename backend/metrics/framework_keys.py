"""The keys under which training frameworks log metrics, and the metrics they correspond to. Pure data.

Read in the sources that are named: a function of the framework's version computes the key as described. "Old" logprobs
are the ones the trainer recomputed before the update; they equal the trainer's until the weights change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameworkKey:
    """One key of a framework.

    Attributes:
        key: as the framework logs it; ``<env>`` stands for any one path segment.
        metric: the metric that is the same quantity, or the nearest one.
        differs: how its value differs for the same arrays; empty if it does not.
        when: the setting under which this is so; empty if always.
    """

    key: str
    metric: str
    differs: str = ""
    when: str = ""


@dataclass(frozen=True)
class KeySource:
    """Keys that one place of a framework computes.

    Attributes:
        framework, version: as published; a date where the version has no release.
        place: file and function.
        averaged: how a step's value is made from micro-batches and ranks.
        keys: the keys.
        old: d is old - rollout logprob, where the metric has trainer - rollout.
    """

    framework: str
    version: str
    place: str
    averaged: str
    keys: tuple[FrameworkKey, ...]
    old: bool = False


K = FrameworkKey

SEQUENCE_MEAN = "mean over sequences of means"
BOTH_SIDES = "both sides together"
_TOKENS = "over all tokens of all ranks"
_MICRO = "mean of micro-batch means"
_RANKS = "mean of the ranks' means"
_SAMPLES = "sum over sequences / number of sequences"

_TRL, _VERL, _SLIME = "1.16.0", "0.9.1", "0.3.1 (2026-08-21)"
_PRIME, _NEMO, _PIPELINE = "0.8.0 (2026-08-21)", "0.6.0 (2026-08-22)", "2026-06-19"
_SWIFT, _OPENRLHF, _SKYRL = "2026-08-22", "0.11.2", "0.4.0"

TRL = (
    KeySource("TRL", _TRL, "trl/trainer/grpo_trainer.py: _generate_and_score_completions", _RANKS, old=True, keys=(
        K("sampling/sampling_logp_difference/mean", "logp_abs_diff_mean"),
        K("sampling/sampling_logp_difference/max", "logp_abs_diff_max"),
        K("sampling/importance_sampling_ratio/mean", "seq_ratio_kept_mean", when="sequence_mask at 3, the default"),
        K("sampling/importance_sampling_ratio/mean", "seq_ratio_capped_mean", when="sequence_truncate at 3"),
        K("sampling/importance_sampling_ratio/mean", "ratio_capped_mean", when="token_truncate at 2 (default: 3)"),
        K("sampling/importance_sampling_ratio/mean", "ratio_mean", "weights above the bound count as 0",
          "token_mask"),
        K("sampling/importance_sampling_ratio/min", "seq_ratio_prod_min", "0 if a sequence is masked",
          "sequence_mask or sequence_truncate"),
        K("sampling/importance_sampling_ratio/max", "seq_ratio_prod_max", "after the cap",
          "sequence_mask or sequence_truncate"),
        K("sampling/importance_sampling_ratio/min", "ratio_min", "after clipping", "token_truncate or token_mask"),
        K("sampling/importance_sampling_ratio/max", "ratio_max", "after clipping", "token_truncate or token_mask"),
    )),
    KeySource("TRL", _TRL, "trl/trainer/grpo_trainer.py: _compute_loss", _MICRO, keys=(
        K("entropy", "entropy"),
        K("clip_ratio/low_mean", "clip_frac_low"),
        K("clip_ratio/high_mean", "clip_frac_high"),
        K("clip_ratio/region_mean", "clip_frac_low", BOTH_SIDES),
    )),
    KeySource("TRL", _TRL, "trl/trainer/grpo_trainer.py: _generate, _generate_and_score_completions",
              "over all sequences of all ranks", keys=(
        K("reward", "reward_mean"),
        K("reward_std", "reward_std", "divides by n - 1"),
        K("frac_reward_zero_std", "zero_std_group_frac"),
        K("completions/mean_length", "response_len_mean"),
        K("completions/max_length", "response_len_max"),
        K("completions/clipped_ratio", "truncated_frac"),
    )),
    KeySource("TRL async", _TRL, "trl/experimental/async_grpo/async_grpo_trainer.py: compute_loss",
              "over all tokens of all ranks, then mean of micro-batches", keys=(
        K("ratio", "ratio_mean"),
        K("kl", "kl_k3"),
        K("entropy", "entropy"),
        K("clip_ratio/low_mean", "clip_frac_low"),
        K("clip_ratio/high_mean", "clip_frac_high"),
    )),
)  # fmt: skip

_BYPASS = "over all tokens of the batch; with bypass_mode in the workers: trainer logprobs, mean of micro-batch means"

VERL = (
    KeySource("verl", _VERL, "verl/trainer/ppo/rollout_corr_helper.py: compute_offpolicy_metrics", _BYPASS, old=True,
              keys=(
        K("rollout_corr/kl", "kl_k1"),
        K("rollout_corr/k3_kl", "kl_k3"),
        K("rollout_corr/training_ppl", "trainer_ppl"),
        K("rollout_corr/rollout_ppl", "rollout_ppl"),
        K("rollout_corr/training_log_ppl", "trainer_log_ppl"),
        K("rollout_corr/rollout_log_ppl", "rollout_log_ppl"),
        K("rollout_corr/log_ppl_diff", "log_ppl_diff"),
        K("rollout_corr/log_ppl_abs_diff", "log_ppl_abs_diff"),
        K("rollout_corr/log_ppl_diff_max", "log_ppl_diff_max"),
        K("rollout_corr/log_ppl_diff_min", "log_ppl_diff_min"),
        K("rollout_corr/ppl_ratio", "ppl_ratio"),
        K("rollout_corr/chi2_token", "chi2_token"),
        K("rollout_corr/chi2_seq", "chi2_seq"),
    )),
    KeySource("verl", _VERL, "verl/trainer/ppo/rollout_corr_helper.py: compute_is_metrics", _BYPASS, old=True, keys=(
        K("rollout_corr/rollout_is_mean", "ratio_capped_mean", when="token level, threshold 2"),
        K("rollout_corr/rollout_is_mean", "seq_ratio_capped_mean", "weights sequences by length; its cap is 2",
          "sequence level"),
        K("rollout_corr/rollout_is_min", "ratio_min", when="token level"),
        K("rollout_corr/rollout_is_max", "ratio_max", "of applied weights", "token level"),
        K("rollout_corr/rollout_is_std", "ratio_std", "of applied weights", "token level"),
        K("rollout_corr/rollout_is_eff_sample_size", "ess_capped", when="token level, threshold 2"),
        K("rollout_corr/rollout_is_eff_sample_size", "ess_seq", "of applied weights, weighted by length",
          "sequence level"),
        K("rollout_corr/rollout_is_ratio_fraction_high", "tis_clip_frac", when="token level, threshold 2"),
        K("rollout_corr/rollout_is_ratio_fraction_high", "tis_seq_clip_frac", when="sequence level, threshold 2"),
        K("rollout_corr/rollout_is_oob_ratio", "icepop_mask_frac", when="IcePop 0.5_5"),
        K("rollout_corr/rollout_is_max", "seq_ratio_prod_max", when="sequence level"),
        K("rollout_corr/rollout_is_min", "seq_ratio_prod_min", "not clamped at -20", "sequence level"),
        K("rollout_corr/rollout_is_seq_mean", "seq_ratio_capped_mean", "its cap is 2", "sequence level, threshold 2"),
    )),
    KeySource("verl", _VERL, "verl/trainer/ppo/rollout_corr_helper.py: compute_rollout_rejection_mask", _BYPASS,
              old=True, keys=(
        K("rollout_corr/rollout_rs_seq_masked_fraction", "geo_mask_frac", when="seq_mean_k1, 0.99_1.01"),
        K("rollout_corr/rollout_rs_seq_masked_fraction", "prod_mask_frac", when="seq_sum_k1, 0.5_2.0"),
        K("rollout_corr/rollout_rs_masked_fraction", "geo_mask_frac", "share of tokens, not of sequences",
          "seq_mean_k1, 0.99_1.01"),
    )),
    KeySource("verl", _VERL, "verl/utils/debug/metrics.py: calculate_debug_metrics", "over all tokens of the batch",
              old=True, keys=(
        K("training/rollout_probs_diff_mean", "probs_diff_mean"),
        K("training/rollout_probs_diff_max", "probs_diff_max"),
        K("training/rollout_probs_diff_std", "probs_diff_std", "divides by n - 1"),
        K("training/rollout_actor_probs_pearson_corr", "probs_pearson"),
    )),
    KeySource("verl", _VERL, "verl/trainer/ppo/core_algos.py: compute_policy_loss_vanilla",
              f"{_MICRO}, all updates of the step", keys=(
        K("actor/ppo_kl", "ppo_kl"),
        K("actor/pg_clipfrac", "clip_frac_low", BOTH_SIDES),
        K("actor/pg_clipfrac", "clip_frac_high", BOTH_SIDES),
    )),
    KeySource("verl", _VERL, "verl/trainer/ppo/v1/trainer_base.py, ppo/metric_utils.py: compute_data_metrics",
              "over the batch", keys=(
        K("actor/entropy", "entropy", when="loss_agg_mode token-mean"),
        K("critic/rewards/mean", "reward_mean"),
        K("response_length/mean", "response_len_mean"),
        K("response_length/max", "response_len_max"),
        K("response_length/clip_ratio", "truncated_frac", "share at the length limit of the batch"),
        K("response/aborted_ratio", "aborted_frac", "share of empty responses"),
        K("training/off_policy/trajectory_staleness/mean", "lag_mean", "of trajectories, by their newest version"),
        K("fully_async/partial/partial_ratio", "spanning_frac"),
    )),
)  # fmt: skip

PRIME_RL = (
    KeySource("prime-rl", _PRIME, "src/prime_rl/trainer/rl/train.py: train", _TOKENS, keys=(
        K("mismatch_kl/all/mean", "kl_k3"),
        K("mismatch_kl/<env>/mean", "kl_k3", "tokens of one environment"),
        K("kl_ent_ratio/mean", "kl_ent_ratio"),
        K("entropy/all/mean", "entropy"),
        K("entropy/<env>/mean", "entropy", "tokens of one environment"),
    )),
    KeySource("prime-rl", "before 2026-05-18", "src/prime_rl/trainer/rl/loss.py: default_loss_fn", _SAMPLES, keys=(
        K("mismatch_kl/mean", "kl_k3_seq_mean"),
    )),
    KeySource("prime-rl", _PRIME, "src/prime_rl/trainer/rl/loss.py: default_loss_fn", _SAMPLES, keys=(
        K("unmasked_mismatch_kl/mean", "kl_k3_seq_mean", "tokens that the trust region keeps"),
        K("masked_mismatch_kl/mean", "kl_k3_seq_mean", "tokens that the trust region drops"),
        K("is_masked/mean", "kept_token_frac", "1 - it, averaged by sequence"),
        K("is_masked_low/mean", "clip_frac_low", "averaged by sequence, bound on the probability"),
        K("is_masked_high/mean", "clip_frac_high", "averaged by sequence, bound on the probability"),
    )),
    KeySource("prime-rl", _PRIME, "src/prime_rl/orchestrator/orchestrator.py", "over all trajectories", keys=(
        K("off_policy/mean", "lag_mean", "of trajectories"),
        K("off_policy/max", "lag_max", "of trajectories"),
    )),
)  # fmt: skip

OPENRLHF = (
    KeySource("OpenRLHF", _OPENRLHF, "openrlhf/models/loss.py: PolicyLoss.forward",
              "over all tokens of all updates of the step", keys=(
        K("ppo_kl", "ppo_kl"),
        K("ppo_clip_ratio", "clip_frac_low", BOTH_SIDES),
        K("ppo_clip_ratio", "clip_frac_high", BOTH_SIDES),
    )),
    KeySource("OpenRLHF", _OPENRLHF, "openrlhf/models/loss.py: PolicyLoss.forward",
              "over all tokens of all updates of the step", old=True, keys=(
        K("vllm_kl", "kl_k1", when="is_correction_level token or seq, policy_loss_type ppo"),
        K("is_filter_ratio", "icepop_mask_frac", when="is_correction_level token, threshold 0.5 5"),
    )),
    KeySource("OpenRLHF", _OPENRLHF, "openrlhf/trainer/ppo_utils/samples_generator.py", "over all sequences", keys=(
        K("reward", "reward_mean"),
        K("response_clip_ratio", "truncated_frac"),
        K("response_length", "response_len_mean", "from the first to the last action token"),
    )),
)  # fmt: skip

SKYRL = (
    KeySource("SkyRL", _SKYRL, "skyrl/train/trainer.py: fwd_logprobs_values_reward", "over all tokens of the batch",
              old=True, keys=(
        K("policy/rollout_train_logprobs_abs_diff_mean", "logp_abs_diff_mean"),
        K("policy/rollout_train_logprobs_abs_diff_std", "logp_abs_diff_std", "divides by n - 1"),
        K("policy/rollout_train_logprobs_abs_diff_max", "logp_abs_diff_max"),
    )),
    KeySource("SkyRL", _SKYRL, "skyrl/backends/skyrl_train/workers/worker_utils.py", _MICRO, keys=(
        K("policy/minibatch_rollout_logprobs_abs_diff_mean", "logp_abs_diff_mean"),
    )),
    KeySource("SkyRL", _SKYRL, "skyrl/backends/skyrl_train/utils/off_policy_correction_utils.py", _MICRO, old=True,
              keys=(
        K("policy/loss_metrics/is_ratio_mean", "ratio_mean"),
        K("policy/loss_metrics/is_ratio_max", "ratio_max"),
        K("policy/loss_metrics/is_ratio_min", "ratio_min", "0 if a token is padding"),
        K("policy/loss_metrics/tis_token_clip_high_ratio", "tis_clip_frac", when="token_tis_ratio_clip_high 2"),
        K("policy/loss_metrics/tis_seq_clip_high_ratio", "tis_seq_clip_frac", "its cap is 5 by default"),
        K("policy/loss_metrics/geo_sequence_mask_masked_ratio", "geo_mask_frac", when="bounds 0.99 and 1.01"),
        K("policy/loss_metrics/product_sequence_mask_masked_ratio", "prod_mask_frac", when="bounds 0.5 and 2"),
        K("policy/loss_metrics/outlier_seq_under_low_ratio", "catastrophic_seq_frac",
          when="outlier_token_is_threshold_low 1e-4"),
    )),
    KeySource("SkyRL", _SKYRL, "skyrl/backends/skyrl_train/utils/ppo_utils.py: ppo_policy_loss", _MICRO, keys=(
        K("policy/loss_metrics/clip_ratio", "clip_frac_low", BOTH_SIDES),
        K("policy/loss_metrics/clip_ratio", "clip_frac_high", BOTH_SIDES),
        K("policy/policy_entropy", "entropy"),
    )),
)  # fmt: skip

NEMO_RL = (
    KeySource("NeMo-RL", _NEMO, "nemo_rl/algorithms/loss/loss_functions.py: ClippedPGLossFn.__call__", _TOKENS,
              old=True, keys=(
        K("gen_kl_error", "kl_k3", when="reference_policy_kl_type k3"),
        K("policy_kl_error", "kl_k3_rev", when="reference_policy_kl_type k3"),
        K("js_divergence_error", "js", "k3 estimates of the distance to the mixture, not bounded by ln 2"),
        K("token_mult_prob_error", "token_mult_prob_error"),
        K("sampling_importance_ratio", "ratio_mean", when="no truncation"),
        K("sampling_importance_ratio", "ratio_capped_mean", when="tis at 2"),
        K("is_oob_ratio", "icepop_mask_frac", when="icepop, 0.5 to 5"),
        K("is_oob_ratio", "geo_mask_frac", "bounds 0.999 to 1.002", "seq-mask-tis"),
    )),
    KeySource("NeMo-RL", _NEMO, "nemo_rl/algorithms/loss/loss_functions.py: ClippedPGLossFn.__call__", _TOKENS, keys=(
        K("approx_entropy", "entropy_sample_trainer"),
    )),
    KeySource("NeMo-RL", _NEMO, "nemo_rl/algorithms/grpo.py: compute_and_apply_seq_logprob_error_masking",
              "over all sequences of the step", old=True, keys=(
        K("mean_seq_mult_prob_error", "seq_mult_prob_error"),
        K("max_seq_mult_prob_error", "seq_mult_prob_error_max"),
        K("num_masked_seqs_by_logprob_error", "seq_err_mask_frac", "a count", "seq_logprob_error_threshold 2"),
        K("masked_correct_pct", "masked_correct_frac", "reward exactly 1", "seq_logprob_error_threshold 2"),
    )),
    KeySource("NeMo-RL", _NEMO, "nemo_rl/algorithms/grpo.py: async_grpo_train", "over all trajectories", keys=(
        K("avg_trajectory_age", "lag_mean", "of trajectories"),
    )),
)  # fmt: skip

PIPELINE_RL = (
    KeySource("PipelineRL", _PIPELINE, "pipelinerl/finetune/rl/__init__.py: rl_step; finetune_loop.py", _SAMPLES,
              keys=(
        K("rl/kl_new_old", "kl_k3_seq_mean"),
        K("rl/ratio_new_old", "ratio_seq_mean"),
        K("rl/mean_abs_log_ratio_new_old", "logp_abs_diff_seq_mean"),
        K("rl/new_logprobs", "trainer_log_ppl", "its negative"),
        K("rl/old_logprobs", "rollout_log_ppl", "its negative"),
        K("rl/clamp_log_ratio_new_old_indicator", "clip_frac_low",
          "both sides whatever the sign of the advantage, averaged by sequence"),
        K("rl/entropy", "entropy", SEQUENCE_MEAN),
        K("rl/reward", "reward_mean"),
    )),
    KeySource("PipelineRL", _PIPELINE, "pipelinerl/finetune_loop.py: rl_finetuning_worker", _TOKENS, keys=(
        K("rl/ess", "ess"),
        K("stats/lag", "lag_max", "in samples, behind the last weights that were broadcast"),
    )),
)  # fmt: skip

SLIME = (
    KeySource("slime", _SLIME, "slime/backends/megatron_utils/loss.py: policy_loss_function", _SAMPLES, old=True, keys=(
        K("train/train_rollout_logprob_abs_diff", "logp_abs_diff_seq_mean"),
        K("train/tis", "ratio_seq_mean"),
        K("train/tis_clipfrac", "tis_clip_frac", "averaged by sequence; also below its lower bound"),
    )),
    KeySource("slime", _SLIME, "slime/backends/megatron_utils/loss.py: policy_loss_function", _SAMPLES, keys=(
        K("train/ppo_kl", "ppo_kl", SEQUENCE_MEAN),
        K("train/pg_clipfrac", "clip_frac_low", f"{BOTH_SIDES}, averaged by sequence"),
        K("train/pg_clipfrac", "clip_frac_high", f"{BOTH_SIDES}, averaged by sequence"),
        K("train/entropy_loss", "entropy", SEQUENCE_MEAN),
    )),
    KeySource("slime", _SLIME, "examples/train_infer_mismatch_helper/mis.py: calculate_veto_mask", _SAMPLES, old=True,
              keys=(
        K("train/rs_catastrophic_token_fraction", "catastrophic_token_frac", "averaged by sequence",
          "rs_veto_threshold 1e-4"),
        K("train/rs_catastrophic_seq_fraction", "catastrophic_seq_frac", when="rs_veto_threshold 1e-4"),
    )),
    KeySource("slime", _SLIME, "slime/observability/rollout_metrics.py", "over all sequences", keys=(
        K("rollout/repetition_frac", "repetition_frac", "of text, over 10,000 characters"),
    )),
    KeySource("miles", "0.1.0 (2026-08-21)", "miles/backends/training_utils/loss_hub/losses.py", _SAMPLES, old=True,
              keys=(
        K("train/train_rollout_kl", "kl_k3_seq_mean", "k3 clamped to 10"),
        K("train/train_rollout_logprob_abs_diff", "logp_abs_diff_seq_mean"),
    )),
)  # fmt: skip

OTHERS = (
    KeySource("AReaL", "1.0.4", "areal/utils/functional/functional.py", _TOKENS, old=True, keys=(
        K("behave_approx_kl", "logp_diff_mean", "tokens that the rejection keeps"),
    )),
    KeySource("tinker-cookbook", "2026-08-19", "tinker_cookbook/rl/metrics.py: compute_kl_sample_train", _TOKENS, keys=(
        K("optim/kl_sample_train_v1", "kl_k1"),
        K("optim/kl_sample_train_v2", "kl_k2"),
        K("optim/entropy", "entropy_sample_rollout"),
    )),
    KeySource("ms-swift", _SWIFT, "swift/rlhf_trainers/grpo_trainer.py: _compute_rollout_offpolicy_metrics", _RANKS,
              old=True, keys=(
        K("rollout_correction/kl", "kl_k1"),
        K("rollout_correction/k3_kl", "kl_k3", "clamped to 10"),
        K("rollout_correction/training_ppl", "trainer_ppl"),
        K("rollout_correction/rollout_ppl", "rollout_ppl"),
        K("rollout_correction/training_log_ppl", "trainer_log_ppl"),
        K("rollout_correction/rollout_log_ppl", "rollout_log_ppl"),
        K("rollout_correction/log_ppl_diff", "log_ppl_diff"),
        K("rollout_correction/log_ppl_abs_diff", "log_ppl_abs_diff"),
        K("rollout_correction/log_ppl_diff_max", "log_ppl_diff_max"),
        K("rollout_correction/log_ppl_diff_min", "log_ppl_diff_min"),
        K("rollout_correction/ppl_ratio", "ppl_ratio"),
        K("rollout_correction/chi2_token", "chi2_token"),
        K("rollout_correction/chi2_seq", "chi2_seq_geo"),
    )),
)  # fmt: skip

SOURCES: tuple[KeySource, ...] = (
    *TRL, *VERL, *PRIME_RL, *OPENRLHF, *SKYRL, *NEMO_RL, *PIPELINE_RL, *SLIME, *OTHERS,
)  # fmt: skip
