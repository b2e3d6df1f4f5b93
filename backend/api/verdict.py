"""The result of a diagnosis: findings of checks, likely causes, the verdict. Pure data."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HEALTHY, FAULT, UNDECIDED = "healthy", "fault", "undecided"
"""The verdicts. Fault: one cause stands out. Undecided: there is a deviation without a cause that stands out, or too
little data; see ``needs``."""

SURE = 0.8
"""Least share of a cause that a verdict names as the fault, and of "nothing is wrong" for no fault: odds of 4 to 1."""

LAYERS = ("record", "semantic", "inference path", "weights", "trainer", "objective", "health")
"""Layers of causes, in the order in which a person looks."""

OLD_CHECK_IDS = {
    "T1": "mean_ratio", "T2": "sign", "T3": "one_sided", "T4": "calibration", "T5": "nll_minus_entropy",
    "T6": "alignment", "T7": "position", "T8": "trend", "T9": "lag_slope", "T10": "engine_gap", "T11": "cache_gap",
    "T12": "tail", "T13": "logit_lattice", "T14": "batch_load",
}  # fmt: skip
"""Former ids of checks, in verdicts of earlier versions; ``Finding`` replaces them."""


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check for a run, or for one of its engines.

    Attributes:
        test: id of the check (``rltop.backend.diagnosis.catalogue.all_checks``).
        outcome: one of the outcomes that the check declares; ``unknown`` with too little data or none.
        value: the statistic in ``unit``, with its 95 % interval ``low`` to ``high`` if there is one.
        p: probability that a healthy run shows this at any time so far; 1 for a healthy outcome.
        since_step: estimate of the first step at which it holds; None for a healthy or unknown outcome.
        engine: of this engine alone; None for the run.
        tokens, sequences: sample size.
        text: the evidence as a sentence with numbers.
        more_sequences: of an unknown outcome, approximate number of further sequences that would decide it; None if
            more would not help.
        detail: which one, if a check can find one of many: a fact, a kind of copy, a number of tokens; see ``TESTS``.
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
    """A cause that explains the findings.

    Attributes:
        id, code: a slug, and the cause's code in the table of causes (``A1``).
        layer: one of ``LAYERS``.
        title: the fault in a few words. what: its consequence for the run.
        confidence: 0 to 1, over all considered causes; indistinguishable causes share it.
        since_step: the first step that shows it.
        engines: affected engines; empty for all.
        evidence: sentences with numbers, strongest first.
        confusable_with: ids of causes that explain the findings equally well.
        probe: name of the probe that would decide between them; empty if none is needed.
        remedy: the fix: an option, a command, one of rltop's flags.
        command: the rltop command line that applies the fix live; empty if there is none.
        in_place: that command line if the engines already have the setting; ``command`` is then empty.
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
        run, step: the run and the last step considered; None before the first.
        verdict: healthy, fault or undecided.
        causes: most likely first; empty for a healthy run.
        findings: of every check, alarming ones first.
        needs: missing evidence, with numbers: more sequences, a probe, an argument that the trainer could pass.
        steps, tokens, sequences: sample size.
        notes: deviations that healthy runs also show, each with the fault that it could indicate.
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


class Fix(msgspec.Struct, frozen=True):
    """A fix and the causes that it cures.

    Attributes:
        command: the rltop command line that applies it live; empty if there is none.
        remedy: the fix in words, of its most likely cause.
        causes: the causes, most likely first. share: of these causes together, 0 to 1.
    """

    command: str
    remedy: str
    causes: list[Cause]
    share: float


def fixes(causes: Sequence[Cause]) -> list[Fix]:
    """The fixes of ``causes``: that of the largest joint share first, and of equal ones a live command."""
    groups: dict[tuple[str, str], list[Cause]] = {}
    for cause in causes:
        command = cause.command or cause.in_place
        groups.setdefault((command, "" if command else cause.remedy), []).append(cause)
    found = [
        Fix(group[0].command, group[0].remedy, group, min(sum(cause.confidence for cause in group), 1.0))
        for group in groups.values()
    ]
    return sorted(found, key=lambda fix: (-fix.share, not fix.command))


def family(causes: Sequence[Cause]) -> str:
    """The layers of ``causes``, most likely first: ``weights or inference path``."""
    return " or ".join(dict.fromkeys(cause.layer for cause in causes))


def percent(share: float) -> str:
    """A share in per cent; never 100 %."""
    return f"{min(100 * share, 99):.0f} %"


def shares(causes: Sequence[Cause]) -> str:
    """Each cause with its share: ``partial-update (B3) 47 %, stale-prefix-cache (C1) 23 %``."""
    return ", ".join(f"{cause.id} ({cause.code}) {percent(cause.confidence)}" for cause in causes)
