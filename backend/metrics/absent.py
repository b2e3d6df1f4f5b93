"""Metrics of other tools that rltop does not compute, with the reason. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AbsentMetric:
    """A metric that is not computed, the reason ``why``, and the nearest substitutes ``instead``."""

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
        "trainer logprobs against those of other micro-batches: no trainer computes them twice",
        "ppo_kl and update_abs_diff_mean of update 0, with equal weights and different batches; noise_std",
    ),
    AbsentMetric(
        "decode_prefill_gap",
        "decode logprobs against prefill logprobs of the same engine and text: only probes request prefill scores",
        "backend_abs_diff_mean, which compares with the trainer; the probe prefill-rescore",
    ),
    AbsentMetric(
        "len_mismatch",
        "a call with arrays of different lengths raises an error, and such a message counts as invalid: no metric "
        "includes them",
        "the hub's counter invalid; the join reports sequences of another length than their rollout "
        "(overlong, truncated)",
    ),
)
