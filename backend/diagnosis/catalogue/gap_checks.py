"""The tests of where and how large the gap is, as data. Loads nothing heavy."""

from __future__ import annotations

from rltop.backend.diagnosis.catalogue.check import LEVEL, MEAN, Check

TESTS: tuple[Check, ...] = (
    Check(
        name="floor",
        title="matched gap against the floor",
        outcomes=(
            "at_floor",
            "rounding",
            "above",
        ),
        meaning={
            "rounding": (
                "above what the declared dtypes imply, from the first step on, and no more than 16 "
                "bits somewhere would make"
            ),
            "above": ("above what rounding makes: other weights, another context or another distribution"),
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "root of mean d d over mean 1 - p: 0.004 for float32 on both sides, 0.05 for 16 bits, 0.5 for 8; or what"
            " was measured at 1 (0.0022, 0.041, 0.34) over a temperature below it; or ten times that of the run's first"
            " 32 sequences where it is lower (down to a hundredth); rounding up to 0.09, or over such a temperature; by"
            " d d, |d|, tokens beyond a bound (Chebyshev), |d| of tokens after an update, and a bet on the share of"
            " sequences with a |d| beyond 0.001, of which 2 % may have one"
        ),
        rate=MEAN + "; the bet needs neither",
        source="of logit noise s: E d d = s s (1 - sum p p); Fast-LLM, pull 525 (measured by dtypes)",
        by_engine=True,
    ),
    Check(
        name="fit",
        title="which version the record fits",
        outcomes=(
            "matches",
            "frozen",
            "partial",
        ),
        meaning={
            "frozen": ("the record fits weights many versions older than its label: updates do not arrive"),
            "partial": "it fits no version: part of the weights or of the context is old",
        },
        on=("version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0"),
        formula=(
            "matched k3 over the k3 that the trainer's own weights move per version of lag: versions behind, "
            "its root where it is more than the lag; frozen: 1 or more, and 0.2 of the steps since it began; without "
            "old logprobs by the k3 of lagging tokens before the gap: 1 or more, and 0.1 of the steps, without the "
            "root; partial: half of that or less"
        ),
        rate=MEAN + "; which of the two is an estimate",
        source="k3 goes with lag to lag^2",
        by_engine=True,
        detail="about how many versions",
    ),
    Check(
        name="position",
        title="position",
        outcomes=(
            "flat",
            "grows",
            "falls",
            "step",
        ),
        meaning={
            "grows": "the gap grows with the position",
            "falls": "it is largest at the first tokens",
            "step": "it steps up at one position",
        },
        on="version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0",
        formula=(
            "d d per room 1 - p, by position: slope of its log on log position beyond 5 errors and 0.5; or 9 "
            "times as large from one position on, in both halves of the run"
        ),
        rate=LEVEL,
        source="vLLM, issue 54035 (a step at 97); modalities, issue 462 (bfloat16 rotary tables)",
        detail="of step: the position",
        mild=(
            "grows",
            "falls",
            "step",
        ),
    ),
    Check(
        name="trend",
        title="course over steps",
        outcomes=(
            "steady",
            "jump",
            "ramp",
        ),
        meaning={"jump": "the matched gap rose at one step and stayed", "ramp": "it grows with the step"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without"
            " any, k3 of all"
        ),
        formula=(
            "as floor, with twice the size of the first step that has any as the bound where that is larger; ramp: of"
            " 6 steps or more the later half is twice the earlier; unknown where k3 is above four times that of steps"
            " 1 to 5, and 0.005: so is a larger learning rate's"
        ),
        rate=MEAN,
        source="SkyRL, issue 1680; NeMo-RL, issue 3839",
        by_engine=True,
    ),
    Check(
        name="lag_slope",
        title="lag regression",
        outcomes=(
            "flat",
            "grows",
        ),
        meaning={"grows": "the gap grows with the lag: ordinary staleness"},
        on="all tokens of known lag",
        formula="slope of mean k3 on lag, weighted, beyond 5 errors",
        rate=LEVEL,
        source="k3 of lagging weights: d theta F d theta / 2",
        mild=("grows",),
    ),
    Check(
        name="engine_gap",
        title="engines against each other",
        outcomes=(
            "alike",
            "outlier",
        ),
        meaning={"outlier": "this engine's gap is not that of the others"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0; without"
            " any, k3 of all at equal lags, of three steps or more"
        ),
        formula=(
            "log ratio of mean |d| (k3) of one engine and the others, beyond a factor of 1.5; what dtypes imply is"
            " added to both, or the floor's bound where the others are below it"
        ),
        rate=MEAN,
        source="vime, issue 66; a ratio test, as a fleet has few engines",
        by_engine=True,
        detail="matched or all",
    ),
    Check(
        name="cache_gap",
        title="cache hits against misses",
        outcomes=(
            "alike",
            "hit_worse",
            "miss_worse",
        ),
        meaning={
            "hit_worse": "requests that read the prefix cache have the larger gap",
            "miss_worse": "requests that did not read it have",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, of 8 "
            "sequences of either kind"
        ),
        formula=(
            "log ratio of mean |d|, beyond a factor of 1.5; the floor's bound is added to both, or what dtypes imply;"
            " alike where the 95 % interval is within a factor of 2"
        ),
        rate=MEAN,
        source="NeMo-RL, issue 4018; lmdeploy, issue 4917",
        detail="of worse: alone where no other matched token has a gap, else elsewhere too",
    ),
    Check(
        name="tail",
        title="tail",
        outcomes=(
            "light",
            "heavy",
        ),
        meaning={"heavy": "a few tokens make the gap"},
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, where "
            "there is a gap"
        ),
        formula="k3 / (pi / 4 mean |d|^2) beyond 4, and 1 % of tokens beyond a factor of 2",
        rate=LEVEL,
        source="of a normal k3 = pi / 4 mean |d|^2; NeMo-RL, issue 2590",
        mild=("heavy",),
    ),
    Check(
        name="logit_lattice",
        title="lattice of logits",
        outcomes=(
            "alike",
            "engine_coarse",
            "trainer_coarse",
        ),
        meaning={
            "engine_coarse": "the engine's logits are in bfloat16 and the trainer's are not",
            "trainer_coarse": "the trainer's logits are in bfloat16 and the engine's are not",
        },
        on=(
            "pairs of different tokens after equal contexts, as answers to one prompt begin; 30 or more of "
            "the last 10 steps"
        ),
        formula=(
            "share of differences that are multiples of 2^-8 (times the temperature, too): half or more, "
            "against 10 % or less"
        ),
        rate=LEVEL + "; by chance one float32 pair in 200 is on the grid, and 15 of 30 with 1e-26",
        source="bfloat16 has 8 significant bits; vLLM, pull 48390",
        by_engine=True,
    ),
    Check(
        name="batch_load",
        title="load",
        outcomes=(
            "flat",
            "grows",
        ),
        meaning={"grows": "the gap grows with the batch"},
        on="not computed: collectors do not take the size of the batch that sampled a token",
        formula="",
        rate=LEVEL,
        source="vLLM, issue 51187",
    ),
    Check(
        name="in_flight",
        title="before and after an update within a request",
        outcomes=(
            "alike",
            "after_worse",
            "before_worse",
        ),
        meaning={
            "after_worse": "tokens after an update within their request have the larger gap",
            "before_worse": "tokens before it have",
        },
        on=(
            "version-matched tokens: old logprobs under the version that sampled, or tokens of lag 0, of "
            "requests that an update fell into"
        ),
        formula="as cache_gap",
        rate=MEAN,
        source="NeMo-RL, issue 3839; vLLM, issue 54443",
        detail="as cache_gap",
        mild=(
            "after_worse",
            "before_worse",
        ),
    ),
    Check(
        name="repeat",
        title="the trainer against itself",
        outcomes=(
            "same",
            "differs",
        ),
        meaning={"differs": "the trainer gives equal tokens after equal contexts different logprobs"},
        on="first 8 tokens of rows of one prompt in one step that begin alike",
        formula=(
            "root mean square about the mean of the group, beyond twice the floor for the room 1 - p of matched "
            "tokens; of 16 degrees of freedom of the last 3 steps"
        ),
        rate=LEVEL,
        source="reef, issue 536 (dropout); TRL, issue 6789 (micro-batches)",
    ),
    Check(
        name="repeat_engine",
        title="an engine against itself",
        outcomes=(
            "same",
            "differs",
        ),
        meaning={"differs": ("an engine gave equal tokens after equal contexts different logprobs under one version")},
        on="likewise, of one engine and version",
        formula="likewise",
        rate=LEVEL,
        source="vLLM, issue 51187 (batches)",
        by_engine=True,
        mild=("differs",),
    ),
)
