"""From findings to causes: what explains all that is alarming and is contradicted by nothing. Pure.

Every cause, and every two of them, is a hypothesis. To a hypothesis an alarming finding is certain where one of its
causes needs it, as likely as not (``MAYBE``) where one may show it, and chance where none knows of it: the finding's
own p. A cause is out where something it needs was looked for and is not there, or something stands against it. Beside
them stand two more: that nothing is wrong, to which everything is chance, and that the cause is not in the table.
Confidences are the hypotheses' shares; causes that explain the same share alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, UNKNOWN
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives
from rltop.backend.fleet.facts import FLAG_NAMES, FLEET

MAYBE = 0.5
"""Of what a cause may show or not; and of what it needs where the test has not spoken yet."""

UNSTATED = 0.02
"""Of a feature (adapters, experts, drafts) that a cause is of, where nobody states whether the run has it; and of a
fact that stands out, to a cause that it does not name."""

UNLISTED = 0.05
"""Of an alarming finding, to a cause that is not in the table: it might show anything, and any one seldom."""

TWO = 0.01
"""Of two faults at once, beside one."""

PLACES = ("in_flight",)
ASIDE = 0.2
"""Mild findings of these tests say where a gap is: they accuse nobody, and tell causes apart. The second is how likely
one is to a cause that does not know of it."""

LEAST = 1e-12
"""No p counts for less: tests assume what no run keeps to by so many digits."""

SYMPTOMS: tuple[tuple[str, str], ...] = (("gradient", "vanished"), ("entropy", "collapsed"))
"""What training comes to when anything is wrong: every cause may show them."""


@dataclass(frozen=True, eq=False)
class CandidateCause:
    """A cause that is not ruled out, of which something shows.

    Attributes:
        known: its entry.
        shown: findings that it needs; none where it is a fact alone that speaks for it. also: those that it may show.
        open: signs that it needs whose tests have not spoken.
        prior: 1, or less where the run may not have what it is of.
        confidence: 0 to 1.
    """

    known: CauseEntry
    shown: list[Finding]
    also: list[Finding]
    open: list[str] = field(default_factory=list)
    prior: float = 1.0
    confidence: float = 0.0


@dataclass(frozen=True)
class Inference:
    """Suspects best first, and what else may be: that nothing is wrong, that the cause is none of the table.

    Attributes:
        suspects, nothing, unlisted: with their shares.
        watched: causes of which nothing shows but what healthy runs may have too; they have no share.
        engines: of the run, as far as they are known.
    """

    suspects: list[CandidateCause]
    nothing: float
    unlisted: float
    watched: list[CandidateCause] = field(default_factory=list)
    engines: frozenset[str] = frozenset()


def is_alarming(finding: Finding) -> bool:
    """Whether a healthy run does not show it; what is mild serves a cause, and accuses nobody.

    A flag that is set on part of the fleet is a canary, and meant to differ.
    """
    fact, _, against = finding.detail.partition("/")
    canary = finding.test == "facts" and against == FLEET and fact in FLAG_NAMES
    return BY_NAME[finding.test].alarms(finding.outcome) and not canary


def _stands_out(finding: Finding) -> bool:
    return finding.outcome not in (UNKNOWN, BY_NAME[finding.test].healthy)


def infer(
    findings: Sequence[Finding],
    causes: Sequence[CauseEntry],
    given: Mapping[str, bool | None] | None = None,
    engines: Collection[str] = (),
) -> Inference:
    """Weigh the causes.

    Args:
        findings: of the tests; their order does not matter.
        causes: in the order in which causes that fit alike are told.
        given: by id of a cause, whether the run has what it is of; None, or absent: nobody says.
        engines: of the run, beside those that findings name.
    """
    seen = _CheckResults(findings, engines)
    every = [suspect for known in causes if (suspect := _suspect(known, seen, (given or {}).get(known.id))) is not None]
    found = [suspect for suspect in every if any(map(is_alarming, (*suspect.shown, *suspect.also)))]
    watched = [suspect for suspect in every if suspect not in found and not _contradicted(suspect.known, seen, None)]
    alarming = [max(finding.p, LEAST) for finding in seen.distinct if is_alarming(finding)]
    masses = list(_masses(found, seen))
    nothing = math.prod(alarming)
    places = sum(not is_alarming(finding) for finding in seen.distinct if finding.test in PLACES)
    unlisted = math.prod(max(p, UNLISTED) for p in alarming) * ASIDE**places if alarming else 0.0
    whole = math.fsum([nothing, unlisted, *(mass for _, mass in masses)])
    shares = [math.fsum(mass for members, mass in masses if suspect in members) / whole for suspect in found]
    suspects = [replace(suspect, confidence=share) for suspect, share in zip(found, shares, strict=True) if share]
    suspects.sort(key=lambda suspect: -suspect.confidence)
    return Inference(suspects, nothing / whole, unlisted / whole, watched, frozenset(seen.engines))


def _masses(found: Sequence[CandidateCause], seen: _CheckResults) -> Iterator[tuple[tuple[CandidateCause, ...], float]]:
    """Every cause and every two of them that nothing stands against, with what is to be said for them."""
    weighed = [f for f in seen.distinct if is_alarming(f) or f.test in ("facts", *PLACES)]
    chance = [max(f.p, LEAST) if is_alarming(f) else ASIDE if f.test in PLACES else UNSTATED for f in weighed]
    levels = [[_level(s.known, seen, f, p) for f, p in zip(weighed, chance, strict=True)] for s in found]
    each = list(zip(found, levels, strict=True))
    for suspect, level in each:
        if not _contradicted(suspect.known, seen, None):
            yield (suspect,), suspect.prior * math.prod(level)
    for (one, its), (two, other) in combinations(each, 2):
        if _covers(one.known, two.known) or _covers(two.known, one.known):
            continue
        if not (_contradicted(one.known, seen, two.known) or _contradicted(two.known, seen, one.known)):
            yield (one, two), TWO * one.prior * two.prior * math.prod(map(max, its, other))


def _covers(one: CauseEntry, other: CauseEntry) -> bool:
    """Whether a cause that is on all engines leaves nothing to another that is on one."""
    return one.layer == other.layer and one.all_engines and other.one_engine


class _CheckResults:
    """What the tests said."""

    def __init__(self, findings: Sequence[Finding], engines: Collection[str]) -> None:
        spoken = [finding for finding in findings if finding.outcome != UNKNOWN]
        self.unsure = [finding for finding in findings if finding.outcome == UNKNOWN]
        self.odd = sorted(filter(_stands_out, spoken), key=_order)
        self.tests = {finding.test for finding in spoken}
        self.calm = self.tests - {finding.test for finding in self.odd}
        self.engines = {*engines, *(finding.engine for finding in findings if finding.engine is not None)}
        first: dict[tuple[str, str, str], Finding] = {}
        for finding in self.odd:  # of several engines the surest, which comes first
            first.setdefault((finding.test, finding.outcome, _named(finding)), finding)
        self.distinct = list(first.values())
        self._showing: dict[str, list[Finding]] = {}

    def showing(self, sign: str) -> list[Finding]:
        """The findings that are this sign."""
        if sign not in self._showing:
            self._showing[sign] = [finding for finding in self.odd if _is(sign, finding)]
        return self._showing[sign]

    def shows(self, signs: Sequence[str], finding: Finding) -> bool:
        """Whether the finding is one of these signs."""
        return any(other is finding for sign in signs for other in self.showing(sign))

    def stands(self, sign: str) -> bool:
        """Whether the sign is there; a healthy outcome is where no engine has another."""
        if self.showing(sign):
            return True
        return any(test in self.calm and BY_NAME[test].healthy == outcome for test, outcome in alternatives(sign))


def _named(finding: Finding) -> str:
    """Which of many a finding is of; a figure that engines have each their own of makes no two findings."""
    return "" if re.fullmatch(r"[-+]?[\d.]+", finding.detail) else finding.detail


def _order(finding: Finding) -> tuple[float, str, str, str, str]:
    return finding.p, finding.test, finding.outcome, finding.detail, finding.engine or ""


def _is(sign: str, finding: Finding) -> bool:
    """Whether the finding is one of the sign's alternatives."""
    for test, outcome in alternatives(sign):
        word, _, detail = outcome.partition("=")
        details = ("", finding.detail, finding.detail.partition("/")[0])
        if (test, word) == (finding.test, finding.outcome) and detail in details:
            return True
    return False


