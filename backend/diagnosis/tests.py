"""The tests of a diagnosis, as data: what each asks, what it may answer, on what, how often it errs.

The first outcome of a test is the healthy one; any test may also say ``unknown``. Signs: ``d = trainer - rollout``,
nats, so a ``positive`` d is a token that the trainer finds likelier than the record says.
"""

from __future__ import annotations

from dataclasses import dataclass

UNKNOWN = "unknown"
"""Outcome of every test where there is too little data, or none; ``Finding.text`` says what is missing."""

ALPHA = 1e-6
"""How often a healthy run shows an alarming outcome of one test, over all its steps and engines. With the tests of the
table together a healthy run errs less than once in 10,000."""


@dataclass(frozen=True, slots=True)
class Test:
    """One question that is asked of a run.

    Attributes:
        name: as in ``Finding.test``.
        title: in a few words.
        outcomes: the words that it answers, the healthy one first.
        meaning: what each alarming outcome says, by outcome.
        on: what it is computed on.
        formula: the statistic, and what a healthy run has.
        rate: how often a healthy run gets an alarming outcome, and why.
        source: where it is from.
        by_engine: it is also asked of each engine alone (``Finding.engine``).
        detail: what ``Finding.detail`` holds, where it holds something.
        mild: outcomes that healthy runs may have too: they support a cause, and are none by themselves.
    """

    name: str
    title: str
    outcomes: tuple[str, ...]
    meaning: dict[str, str]
    on: str
    formula: str
    rate: str
    source: str
    by_engine: bool = False
    detail: str = ""
    mild: tuple[str, ...] = ()

    @property
    def healthy(self) -> str:
        """The outcome of a healthy run."""
        return self.outcomes[0]

    def alarms(self, outcome: str) -> bool:
        """Whether a healthy run does not have it."""
        return outcome not in (self.healthy, UNKNOWN, *self.mild)


