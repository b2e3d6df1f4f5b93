"""The structure of the table of causes. Pure data.

A symptom is a check and one of its outcomes, ``mean_ratio above``, optionally with the detail of the finding,
``facts differs=dtype``. Alternatives are written ``mean_ratio above | nll_minus_entropy below``. Checks are those of
``rltop.backend.diagnosis.catalogue.all_checks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from rltop.backend.api.verdict import Finding

GAP = (
    "sign too_negative", "calibration sharper", "calibration flatter", "nll_minus_entropy below",
    "nll_minus_entropy above", "position grows", "position falls", "position step", "tail heavy",
    "batch_load grows", "fit frozen", "fit partial", "fit late", "fit rounding", "fit constant",
    "repetition favoured", "repetition disfavoured", "in_flight after_worse", "in_flight before_worse",
    "repeat_engine differs", "lag high=hurts",
)  # fmt: skip
"""Symptoms that any gap may show. They distinguish only causes that need them or are excluded by them."""

RECORD_GAP = (
    *GAP, "mean_ratio above", "mean_ratio below", "sign positive", "one_sided positive", "one_sided negative",
    "calibration truncated", "floor rounding", "floor above", "slope sharper", "slope flatter", "trend jump",
    "trend ramp", "engine_gap outlier", "cache_gap hit_worse", "cache_gap miss_worse", "turn_gap later_worse",
    "turn_gap first_worse",
    "logit_lattice engine_coarse", "logit_lattice trainer_coarse",
)  # fmt: skip
"""Symptoms of wrong rollout logprobs, which affect every figure that is computed from them."""


@dataclass(frozen=True)
class Variant:
    """A form of a cause that a finding shows.

    Attributes:
        symptom: one of the cause's symptoms, with the detail that identifies the form.
        what, remedy: effect and fix, in place of the cause's own.
    """

    symptom: str
    what: str
    remedy: str


@dataclass(frozen=True)
class CauseEntry:
    """A cause of faults in runs.

    Attributes:
        code: a letter for the family, and a number.
        id: a readable slug.
        layer: one of ``verdict.LAYERS``.
        title: a short description.
        what: its effect on the run, in a sentence.
        needs: symptoms that it always shows, if their checks have a result.
        proof: symptoms without which it is not named: it has even odds at most until they are seen. It is ruled out if
            the checks of one, probes aside, say otherwise. For causes that would else be what is left for every gap.
        may: symptoms that it shows in some runs; other findings are chance.
        against: symptoms that rule it out.
        where: features that the run must have, as conditions on facts (``holds``): ``speculative not none``.
        shaped_by: sampling parameters, one of which must have an effect. It is ruled out if all engines state that none
            has, and improbable if they state it of some.
        one_engine: it affects some engines, never all. all_engines: it affects all engines.
        probe: code of the probe that distinguishes it from causes with the same symptoms.
        confusable_with: ids of causes that can have the same symptoms; one of the two names the other.
        remedy: the fix, as options and commands; the immediate one first.
        command: the rltop command that applies it live, if any; ``{engines}`` stands for the option of engines.
        variants: forms that findings distinguish; the first that one shows replaces effect and fix.
        source: issue threads (``vllm#1``), papers, or ``rl-on-cpu`` for own measurements.
    """

    code: str
    id: str
    layer: str
    title: str
    what: str
    needs: tuple[str, ...]
    proof: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    shaped_by: tuple[str, ...] = ()
    one_engine: bool = False
    all_engines: bool = False
    probe: str = ""
    confusable_with: tuple[str, ...] = ()
    remedy: str = ""
    command: str = ""
    variants: tuple[Variant, ...] = ()
    source: str = ""


def as_shown(entry: CauseEntry, findings: Iterable[Finding]) -> CauseEntry:
    """The entry with effect and fix of the form that the findings show."""
    shown = [(finding.test, finding.outcome, finding.detail) for finding in findings]
    for variant in entry.variants:
        check, _, rest = variant.symptom.partition(" ")
        outcome, _, detail = rest.partition("=")
        if any((check, outcome) == (test, word) and detail in ("", of) for test, word, of in shown):
            return replace(entry, what=variant.what, remedy=variant.remedy)
    return entry


@dataclass(frozen=True)
class ConfirmingProbe:
    """An experiment that distinguishes causes.

    Attributes:
        code: in the catalogue.
        name: as typed in commands, and in a diagnosis.
        does: its method.
        runs: the command that runs it; empty if it is manual.
        unless: conditions on facts (``holds``), under any of which no engine can run it.
        engines: number of engines that it needs.
    """

    code: str
    name: str
    does: str
    runs: str = ""
    unless: tuple[str, ...] = ()
    engines: int = 1


@cache
def alternatives(symptom: str) -> tuple[tuple[str, str], ...]:
    """The alternatives of a symptom, as (check, outcome)."""
    pairs = []
    for part in symptom.split("|"):
        check, _, outcome = part.strip().partition(" ")
        pairs.append((check, outcome.strip()))
    return tuple(pairs)


def holds(condition: str, facts: Iterable[Mapping[str, str]]) -> bool | None:
    """Whether a condition of ``where`` holds for any engine or the trainer; None if the fact is not stated.

    ``F is a|b``: the fact is one of these. ``F not a``: it is none of these. ``F has a|b``: it contains one of these.
    """
    name, word, rest = condition.split(" ", 2)
    wanted = rest.split("|")
    stated = [of[name].lower() for of in facts if name in of]
    if not stated:
        return None
    match word:
        case "is":
            return any(value in wanted for value in stated)
        case "not":
            return any(value not in wanted for value in stated)
        case "has":
            return any(part in value for value in stated for part in wanted)
    raise ValueError(f"{condition!r}: expected is, not or has")
