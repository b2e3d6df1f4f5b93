"""Infers causes from findings. Pure.

Hypotheses are every cause alone, every pair of causes, "nothing is wrong" and "a cause that is not in the table". The
weight of a hypothesis is its prior times, for each alarming finding, the likelihood of the finding:

- 1 if one of its causes needs the finding,
- ``MAY_LIKELIHOOD`` if one of its causes may show it,
- the finding's own p (chance) otherwise; if nothing is wrong, every finding is chance.

A cause is ruled out if a symptom that it needs was checked and is absent, or if an excluding symptom is present. The
confidence in a cause is the share of the hypotheses that contain it; causes that explain the same findings share alike.
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

MAY_LIKELIHOOD = 0.5
"""Likelihood of a finding that a cause may show; also the factor for each needed symptom whose check is undecided."""

UNSTATED = 0.02
"""Prior of a cause that concerns a feature (adapters, experts, drafts, logit edits) that no side states; also
the likelihood of a mismatching fact under a cause that does not name it."""

UNLISTED_LIKELIHOOD = 0.05
"""Least likelihood of an alarming finding under a cause that is not in the table, which may show anything."""

PAIR_PRIOR = 0.01
"""Prior of two causes at once, relative to one."""

LOCATING_CHECKS = ("in_flight",)
LOCATING_LIKELIHOOD = 0.2
"""Mild findings of these checks locate a gap: they support no alarm but tell causes apart. The second value is their
likelihood under a cause that does not name them."""

MIN_P = 1e-12
"""Lower bound on p: the assumptions of the checks do not hold to more digits."""

FROZEN_LIKELIHOOD = 0.05
"""Likelihood of weights that fit an older version under a cause that is not a missed update, if old logprobs measure
it: the size of the gap would equal that of several updates by chance."""

LOCATIONS = (("engine_gap", "outlier"),)
"""Findings that say where a gap is, and not what it is: they contradict no cause. Causes in the trainer, or on all
engines, explain them less well."""

LOCATED_LAYERS = ("weights", "inference path")
"""Layers of causes that may be why one engine differs, even if none of their own checks has a result yet."""

COMMON_SYMPTOMS: tuple[tuple[str, str], ...] = (
    ("gradient", "vanished"), ("entropy", "collapsed"), ("reward", "collapsed"),
)  # fmt: skip
"""Late consequences of any fault: every cause may show them."""


@dataclass(frozen=True, eq=False)
class CandidateCause:
    """A cause that is not ruled out and has at least one symptom.

    Attributes:
        entry: its entry in the table of causes.
        needed: findings that match its needed symptoms; empty if only a stated fact supports it.
        optional: findings that it may show.
        undecided: needed symptoms and proofs whose checks have no result yet.
        prior: 1, or less where the run may lack the feature that the cause concerns.
        confidence: 0 to 1.
    """

    entry: CauseEntry
    needed: list[Finding]
    optional: list[Finding]
    undecided: list[str] = field(default_factory=list)
    prior: float = 1.0
    confidence: float = 0.0


@dataclass(frozen=True)
class Inference:
    """Candidate causes by confidence, and the shares of the two hypotheses without a cause.

    Attributes:
        candidates: best first.
        healthy: share of "nothing is wrong".
        unlisted: share of "a cause that is not in the table".
        mild: causes that only have symptoms which healthy runs may have too; they have no share.
        engines: engines of the run, as far as known.
    """

    candidates: list[CandidateCause]
    healthy: float
    unlisted: float
    mild: list[CandidateCause] = field(default_factory=list)
    engines: frozenset[str] = frozenset()


def is_alarming(finding: Finding) -> bool:
    """Whether a healthy run does not show the finding.

    A flag that is set on part of the fleet is a canary, and meant to differ.
    """
    fact, _, against = finding.detail.partition("/")
    canary = finding.test == "facts" and against == FLEET and fact in FLAG_NAMES
    return BY_NAME[finding.test].alarms(finding.outcome) and not canary


def infer(
    findings: Sequence[Finding],
    causes: Sequence[CauseEntry],
    applicable: Mapping[str, bool | None] | None = None,
    engines: Collection[str] = (),
) -> Inference:
    """Weigh the causes.

    Args:
        findings: results of the checks, in any order.
        causes: table of causes; ties keep its order.
        applicable: by cause id, whether the run has the feature that the cause concerns; None: not stated. Absent: not
            stated, or True for a cause without ``where``.
        engines: engines of the run, in addition to those that findings name.
    """
    results = _CheckResults(findings, engines)
    stated = {entry.id: None if entry.where else True for entry in causes} | dict(applicable or {})
    possible = [c for entry in causes if (c := _candidate(entry, results, stated[entry.id]))]
    candidates = [c for c in possible if any(map(is_alarming, (*c.needed, *c.optional)))]
    mild = [c for c in possible if c not in candidates and not _excluded(c.entry, results)]
    weights = list(_weights(candidates, results))
    healthy, unlisted = _weights_without_cause(results)
    total = math.fsum([healthy, unlisted, *(weight for _, weight in weights)])
    shares = [math.fsum(weight for members, weight in weights if c in members) / total for c in candidates]
    ranked = [replace(c, confidence=share) for c, share in zip(candidates, shares, strict=True) if share]
    ranked.sort(key=lambda c: -c.confidence)
    return Inference(ranked, healthy / total, unlisted / total, mild, frozenset(results.engines))


def _weights(
    candidates: Sequence[CandidateCause], results: _CheckResults
) -> Iterator[tuple[tuple[CandidateCause, ...], float]]:
    """The weight of every cause and of every pair of causes that no symptom excludes."""
    weighed = [f for f in results.distinct if is_alarming(f) or f.test in ("facts", *LOCATING_CHECKS)]
    by_chance = [_chance(finding) for finding in weighed]
    scored = [
        (c, [_likelihood(c.entry, results, f, chance) for f, chance in zip(weighed, by_chance, strict=True)])
        for c in candidates
    ]
    for cause, likelihoods in scored:
        if not _excluded(cause.entry, results):
            yield (cause,), cause.prior * math.prod(likelihoods)
    for (one, of_one), (other, of_other) in combinations(scored, 2):
        if _may_coincide(one.entry, other.entry, results):
            yield (one, other), PAIR_PRIOR * one.prior * other.prior * math.prod(map(max, of_one, of_other))


def _weights_without_cause(results: _CheckResults) -> tuple[float, float]:
    """The weights of "nothing is wrong" and of "a cause that is not in the table"."""
    alarming = [_chance(finding) for finding in results.distinct if is_alarming(finding)]
    if not alarming:
        return 1.0, 0.0
    locating = sum(not is_alarming(finding) for finding in results.distinct if finding.test in LOCATING_CHECKS)
    unlisted = math.prod(max(p, UNLISTED_LIKELIHOOD) for p in alarming)
    return math.prod(alarming), unlisted * LOCATING_LIKELIHOOD**locating


def _chance(finding: Finding) -> float:
    """The likelihood of the finding under a cause that does not explain it."""
    if is_alarming(finding):
        return max(finding.p, MIN_P)
    return LOCATING_LIKELIHOOD if finding.test in LOCATING_CHECKS else UNSTATED


def _likelihood(entry: CauseEntry, results: _CheckResults, finding: Finding, chance: float) -> float:
    """How likely the finding is if the cause is present."""
    if results.matches_any(entry.needs, finding):
        return 1.0
    if (finding.test, finding.outcome) in LOCATIONS:
        return max(LOCATING_LIKELIHOOD if _is_everywhere(entry) else MAY_LIKELIHOOD, chance)
    if _began_with_fact(entry, results, finding):
        return max(MAY_LIKELIHOOD, chance)
    if (finding.test, finding.outcome) == ("fit", "frozen") and finding.detail:
        return max(FROZEN_LIKELIHOOD, chance)
    if (finding.test, finding.outcome) in COMMON_SYMPTOMS or results.matches_any(entry.may, finding):
        return max(MAY_LIKELIHOOD, chance)
    return chance


def _is_everywhere(entry: CauseEntry) -> bool:
    """Whether the cause bears on the rows of all engines."""
    return entry.all_engines or entry.layer == "trainer"


def _began_with_fact(entry: CauseEntry, results: _CheckResults, finding: Finding) -> bool:
    """Whether a gap rose in the steps in which a fact that the cause needs changed: an engine started with others."""
    if finding.test != "trend" or finding.since_step is None:
        return False
    changed = [f.since_step for s in entry.needs for f in results.matching(s) if f.test == "facts" and f.since_step]
    return any(abs(step - finding.since_step) <= FACT_STEPS for step in changed)


FACT_STEPS = 3
"""Steps between the change of a fact and that of the gap: tokens wait before they are trained on."""


def _may_coincide(one: CauseEntry, other: CauseEntry, results: _CheckResults) -> bool:
    """Whether two causes can be present at once: neither subsumes nor excludes the other."""
    if _subsumes(one, other) or _subsumes(other, one):
        return False
    return not (_excluded(one, results, other) or _excluded(other, results, one))


def _subsumes(one: CauseEntry, other: CauseEntry) -> bool:
    """Whether a cause on all engines leaves nothing to another of the same layer on some."""
    return one.layer == other.layer and one.all_engines and other.one_engine


def _excluded(entry: CauseEntry, results: _CheckResults, partner: CauseEntry | None = None) -> bool:
    """Whether an excluding symptom is present that ``partner``, if any, does not explain."""
    for symptom in entry.against:
        matching = results.matching(symptom)
        if matching and partner and all(_likelihood(partner, results, finding, 0.0) > 0 for finding in matching):
            continue
        if matching and all(_began_with_fact(entry, results, finding) for finding in matching):
            continue
        if results.is_present(symptom):
            return True
    return False


def _candidate(entry: CauseEntry, results: _CheckResults, applicable: bool | None) -> CandidateCause | None:
    """The cause with its findings; None if it is ruled out on its own, or has no symptom."""
    if applicable is False or any(results.is_absent(s, entry.one_engine) for s in entry.needs):
        return None
    if any(map(results.is_denied, entry.proof)):
        return None
    needed: list[Finding] = []
    for symptom in entry.needs:
        needed += [finding for finding in results.matching(symptom) if finding not in needed]
    optional = [f for f in results.unusual if f not in needed and _may_show(entry, results, f)]
    located = entry.layer in LOCATED_LAYERS and any((f.test, f.outcome) in LOCATIONS for f in optional)
    if not needed and not located and not any(finding.test == "facts" for finding in optional):
        return None
    if entry.one_engine and not _on_some_engines(entry, results):
        return None
    if entry.all_engines and any(_spares_engines(symptom, results) for symptom in entry.needs):
        return None
    undecided = [symptom for symptom in entry.needs if not results.matching(symptom)]
    prior = (UNSTATED if applicable is None else 1.0) * MAY_LIKELIHOOD ** len(undecided)
    undecided += [symptom for symptom in entry.proof if not results.matching(symptom)]
    return CandidateCause(entry, sorted(needed, key=_order), optional, undecided, prior)


def _may_show(entry: CauseEntry, results: _CheckResults, finding: Finding) -> bool:
    location = (finding.test, finding.outcome) in LOCATIONS and not _is_everywhere(entry)
    return location or _began_with_fact(entry, results, finding) or results.matches_any(entry.may, finding)


def _on_some_engines(entry: CauseEntry, results: _CheckResults) -> bool:
    """Whether every needed symptom that engines show is, in one of its forms, on some engines and not on others."""
    shown = [s for s in entry.needs if any(finding.engine is not None for finding in results.matching(s))]
    return bool(shown) and all(any(_spares_engines(form, results) for form in s.split(" | ")) for s in shown)


def _spares_engines(symptom: str, results: _CheckResults) -> bool:
    """Whether only some engines show the symptom.

    An engine with an undecided check may have it too if most engines do, or if the run does and it has a gap.
    """
    matching = results.matching(symptom)
    affected = {finding.engine for finding in matching if finding.engine is not None}
    checks = {finding.test for finding in matching}
    undecided = {finding.engine for finding in results.undecided if finding.test in checks} - affected
    if 2 * len(affected) <= len(results.engines):
        undecided &= results.suspects if any(finding.engine is None for finding in matching) else set()
    return bool(affected) and affected | undecided < results.engines


GAPS = ("engine_gap", "floor")
"""Checks whose alarm on an engine makes it a suspect."""


class _CheckResults:
    """The findings of a run, indexed by symptom.

    Attributes:
        undecided: findings without a result.
        unusual: findings whose outcome is not the healthy one, by p.
        distinct: of these, the one with the least p of each check, outcome and detail, over engines.
        engines: all engines that are known.
        suspects: engines with a gap of their own.
    """

    def __init__(self, findings: Sequence[Finding], engines: Collection[str]) -> None:
        decided = [finding for finding in findings if finding.outcome != UNKNOWN]
        self.undecided = [finding for finding in findings if finding.outcome == UNKNOWN]
        self.unusual = sorted((f for f in decided if f.outcome != BY_NAME[f.test].healthy), key=_order)
        self.engines = {*engines, *(finding.engine for finding in findings if finding.engine is not None)}
        self._checks = {finding.test for finding in decided}
        self.suspects = {f.engine for f in self.unusual if f.engine is not None and f.test in GAPS}
        self._healthy = self._checks - {finding.test for finding in self.unusual}
        least: dict[tuple[str, str, str], Finding] = {}
        for finding in self.unusual:
            least.setdefault((finding.test, finding.outcome, _subject(finding)), finding)
        self.distinct = list(least.values())
        self._matching: dict[str, list[Finding]] = {}

    def matching(self, symptom: str) -> list[Finding]:
        """The unusual findings that match a symptom."""
        if symptom not in self._matching:
            self._matching[symptom] = [finding for finding in self.unusual if _matches(symptom, finding)]
        return self._matching[symptom]

    def matches_any(self, symptoms: Sequence[str], finding: Finding) -> bool:
        """Whether the finding matches one of the symptoms."""
        return any(other is finding for symptom in symptoms for other in self.matching(symptom))

    def is_present(self, symptom: str) -> bool:
        """Whether the symptom is present; a healthy outcome is present if no engine has another outcome."""
        if self.matching(symptom):
            return True
        return any(check in self._healthy and BY_NAME[check].healthy == word for check, word in alternatives(symptom))

    def is_absent(self, symptom: str, one_engine: bool = False) -> bool:
        """Whether all checks of the symptom have a result, and no finding matches it.

        A cause on one engine needs the result of an engine that is suspected; those of the others do not count.
        """
        if self.matching(symptom):
            return False
        checks = {check for check, _ in alternatives(symptom)}
        if one_engine and any(f.test in checks and f.engine in self.suspects for f in self.undecided):
            return False
        return all(check in self._checks or BY_NAME[check].on_request for check in checks)

    def is_denied(self, symptom: str) -> bool:
        """Whether the checks of the symptom that need no probe have a result, and no finding matches it."""
        checks = {check for check, _ in alternatives(symptom) if not BY_NAME[check].on_request}
        return bool(checks) and checks <= self._checks and not self.matching(symptom)


def _subject(finding: Finding) -> str:
    """The detail that makes findings of one outcome distinct; not a figure, which differs between engines."""
    return "" if re.fullmatch(r"[-+]?[\d.]+", finding.detail) else finding.detail


def _order(finding: Finding) -> tuple[float, str, str, str, str]:
    return finding.p, finding.test, finding.outcome, finding.detail, finding.engine or ""


def _matches(symptom: str, finding: Finding) -> bool:
    """Whether the finding is one of the symptom's alternatives."""
    details = ("", finding.detail, finding.detail.partition("/")[0])
    for check, outcome in alternatives(symptom):
        word, _, detail = outcome.partition("=")
        if (check, word) == (finding.test, finding.outcome) and detail in details:
            return True
    return False