TESTS: tuple[Test, ...] = (
    # --- the record against the trainer -------------------------------------------------------------------------------
    Test("T1", "mean ratio", ("calibrated", "above", "below"), {
        "above": "the record is not what was sampled from: the mean of exp(d) is above 1",
        "below": "the mean of exp(d) is below 1: part of the trainer's distribution could not be sampled",
    }, "", "", "", "", by_engine=True),
    Test("T2", "sign of the mean", ("lognormal", "positive", "too_negative"), {
        "positive": "the mean of d is above 0, which no difference of policies does to a true record",
        "too_negative": "the mean of d is further below 0 than its spread explains",
    }, "", "", "", "", by_engine=True),
    Test("T3", "one-sidedness", ("both", "negative", "positive"), {
        "negative": "d is never above 0 and never below a bound: a truncation that the trainer does not know",
        "positive": "d is never below 0",
    }, "", "", "", "", by_engine=True, detail="of negative: the share of probability kept, exp(smallest d)"),
    Test("T4", "calibration of the sampler", ("calibrated", "sharper", "flatter", "truncated"), {
        "sharper": "tokens are sampled from a sharper distribution than the trainer's",
        "flatter": "from a flatter one",
        "truncated": "where the trainer is nearly sure, other tokens are never sampled: they are cut off",
    }, "", "", "", "", by_engine=True, detail="others that were sampled, as a share of those due"),
    Test("T5", "entropy against surprisal", ("equal", "below", "above"), {
        "below": "sampled tokens are likelier under the trainer than its entropy allows: sampled sharper, or truncated",
        "above": "sampled tokens are less likely under the trainer than its entropy says: sampled flatter",
    }, "", "", "", "", by_engine=True),
    Test("T6", "alignment", ("aligned", "shifted"), {
        "shifted": "the record fits the trainer's logprobs of another token",
    }, "", "", "", "", by_engine=True, detail="by how many tokens, as +1"),
    Test("T7", "position", ("flat", "grows", "falls", "step"), {
        "grows": "the gap grows with the position", "falls": "it is largest at the first tokens",
        "step": "it steps up at one position",
    }, "", "", "", "", detail="of step: the position", mild=("grows", "falls", "step")),
    Test("T8", "course over steps", ("steady", "jump", "ramp", "pulse"), {
        "jump": "the matched gap rose at one step and stayed", "ramp": "it grows with the step",
        "pulse": "it rose for a few steps",
    }, "", "", "", "", by_engine=True),
    Test("T9", "lag regression", ("flat", "grows"), {
        "grows": "the gap grows with the lag: ordinary staleness",
    }, "", "", "", "", mild=("grows",)),
    Test("T10", "engines against each other", ("alike", "outlier"), {
        "outlier": "this engine's gap is not that of the others",
    }, "", "", "", "", by_engine=True),
    Test("T11", "cache hits against misses", ("alike", "hit_worse", "miss_worse"), {
        "hit_worse": "requests that read the prefix cache have the larger gap",
        "miss_worse": "requests that did not read it have",
    }, "", "", "", ""),
    Test("T12", "tail", ("light", "heavy"), {"heavy": "a few tokens make the gap"}, "", "", "", "", mild=("heavy",)),
    Test("T13", "lattice of logits", ("alike", "engine_coarse", "trainer_coarse"), {
        "engine_coarse": "the engine's logits are in bfloat16 and the trainer's are not",
        "trainer_coarse": "the trainer's logits are in bfloat16 and the engine's are not",
    }, "", "", "", "", by_engine=True),
    Test("T14", "load", ("flat", "grows"), {"grows": "the gap grows with the batch"}, "", "", "", ""),
    # --- beyond the fourteen -----------------------------------------------------------------------------------------
    Test("floor", "matched gap against the floor", ("at_floor", "rounding", "above"), {
        "rounding": "above what the declared dtypes imply, and no more than 16 bits somewhere would make",
        "above": "above what rounding makes: other weights, another context or another distribution",
    }, "", "", "", "", by_engine=True),
    Test("fit", "which version the record fits", ("matches", "frozen", "partial"), {
        "frozen": "the record fits weights many versions older than its label: updates do not arrive",
        "partial": "it fits no version: part of the weights or of the context is old",
    }, "", "", "", "", by_engine=True, detail="about how many versions behind its label"),
    Test("slope", "gap against surprisal", ("flat", "sharper", "flatter"), {
        "sharper": "the trainer's distribution is sharper than the record: as with a temperature below the record's",
        "flatter": "it is flatter than the record",
    }, "", "", "", "", by_engine=True),
    Test("in_flight", "before and after an update within a request", ("alike", "after_worse", "before_worse"), {
        "after_worse": "tokens after an update within their request have the larger gap",
        "before_worse": "tokens before it have",
    }, "", "", "", "", mild=("after_worse", "before_worse")),
    Test("repetition", "tokens that stand in their context already", ("alike", "disfavoured", "favoured"), {
        "disfavoured": "the record has them less likely than the trainer, more than others: as with a penalty",
        "favoured": "it has them likelier",
    }, "", "", "", "", by_engine=True),
    Test("repeat", "the trainer against itself", ("same", "differs"), {
        "differs": "the trainer gives equal tokens after equal contexts different logprobs",
    }, "", "", "", ""),
    Test("repeat_engine", "an engine against itself", ("same", "differs"), {
        "differs": "an engine gave equal tokens after equal contexts different logprobs under one version",
    }, "", "", "", "", by_engine=True, mild=("differs",)),
    # --- the record itself and its copy -------------------------------------------------------------------------------
    Test("copies", "the trainer's copy of the record", (
        "equal", "shifted", "zero_filled", "padded", "clamped", "cast", "recomputed", "changed", "unrecorded",
    ), {
        "shifted": "each value is that of another token", "zero_filled": "0.0 stands where a value was recorded",
        "padded": "a filler stands where a value was recorded", "clamped": "low values were raised to a bound",
        "cast": "rounded to 16 bits", "recomputed": "computed again, not copied", "changed": "changed by no rule",
        "unrecorded": "engines recorded no logprobs",
    }, "", "", "", "", by_engine=True, detail="the kind, as rltop.backend.join.copies names it"),
    Test("record", "fillers in the record", ("clean", "zeros", "fillers"), {
        "zeros": "0.0 stands in the record where the trainer's logprob is far below",
        "fillers": "NaN, infinity or -9999 stands in it",
    }, "", "", "", "", by_engine=True),
    Test("join", "rows against rollouts", ("joined", "unjoined", "retokenised", "other_prompt", "cut"), {
        "unjoined": "rows have no rollout", "retokenised": "rows have other tokens than were sampled",
        "other_prompt": "rows have another prompt than the engine had", "cut": "rows end before their rollout does",
    }, "", "", "", "", detail="the reason, as rltop.backend.join.unjoined names it", mild=("cut",)),
    Test("mask", "tokens in the loss", ("sampled", "unsampled"), {
        "unsampled": "tokens are in the loss that no engine sampled",
    }, "", "", "", ""),
    # --- facts --------------------------------------------------------------------------------------------------------
    Test("facts", "what is stated", ("agree", "differs", "shaped"), {
        "differs": "an engine computes with something else than the trainer or the other engines state",
        "shaped": "requests are sampled from a distribution that the trainer does not say it computes",
    }, "", "", "", "", by_engine=True, detail="the fact, as rltop.backend.fleet.facts names it", mild=("shaped",)),
    Test("versions", "weight versions", ("advance", "stuck"), {
        "stuck": "the engine's version stays while the trainer's moves on",
    }, "", "", "", "", by_engine=True),
    Test("lag", "age of what is trained on", ("steady", "high", "behind"), {
        "high": "tokens are many versions old on all engines", "behind": "its tokens are older than the others'",
    }, "", "", "", "", by_engine=True),
    # --- the objective ------------------------------------------------------------------------------------------------
    Test("entropy", "the trainer's entropy", ("steady", "falling", "collapsed", "rising"), {
        "falling": "it falls", "collapsed": "it has fallen to a few percent of what it was",
        "rising": "it rises without end",
    }, "", "", "", "", mild=("falling", "rising")),
    Test("reward", "reward", ("steady", "rising", "falling"), {"rising": "it rises", "falling": "it falls"},
         "", "", "", "", mild=("rising", "falling")),
    Test("gradient", "norm of the gradient", ("steady", "spike", "rising", "vanished"), {
        "spike": "single steps stand far above the rest", "rising": "it grows", "vanished": "it is 0",
    }, "", "", "", "", mild=("spike", "rising")),
    Test("clip", "clipped tokens", ("as_noise", "high"), {"high": "more is clipped than in the run's first steps"},
         "", "", "", "", mild=("high",)),
    # --- health -------------------------------------------------------------------------------------------------------
    Test("speed", "speed of engines", ("alike", "slow"), {"slow": "it takes longer for a token than the others"},
         "", "", "", "", by_engine=True),
    Test("aborts", "requests that were aborted", ("few", "many"), {"many": "many requests are aborted or failed"},
         "", "", "", "", by_engine=True),
    Test("truncation", "answers cut at the limit", ("few", "many"), {
        "many": "many answers reach the limit of tokens",
    }, "", "", "", "", mild=("many",)),
)  # fmt: skip

BY_NAME: dict[str, Test] = {test.name: test for test in TESTS}
