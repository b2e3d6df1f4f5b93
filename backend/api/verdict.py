"""What a diagnosis says: findings of tests, causes best first, the verdict. Pure data."""

from __future__ import annotations

import msgspec

HEALTHY, FAULT, UNDECIDED = "healthy", "fault", "undecided"
"""The verdicts. Undecided: something is off and no cause stands out, or there is too little data; see ``needs``."""

LAYERS = ("record", "semantic", "inference path", "weights", "trainer", "objective", "health")
"""Where a cause lies, in the order in which a person looks."""


class Finding(msgspec.Struct, frozen=True):
    """What one test says of a run, or of one of its engines.

    Attributes:
        test: a name of ``rltop.backend.diagnosis.catalogue.all_checks.TESTS`` (``mean_ratio`` ...).
        outcome: one of the words that the test declares; ``unknown`` where there is too little data or none.
        value: the statistic, in ``unit``, with its 95 % interval where there is one.
        p: how often a healthy run would show this, over the whole run so far; 1 where the outcome is the healthy one.
        since_step: the first step at which it holds, as well as that can be told; None of a healthy or unknown outcome.
        engine: of this engine alone; None of the run.
        tokens, sequences: that it was computed on.
        text: the evidence as a sentence with numbers.
        more_sequences: of an unknown outcome, about how many more would decide it; None where more would not help.
        detail: what exactly, where a test names one of many: a fact, a kind of copy, a number of tokens; see ``TESTS``.
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


class Cause(msgspec.Struct, frozen=True):
    """A cause that fits what was found.

    Attributes:
        id, code: a slug, and the cause's code in the table of causes (``A1``).
        layer: one of ``LAYERS``.
        title: what is wrong, in a few words; what: what it does to the run.
        confidence: 0 to 1, over all causes that were considered; those that can't be told apart share it.
        since_step: the first step at which it shows.
        engines: on which; empty of all.
        evidence: sentences with numbers, strongest first.
        confusable_with: ids of causes that fit as well.
        probe: the name of the probe that would tell; empty where none is needed.
        remedy: what to do: an option, a command, one of rltop's flags.
        command: the order of rltop that does it live, as one would type it; empty where there is none.
        in_place: that order where the engines have what it sets already, and ``command`` is empty.
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
    """What is wrong with a run as of a step, if anything.

    Attributes:
        run, step: which run, and the last step that was looked at; None before the first.
        verdict: healthy, fault or undecided.
        causes: best first; none of a healthy run.
        findings: of every test, the alarming ones first.
        needs: what would decide, in words with numbers: more sequences, a probe, something the trainer could pass.
        steps, tokens, sequences: that it was computed on.
        notes: what stands out and healthy runs may have too, with what it would be a sign of.
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
