"""The tests of the record against the trainer, as data. Loads nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import BET, LEVEL, MEAN, STATED, Check

TESTS: tuple[Check, ...] = (
    Check(
        name="mean_ratio",
        title="mean ratio",
        outcomes=(
            "calibrated",
            "above",
            "below",
        ),
        meaning={
            "above": "the record is not what was sampled from: the mean of exp(d) is above 1",
            "below": ("the mean of exp(d) is below 1: part of the trainer's distribution could not be sampled"),
        },
        on=(
            "all tokens, at any lag; version-matched tokens: old logprobs under the version that sampled, or "
            "tokens of lag 0"
        ),
        formula="wealth = product of 1 + stake (exp(d) - 1), exp(d) held to 21; a true record expects 1",
        rate=BET + "; below 1 as far as ratios beyond 21 add nothing to the mean",
        source="E[pi / mu] = 1 over what mu sampled; betting: Waudby-Smith and Ramdas 2024",
        by_engine=True,
        detail="of above: old where the mean ratio of version-matched tokens is 1 for sure, else all",
    ),
    Check(
        name="sign",
        title="sign of the mean",
        outcomes=(
            "lognormal",
            "positive",
            "too_negative",
        ),
        meaning={
            "positive": ("the mean of d is above 0, which no difference of policies does to a true record"),
            "too_negative": "the mean of d is further below 0 than its spread explains",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without any, all"
        ),
        formula="mean d > 0.001; mean d < -2 mean d d - 0.001; of 500 tokens or more",
        rate=MEAN,
        source="Jensen: E[d] <= 0; of a small d E[d] = -E[d d] / 2",
        by_engine=True,
    ),
    Check(
        name="one_sided",
        title="one-sidedness",
        outcomes=(
            "both",
            "negative",
            "positive",
        ),
        meaning={
            "negative": ("d is never above 0 and never below a bound: a truncation that the trainer does not know"),
            "positive": "d is never below 0",
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "sequences with a d beyond 0.001 (or tokens beyond 0.02) on one side against those on the other, "
            "as tosses of a coin, its bias uniform; the other side 1 % or less"
        ),
        rate=BET,
        source="of top-p: log top_p <= d <= 0; TRL, issue 6789",
        by_engine=True,
        detail="of negative: exp(smallest d), the share of probability that is kept at least",
    ),
    Check(
        name="calibration",
        title="calibration of the sampler",
        outcomes=(
            "calibrated",
            "sharper",
            "flatter",
            "truncated",
        ),
        meaning={
            "sharper": "tokens are sampled from a sharper distribution than the trainer's",
            "flatter": "from a flatter one",
            "truncated": ("where the trainer is nearly sure, other tokens are never sampled: they are cut off"),
        },
        on="all tokens where the trainer's entropy is below 0.4; needs its entropy",
        formula=(
            "other tokens than the likeliest, against the sum of (1 - p) / p over the likeliest; sharper and "
            "flatter beyond 30 %, more with a lag above 2 or where the entropy has changed within it; truncated: 2 % "
            "or less of 60 due or more"
        ),
        rate=BET,
        source="Horvitz and Thompson 1952",
        by_engine=True,
        detail="others that were sampled, as a share of those due",
    ),
    Check(
        name="nll_minus_entropy",
        title="entropy against surprisal",
        outcomes=(
            "equal",
            "below",
            "above",
        ),
        meaning={
            "below": (
                "sampled tokens are likelier under the trainer than its entropy allows: sampled sharper, or truncated"
            ),
            "above": ("sampled tokens are less likely under the trainer than its entropy says: sampled flatter"),
        },
        on="all tokens, at any lag; needs the trainer's entropy",
        formula=(
            "wealth = product of 1 + stake u, u = exp(d) (-trainer - entropy) held to 20; a true record expects 0 of u"
        ),
        rate=BET,
        source="E over what mu sampled of pi / mu (-log pi) = H(pi)",
        by_engine=True,
    ),
    Check(
        name="alignment",
        title="alignment",
        outcomes=(
            "aligned",
            "shifted",
        ),
        meaning={"shifted": "the record fits the trainer's logprobs of another token"},
        on="all tokens",
        formula=(
            "mean |trainer - record displaced by -2 to 2 tokens|; shifted: one is below half of that in "
            "place, of 200 tokens or more"
        ),
        rate=LEVEL,
        source="prime-rl, issue 1525; ms-swift, issue 8196",
        by_engine=True,
        detail="by how many tokens the record is late, as +1",
    ),
    Check(
        name="slope",
        title="gap against surprisal",
        outcomes=(
            "flat",
            "sharper",
            "flatter",
        ),
        meaning={
            "sharper": (
                "the trainer's distribution is the record's to a power above 1: a temperature below the record's"
            ),
            "flatter": "to a power below 1",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, where "
            "there is a gap; needs the trainer's entropy"
        ),
        formula=(
            "slope of d on e = -record - entropy is 1 - power; told where 85 % of the squares of d go with e, "
            "unless d has one sign alone, and that of unlikely tokens"
        ),
        rate=MEAN,
        source="log p_T = log p / T - log Z; TRL, issue 4159",
        by_engine=True,
        detail="the power, trainer's over record's 1/T",
    ),
    Check(
        name="repetition",
        title="tokens that stand in their context already",
        outcomes=(
            "alike",
            "disfavoured",
            "favoured",
        ),
        meaning={
            "disfavoured": ("the record has them less likely than the trainer, more than others: as with a penalty"),
            "favoured": "it has them likelier",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; 64 rows"
            " of a message"
        ),
        formula=("mean d of tokens that stand in their prompt or answer already, less that of the others, beyond 0.01"),
        rate=MEAN,
        source="penalties are put on logits before they are recorded (vLLM)",
        by_engine=True,
        mild=(
            "disfavoured",
            "favoured",
        ),
    ),
    Check(
        name="copies",
        title="the trainer's copy of the record",
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
        ),
        meaning={
            "shifted": "each value is that of another token",
            "zero_filled": "0.0 stands where a value was recorded",
            "padded": "a filler stands where a value was recorded",
            "clamped": "low values were raised to a bound",
            "cast": "rounded to 16 bits",
            "recomputed": "computed again, not copied",
            "changed": "changed by no rule",
            "unrecorded": "engines recorded no logprobs",
        },
        on="joined rows of the last 3 steps",
        formula="10 % of an engine's copies, and 2 of them",
        rate=STATED,
        source="rltop.backend.join.copies",
        by_engine=True,
        detail="the kind, as rltop.backend.join.copies names it",
    ),
    Check(
        name="record",
        title="fillers in the record",
        outcomes=(
            "clean",
            "zeros",
            "fillers",
        ),
        meaning={
            "zeros": "0.0 stands in the record where the trainer's logprob is far below",
            "fillers": "NaN, infinity or -9999 stands in it",
        },
        on="all tokens of the last 3 steps",
        formula=("0.0 where the trainer is below -0.5; no number, or -9998 and below; 1 % of tokens and 3 of them"),
        rate=STATED,
        source="vime, issue 70; vLLM writes -9999 where it has none",
        by_engine=True,
    ),
    Check(
        name="join",
        title="rows against rollouts",
        outcomes=(
            "joined",
            "unjoined",
            "retokenised",
            "other_prompt",
            "cut",
        ),
        meaning={
            "unjoined": "rows have no rollout",
            "retokenised": "rows have other tokens than were sampled",
            "other_prompt": "rows have another prompt than the engine had",
            "cut": "rows end before their rollout does",
        },
        on="rows of the last 3 steps",
        formula="10 % of rows, and 2 of them",
        rate=STATED,
        source="rltop.backend.join.reasons; TRL, issue 5224",
        detail="the reason, as rltop.backend.join.reasons names it",
        mild=("cut",),
    ),
    Check(
        name="mask",
        title="tokens in the loss",
        outcomes=(
            "sampled",
            "unsampled",
        ),
        meaning={"unsampled": "tokens are in the loss that no engine sampled"},
        on="all tokens of the last 3 steps",
        formula="10 % of tokens are in no rollout",
        rate=STATED,
        source="rllm, issue 816",
    ),
)
