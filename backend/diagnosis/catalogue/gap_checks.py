"""The checks of the size and location of the gap, as data. Imports nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import LEVEL, MEAN, Check

CHECKS: tuple[Check, ...] = (
    Check(
        name="floor",
        title="version-matched gap against its bound",
        outcomes=("at_floor", "rounding", "above"),
        meaning={
            "rounding": (
                "above the bound of the stated dtypes from the first step on, and no more than rounding to "
                "16 bits causes"
            ),
            "above": ("more than rounding: other weights, another context or another distribution"),
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "normalised RMS gap (|d| / sqrt(1-p)). Bound: 0.004 for float32 on both sides, 0.05 for 16 bits, 0.5 for "
            "8 bits; or the value measured at temperature 1 (0.0022, 0.041, 0.34) divided by a lower temperature, if "
            "larger; or ten times that of the run's first 32 sequences, if lower (down to a hundredth). Rounding: up "
            "to 0.09, divided by such a temperature. Evidence: d^2, |d|, tokens beyond a bound (Chebyshev), |d| of "
            "tokens after an update, and a bet on the share of sequences with |d| beyond 0.001, allowed in 2 %"
        ),
        rate=MEAN + "; the bet needs no assumption",
        source="for logit noise s: E d^2 = s^2 (1 - sum p^2); Fast-LLM, pull 525 (measured by dtypes)",
        by_engine=True,
        detail="for above: 16 bits if the gap is no more than rounding to 16 bits causes",
    ),
    Check(
        name="fit",
        title="weight version that rollout logprobs fit",
        outcomes=("matches", "frozen", "partial", "late", "rounding", "constant"),
        meaning={
            "frozen": "the gap grows as far as the trainer moves: updates do not arrive",
            "partial": "the gap grows, by less: part of the weights or of the context is stale",
            "late": "the gap is constant and of some updates: weights are older than their label",
            "rounding": "the gap is constant, of the size of rounding, and small against an update",
            "constant": "the gap is constant, of some updates and of the size of rounding",
        },
        on=("version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0"),
        formula=(
            "version-matched k3 against the trainer's drift in k3 per update (without old logprobs: k3 of lagging "
            "tokens before the gap). It grows if the slope of its log on that of the steps since it began is above "
            "0.5 by 2 standard errors; it is constant if below, over 10 steps or more. Frozen: a quarter or more of "
            "the drift added up since it began, 0.4 or more after the first update, and it grows or is 5 updates or "
            "more. Partial: it grows, and is a tenth or less. If it is constant, below a quarter, and in 90 % of the "
            "sequences: late, at least half an update and more than rounding to 16 bits causes; rounding, less of "
            "both; constant, an update and no more than rounding"
        ),
        rate=MEAN + "; the course is an estimate",
        source="k3 grows between linearly and quadratically with the lag",
        by_engine=True,
        detail="estimated number of versions, if old logprobs measure it",
    ),
    Check(
        name="position",
        title="gap by position",
        outcomes=("flat", "grows", "falls", "step"),
        meaning={
            "grows": "the gap grows with the position",
            "falls": "the gap is largest at the first tokens",
            "step": "the gap steps up at one position",
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "d^2 / (1 - p) by position: slope of its log on log position beyond 5 errors and 0.5; or 9 times as large "
            "from one position on, in both halves of the run"
        ),
        rate=LEVEL,
        source="vLLM, issue 54035 (a step at 97); modalities, issue 462 (bfloat16 rotary tables)",
        detail="for step: the position",
        mild=("grows", "falls", "step"),
    ),
    Check(
        name="trend",
        title="gap over steps",
        outcomes=("steady", "jump", "ramp"),
        meaning={"jump": "the gap rose at one step and stayed", "ramp": "the gap grows with the step"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without"
            " any, k3 of all"
        ),
        formula=(
            "as floor, with twice the gap of the first step as the bound, if larger. Ramp: over 6 steps or more, the "
            "later half is twice the earlier. Unknown if k3 of all tokens is above four times that of steps 1 to 5, "
            "and 0.005, as a larger learning rate also causes"
        ),
        rate=MEAN,
        source="SkyRL, issue 1680; NeMo-RL, issue 3839",
        by_engine=True,
    ),
    Check(
        name="lag_slope",
        title="gap by lag",
        outcomes=("flat", "grows"),
        meaning={"grows": "the gap grows with the lag: ordinary staleness"},
        on="all tokens of known lag",
        formula="weighted regression of mean k3 on lag: slope beyond 5 errors",
        rate=LEVEL,
        source="k3 of lagging weights: dθᵀ F dθ / 2",
        mild=("grows",),
    ),
    Check(
        name="engine_gap",
        title="gap of each engine against the others",
        outcomes=("alike", "outlier"),
        meaning={"outlier": "this engine has a larger gap than the others"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without"
            " any, k3 of all tokens at equal lags, of three steps or more"
        ),
        formula=(
            "log ratio of mean |d| (k3) of one engine and the others, beyond a factor of 1.5; the bound of the dtypes"
            " is added to both, or that of floor if the others are below it"
        ),
        rate=MEAN,
        source="vime, issue 66; a ratio test, since a fleet has few engines",
        by_engine=True,
        detail="matched or all",
    ),
    Check(
        name="cache_gap",
        title="prefix-cache hits against misses",
        outcomes=("alike", "hit_worse", "miss_worse"),
        meaning={
            "hit_worse": "requests that hit the prefix cache have the larger gap",
            "miss_worse": "requests that missed it have the larger gap",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, of 8 "
            "sequences of each kind"
        ),
        formula=(
            "log ratio of mean |d|, beyond a factor of 1.5; the bound of floor, or of the dtypes, is added to both."
            " Alike: the 95 % interval is within a factor of 2"
        ),
        rate=MEAN,
        source="NeMo-RL, issue 4018; lmdeploy, issue 4917",
        by_engine=True,
        detail="for worse: alone if no other matched token has a gap, else elsewhere too",
    ),
    Check(
        name="tail",
        title="tail of the gap",
        outcomes=("light", "heavy"),
        meaning={"heavy": "few tokens make up the gap"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, if there is a gap"
        ),
        formula="k3 / (pi / 4 mean |d|^2) beyond 4, and 1 % of tokens beyond a factor of 2",
        rate=LEVEL,
        source="for a normal d, k3 = pi / 4 mean |d|^2; NeMo-RL, issue 2590",
        mild=("heavy",),
    ),
    Check(
        name="logit_lattice",
        title="bfloat16 grid of logits",
        outcomes=("alike", "engine_coarse", "trainer_coarse"),
        meaning={
            "engine_coarse": "the engine's logits are in bfloat16 and the trainer's are not",
            "trainer_coarse": "the trainer's logits are in bfloat16 and the engine's are not",
        },
        on=(
            "pairs of different tokens after equal contexts, such as first tokens of answers to one prompt; 30 or "
            "more in the last 10 steps"
        ),
        formula=(
            "share of differences that are multiples of 2^-8, as they are or times the temperature: half or more on "
            "one side, 10 % or less on the other"
        ),
        rate=LEVEL + "; by chance one float32 pair in 200 is on the grid, and 15 of 30 with p 1e-26",
        source="bfloat16 has 8 significant bits; vLLM, pull 48390",
        by_engine=True,
    ),
    Check(
        name="batch_load",
        title="gap by batch size",
        outcomes=("flat", "grows"),
        meaning={"grows": "the gap grows with the batch"},
        on="not computed: collectors do not record the size of the batch that sampled a token",
        formula="",
        rate=LEVEL,
        source="vLLM, issue 51187",
    ),
    Check(
        name="in_flight",
        title="tokens before and after an update within a request",
        outcomes=("alike", "after_worse", "before_worse"),
        meaning={
            "after_worse": "tokens after an update within their request have the larger gap",
            "before_worse": "tokens before it have the larger gap",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, of "
            "requests that an update interrupted"
        ),
        formula="as cache_gap",
        rate=MEAN,
        source="NeMo-RL, issue 3839; vLLM, issue 54443",
        by_engine=True,
        detail="as cache_gap",
        mild=("after_worse", "before_worse"),
    ),
    Check(
        name="turn_gap",
        title="later turns against the first",
        outcomes=("alike", "later_worse", "first_worse"),
        meaning={
            "later_worse": "later turns of a sequence have the larger gap",
            "first_worse": "first turns have the larger gap",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, of sequences "
            "with text between turns"
        ),
        formula="as cache_gap; each turn counts as a sequence",
        rate=MEAN,
        source="TimeSearch-R, issue 7; slime, issue 2288",
        detail="as cache_gap",
    ),
    Check(
        name="repeat",
        title="repeated trainer logprobs",
        outcomes=("same", "differs"),
        meaning={"differs": "the trainer computes different logprobs for equal tokens after equal contexts"},
        on="first 8 tokens of rows of one prompt in one step, as far as the rows are equal",
        formula=(
            "RMS about the mean of the group, beyond twice the bound of floor for the mean 1 - p of matched tokens; "
            "of 16 degrees of freedom or more in the last 3 steps"
        ),
        rate=LEVEL,
        source="reef, issue 536 (dropout); TRL, issue 6789 (micro-batches)",
    ),
    Check(
        name="repeat_engine",
        title="repeated rollout logprobs",
        outcomes=("same", "differs"),
        meaning={
            "differs": ("an engine computed different logprobs for equal tokens after equal contexts under one version")
        },
        on="as repeat, of one engine and version",
        formula="as repeat",
        rate=LEVEL,
        source="vLLM, issue 51187 (batches)",
        by_engine=True,
        mild=("differs",),
    ),
)