def _suspect(known: CauseEntry, seen: _CheckResults, given: bool | None) -> CandidateCause | None:
    """None where it is ruled out by itself, or nothing of it shows."""
    if known.where and given is False:
        return None
    shown: list[Finding] = []
    open_signs = []
    for sign in known.needs:
        there = seen.showing(sign)
        if not there:
            if all(test in seen.tests for test, _ in alternatives(sign)):
                return None
            open_signs.append(sign)
        shown += [finding for finding in there if finding not in shown]
    also = [f for f in seen.odd if f not in shown and seen.shows(known.may, f)]
    stated = any(finding.test == "facts" for finding in also)
    if not (shown or stated) or (known.one_engine and not _on_part(shown, seen)):
        return None
    if known.all_engines and any(_spared(sign, seen) for sign in known.needs):
        return None
    prior = (UNSTATED if known.where and given is None else 1.0) * MAYBE ** len(open_signs)
    return CandidateCause(known, sorted(shown, key=_order), also, open_signs, prior)


def _spared(sign: str, seen: _CheckResults) -> bool:
    """Whether only some engines show the sign: of a minority, a test that can't say yet says nothing against it."""
    shown = seen.showing(sign)
    have, tests = {finding.engine for finding in shown}, {finding.test for finding in shown}
    unsure = {f.engine for f in seen.unsure if f.test in tests} - have if 2 * len(have) > len(seen.engines) else set()
    return bool(have) and have | unsure < seen.engines


def _on_part(shown: Sequence[Finding], seen: _CheckResults) -> bool:
    """Whether a finding is of some engines and not of the others."""
    for finding in shown:
        kind = finding.test, finding.outcome
        have = {str(f.engine) for f in shown if (f.test, f.outcome) == kind and f.engine is not None}
        if finding.engine is not None and have < seen.engines:
            return True
    return False


def _contradicted(known: CauseEntry, seen: _CheckResults, other: CauseEntry | None) -> bool:
    """Whether anything stands against it that the other cause, if there is one, does not explain."""
    for sign in known.against:
        there = seen.showing(sign)
        if there and other is not None and all(_level(other, seen, finding, 0.0) > 0 for finding in there):
            continue
        if seen.stands(sign):
            return True
    return False


def _level(known: CauseEntry, seen: _CheckResults, finding: Finding, chance: float) -> float:
    """How likely the finding is to the cause."""
    if seen.shows(known.needs, finding):
        return 1.0
    if (finding.test, finding.outcome) in SYMPTOMS or seen.shows(known.may, finding):
        return max(MAYBE, chance)
    return chance
