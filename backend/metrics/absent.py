"""Figures that others name and that this catalogue does not have, and why. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AbsentMetric:
    """One of them: ``why`` it is not computed, and what is nearest to it ``instead``."""

    name: str
    why: str
    instead: str


ABSENT: tuple[AbsentMetric, ...] = (
    AbsentMetric(
        "rank_tail",
        "share of sampled tokens of a rank beyond 10, 100, 1000: collectors pass each token's logprob, not its rank",
        "low_prob_frac, and the gap by stratum of probability in rltop attribution",
    ),
    AbsentMetric(
        "trainer_noise_floor",
        "the trainer's logprobs against its own in other micro-batches: no trainer computes them twice",
        "ppo_kl and update_abs_diff_mean of update 0, where weights are the same and only the batch differs; noise_std",
    ),
    AbsentMetric(
        "decode_prefill_gap",
        "the engine's logprobs against its own of the same text scored as a prompt: nobody asks it to score",
        "backend_abs_diff_mean, which has the trainer as the second opinion",
    ),
    AbsentMetric(
        "len_mismatch",
        "arrays of one call that differ in length are refused on the caller's line, and messages that do are counted "
        "as invalid: none gets as far as a figure",
        "the hub's counter invalid; sequences of other length than their rollout are told by the join "
        "(overlong, truncated)",
    ),
)
