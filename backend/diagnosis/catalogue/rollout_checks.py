"""The checks of rollout logprobs against the trainer, as data. Imports nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import BET, DETERMINISTIC, LEVEL, MEAN, Check

REPEATED = (
    "10 % of {}, and at least 2, in the newest step or in several; or any number in 3 steps with fewer than 3 clean "
    "ones between two"
)

CHECKS: tuple[Check, ...] = (
    Check(
        name="mean_ratio",
        title="mean ratio",
        outcomes=("calibrated", "above", "below"),
        meaning={
            "above": "the mean of exp(d) is above 1: rollout logprobs are not those that were sampled from",
            "below": ("the mean of exp(d) is below 1: part of the trainer's distribution could not be sampled"),
        },
        on=(
            "all tokens, at any lag; version-matched tokens: old logprobs under the version that sampled, or "
            "tokens of lag 0"
        ),
        formula="wealth = product of 1 + stake (exp(d) - 1), exp(d) clamped to 21; its expectation is 1",
        rate=BET + "; below 1 if ratios beyond 21 add nothing to the mean",
        source="E[pi / mu] = 1 over samples of mu; betting: Waudby-Smith and Ramdas 2024",
        by_engine=True,
        detail="for above: old if the mean ratio of version-matched tokens is certainly 1, else all",
    ),
    Check(
        name="sign",
        title="sign of the mean gap",
        outcomes=("lognormal", "positive", "too_negative"),
        meaning={
            "positive": ("the mean of d is above 0, which no difference between policies causes"),
            "too_negative": "the mean of d is further below 0 than its spread explains",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without any, all"
        ),
        formula="mean d > 0.001; mean d < -2 mean d^2 - 0.001; of 500 tokens or more",
        rate=MEAN,
        source="Jensen: E[d] <= 0; for small d, E[d] = -E[d^2] / 2",
        by_engine=True,
    ),
    Check(
        name="one_sided",
        title="d of one sign only",
        outcomes=("both", "negative", "positive"),
        meaning={
            "negative": ("d is never above 0 and never below a bound: a truncation that the trainer does not apply"),
            "positive": "d is never below 0",
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "sequences with d beyond 0.001 (or tokens beyond 0.02) on one side against those on the other, as tosses "
            "of a coin with uniform bias; the other side 1 % or less"
        ),
        rate=BET,
        source="for top-p, log top_p <= d <= 0; TRL, issue 6789",
        by_engine=True,
        detail="for negative: exp(smallest d), a lower bound on the kept share of probability",
    ),
    Check(
        name="calibration",
        title="frequency of unlikely tokens",
        outcomes=("calibrated", "sharper", "flatter", "truncated"),
        meaning={
            "sharper": "tokens are sampled from a sharper distribution than the trainer's",
            "flatter": "tokens are sampled from a flatter distribution than the trainer's",
            "truncated": ("where the trainer is nearly sure, unlikely tokens are never sampled: they are cut off"),
        },
        on="all tokens where the trainer's entropy is below 0.4; needs its entropy",
        formula=(
            "number of sampled tokens other than the likeliest, against the sum of (1 - p) / p over the likeliest. "
            "Sharper, flatter: beyond 30 %, more with a lag above 2 or if the entropy has changed since. Truncated: "
            "2 % or less of 60 expected or more"
        ),
        rate=BET,
        source="Horvitz and Thompson 1952",
        by_engine=True,
        detail="sampled unlikely tokens, as a share of those expected",
    ),
    Check(
        name="nll_minus_entropy",
        title="NLL minus entropy",
        outcomes=("equal", "below", "above"),
        meaning={
            "below": (
                "sampled tokens are likelier under the trainer than its entropy allows: sampled sharper, or truncated"
            ),
            "above": ("sampled tokens are less likely under the trainer than its entropy says: sampled flatter"),
        },
        on="all tokens, at any lag; needs the trainer's entropy",
        formula=(
            "wealth = product of 1 + stake u, u = exp(d) (-trainer - entropy) clamped to 20; the expectation of u is 0"
        ),
        rate=BET,
        source="E[pi / mu (-log pi)] = H(pi) over samples of mu",
        by_engine=True,
    ),
    Check(
        name="alignment",
        title="alignment with tokens",
        outcomes=("aligned", "shifted"),
        meaning={"shifted": "rollout logprobs fit the trainer's logprobs of another token"},
        on="all tokens",
        formula=(
            "mean |trainer - rollout displaced by -2 to 2 tokens|. Shifted: one is below a quarter of that in place, "
            "and half of it in the step before; of 200 tokens or more"
        ),
        rate=LEVEL,
        source="prime-rl, issue 1525; ms-swift, issue 8196",
        by_engine=True,
        detail="tokens by which rollout logprobs are late, as +1",
    ),
    Check(
        name="slope",
        title="gap by NLL minus entropy",
        outcomes=("flat", "sharper", "flatter"),
        meaning={
            "sharper": ("the trainer's distribution is sharper, as with a temperature below the rollout's"),
            "flatter": "the trainer's distribution is flatter, as with a temperature above the rollout's",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, where "
            "there is a gap; needs the trainer's entropy"
        ),
        formula=(
            "slope of d on e = -rollout - entropy is 1 - (rollout T / trainer T); reported if e explains 85 % of d^2, "
            "unless d has only the sign of unlikely tokens"
        ),
        rate=MEAN,
        source="log p_T = log p / T - log Z; TRL, issue 4159",
        by_engine=True,
        detail="rollout temperature over trainer temperature",
    ),
    Check(
        name="repetition",
        title="gap of repeated tokens",
        outcomes=("alike", "disfavoured", "favoured"),
        meaning={
            "disfavoured": (
                "tokens that occur earlier in their context are less likely in the rollout, as with a penalty"
            ),
            "favoured": "such tokens are likelier in the rollout",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; 64 rows"
            " of a message"
        ),
        formula=("mean d of tokens that occur earlier in their prompt or answer minus that of the others, beyond 0.01"),
        rate=MEAN,
        source="vLLM applies penalties to logits before it records logprobs",
        by_engine=True,
        mild=("disfavoured", "favoured"),
    ),
    Check(
        name="copies",
        title="the trainer's copies of rollout logprobs",
        outcomes=(
            "equal",
            "shifted",
            "zero_filled",
            "padded",
            "clamped",
            "cast",
            "recomputed",
            "changed",
            "unrecorded",
            "other_row",
            "likeliest",
            "scaled",
        ),
        meaning={
            "shifted": "each value is that of another token",
            "zero_filled": "0.0 replaces a logprob",
            "padded": "a filler replaces a logprob",
            "clamped": "low values are clamped to a bound",
            "cast": "rounded to 16 bits, or to some decimals",
            "recomputed": "recomputed, not copied",
            "changed": "changed by no known rule",
            "unrecorded": "engines recorded no logprobs",
            "other_row": "those of another row of the step",
            "likeliest": "those of the likeliest token at each position, not of the sampled one",
            "scaled": "times one number",
        },
        on="joined rows of the last 3 steps",
        formula=REPEATED.format("an engine's copies"),
        rate=DETERMINISTIC,
        source="rltop.backend.join.copies",
        by_engine=True,
        detail="the kind, as rltop.backend.join.copies names it",
    ),
    Check(
        name="record",
        title="recorded logprobs",
        outcomes=("clean", "zeros", "fillers", "broken", "uniform"),
        meaning={
            "zeros": "0.0 where the trainer's logprob is far below",
            "fillers": "NaN, infinity or -9999, in the rollout's logprobs or in the trainer's",
            "broken": "an engine recorded NaN or infinity",
            "uniform": "an engine recorded one low value throughout: -log of the number of tokens, as without weights",
        },
        on="all tokens of the last 3 steps",
        formula=(
            "0.0 where the trainer is below -0.5; not finite, or -9998 and below; 1 % of tokens, and at least 3, or "
            "fillers in each of 3 steps. Broken: any rollout of the last 20 steps. Uniform: as join"
        ),
        rate=DETERMINISTIC,
        source="vime, issue 70; vLLM writes -9999 where it has none",
        by_engine=True,
    ),
    Check(
        name="join",
        title="join of rows with rollouts",
        outcomes=("joined", "unjoined", "retokenised", "other_prompt", "cut", "end_lost", "other_version"),
        meaning={
            "unjoined": "rows have no rollout",
            "retokenised": "rows have other tokens than were sampled",
            "other_prompt": "rows have another prompt than the engine had",
            "cut": "rows end before their rollout does",
            "end_lost": "rows lack the last tokens, with which the engine stopped",
            "other_version": "the trainer states other policy versions than the engine",
        },
        on="rows of the last 3 steps",
        formula=REPEATED.format("rows") + ". Rows without a rollout, and cut ones: only from 10 %",
        rate=DETERMINISTIC,
        source="rltop.backend.join.reasons; TRL, issue 5224",
        detail="the reason, as rltop.backend.join.reasons or rltop.backend.join.violations names it",
        by_engine=True,
        mild=("cut",),
    ),
    Check(
        name="mask",
        title="tokens in the loss",
        outcomes=("sampled", "unsampled"),
        meaning={"unsampled": "the loss includes tokens that no engine sampled"},
        on="all tokens of the last 3 steps",
        formula="10 % of tokens are in no rollout; or rows that go on after their rollout, as join",
        rate=DETERMINISTIC,
        source="rllm, issue 816",
    ),
)
