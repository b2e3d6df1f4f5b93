"""A verdict: findings of checks, causes best first, missing evidence. Pure data."""

from __future__ import annotations

import msgspec

HEALTHY, FAULT, UNDECIDED = "healthy", "fault", "undecided"
"""The verdicts. Undecided: something is wrong and no cause stands out, or there is too little data; see ``needs``."""

LAYERS = ("record", "semantic", "inference path", "weights", "trainer", "objective", "health")
"""Where a cause lies, in the order in which to look."""

OLD_CHECK_IDS = {
    "T1": "mean_ratio", "T2": "sign", "T3": "one_sided", "T4": "calibration", "T5": "nll_minus_entropy",
    "T6": "alignment", "T7": "position", "T8": "trend", "T9": "lag_slope", "T10": "engine_gap", "T11": "cache_gap",
    "T12": "tail", "T13": "logit_lattice", "T14": "batch_load",
}  # fmt: skip
"""Former ids of checks, in verdicts of earlier versions; ``Finding`` replaces them."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check on a run, or on one of its engines.

    Attributes:
        test: id of the check (``rltop.backend.diagnosis.catalogue.all_checks``).
        outcome: one of the outcomes that the check declares; ``unknown`` if there is too little data.
        value: the statistic, in ``unit``, with its 95 % interval where there is one.
        p: probability that a healthy run shows this at any step so far; 1 for the healthy outcome.
        since_step: estimate of the first step with this outcome; None for a healthy or unknown one.
        engine: the engine, or None for the run.
        tokens, sequences: how much it was computed on.
        text: the evidence as a sentence with numbers.
        more_sequences: for an unknown outcome, about how many more would decide it; None if more would not help.
        detail: the subject, if the check has several: a fact, a kind of copy, a number of tokens.
    """

    test: str
    outcome: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    p: float = 1.0
    since_step: int | None = None
    engine: str | None = None
    tokens: int = 0
    sequences: int = 0
    text: str = ""
    more_sequences: int | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if self.test in OLD_CHECK_IDS:
            msgspec.structs.force_setattr(self, "test", OLD_CHECK_IDS[self.test])


class Cause(msgspec.Struct, frozen=True):
    """A cause that fits the findings.

    Attributes:
        id, code: a slug, and the cause's code in the table of causes (``A1``).
        layer: one of ``LAYERS``.
        title: what is wrong, in a few words; what: what it does to the run.
        confidence: 0 to 1, over all causes that were considered; causes that fit alike share it.
        since_step: the first step with a symptom.
        engines: affected engines; empty for all.
        evidence: sentences with numbers, strongest first.
        confusable_with: ids of causes that fit as well.
        probe: name of the probe that would distinguish them; empty if none is needed.
        remedy: the fix: an option, a command, one of rltop's flags.
        command: the rltop command that applies it live; empty if there is none.
        in_place: that command if the engines already have its value, and ``command`` is empty.
    """

    id: str
    code: str
    layer: str
    title: str
    what: str
    confidence: float
    since_step: int | None = None
    engines: list[str] = []
    evidence: list[str] = []
    confusable_with: list[str] = []
    probe: str = ""
    remedy: str = ""
    command: str = ""
    in_place: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """The diagnosis of a run as of a step.

    Attributes:
        run, step: the run, and the last step that was checked; None before the first.
        verdict: healthy, fault or undecided.
        causes: best first; empty for a healthy run.
        findings: of every check, the alarming ones first.
        needs: missing evidence: more sequences, a probe, something that the trainer could pass.
        steps, tokens, sequences: how much it was computed on.
        notes: unusual findings that healthy runs may have too, with the cause that they would point to.
    """

    run: str
    step: int | None
    verdict: str
    causes: list[Cause] = []
    findings: list[Finding] = []
    needs: list[str] = []
    steps: int = 0
    tokens: int = 0
    sequences: int = 0
    notes: list[str] = []
