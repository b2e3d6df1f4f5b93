"""What an entry of the table of causes is. Pure data.

A sign is a test and one of its outcomes, ``mean_ratio above``, with a finding's detail where that matters,
``facts differs=dtype``; several of which one will do are written ``mean_ratio above | nll_minus_entropy below``. The names are of
``rltop.backend.diagnosis.catalogue.all_checks.TESTS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

GAP = (
    "sign too_negative", "calibration sharper", "calibration flatter", "nll_minus_entropy below", "nll_minus_entropy above", "position grows", "position falls", "position step",
    "tail heavy", "batch_load grows", "fit frozen", "fit partial", "repetition favoured", "repetition disfavoured",
    "in_flight after_worse", "in_flight before_worse", "repeat_engine differs", "lag high=hurts",
)  # fmt: skip
"""What any gap may look like, whatever it is of: these tests tell causes apart by what needs them, and by what is
against them."""

RECORD_GAP = (
    *GAP, "mean_ratio above", "mean_ratio below", "sign positive", "one_sided positive", "one_sided negative", "calibration truncated", "floor rounding",
    "floor above", "slope sharper", "slope flatter", "trend jump", "trend ramp", "engine_gap outlier", "cache_gap hit_worse",
    "cache_gap miss_worse", "logit_lattice engine_coarse", "logit_lattice trainer_coarse",
)  # fmt: skip
"""A wrong record makes every figure that is measured against it wrong, in any way."""


@dataclass(frozen=True)
class CauseEntry:
    """One thing that goes wrong in runs.

    Attributes:
        code: as in the knowledge that the table is written from: a letter for the family, a number.
        id: a readable slug.
        layer: one of ``verdict.LAYERS``.
        title: what is wrong, in a few words.
        what: what it does to the run, in a sentence.
        needs: signs that it always shows, where their tests can be made.
        may: signs that it shows in some runs; what is in neither is chance to it.
        against: signs that rule it out.
        where: what the run must have for it, as conditions on facts (``holds``): ``speculative not none``.
        one_engine: what it needs shows on part of the engines only. all_engines: never on part of them alone.
        probe: a code of ``PROBES``: what tells it from those that show the same.
        confusable_with: ids of causes that can show the same signs; one of the two names the other.
        remedy: what to do, as options and commands; the first sentence is what is done at once.
        command: the order of rltop that does it on live engines; ``{engines}`` is where engines are named. Empty: none.
        source: who says so: issue threads (``vllm#1``), papers, or ``rl-on-cpu`` for what was measured here.
    """

    code: str
    id: str
    layer: str
    title: str
    what: str
    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    one_engine: bool = False
    all_engines: bool = False
    probe: str = ""
    confusable_with: tuple[str, ...] = ()
    remedy: str = ""
    command: str = ""
    source: str = ""


@dataclass(frozen=True)
class ConfirmingProbe:
    """One experiment that tells causes apart.

    Attributes:
        code: in the catalogue. name: as people type it, and as a diagnosis names it.
        does: what is done, and what to look at.
        runs: the order that runs it; empty where a person does it.
    """

    code: str
    name: str
    does: str
    runs: str = ""


@cache
def alternatives(sign: str) -> tuple[tuple[str, str], ...]:
    """The (test, outcome) pairs of a sign, any of which will do."""
    pairs = []
    for part in sign.split("|"):
        test, _, outcome = part.strip().partition(" ")
        pairs.append((test, outcome.strip()))
    return tuple(pairs)


def holds(condition: str, facts: Iterable[Mapping[str, str]]) -> bool | None:
    """Whether a condition of ``where`` holds of any engine or trainer; None where nobody states the fact.

    ``F is a|b``: the fact is one of these. ``F not a``: none of them. ``F has a|b``: one of them is part of it.
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
