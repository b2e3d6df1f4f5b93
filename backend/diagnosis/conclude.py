"""From findings to a verdict: what is told, in which order, and what would decide. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.causes import CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives, holds
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE as PROBES
from rltop.backend.diagnosis.infer import CandidateCause, Inference, infer, is_alarming
from rltop.backend.fleet.facts import same_text

SURE = 0.8
"""A fault is told where causes of the table are four times as likely as anything else: else it is undecided."""

TOLD = 0.05
"""Causes below it are left out: one in twenty is what a 95 % interval leaves out too."""

ALIKE = 0.25
"""Causes with this share of another's confidence are named as fitting as well; known pairs from ``TOLD`` on."""

MOST_CAUSES, MOST_EVIDENCE, MOST_NEEDS, MOST_NOTES = 6, 8, 6, 4

ASKED_FIRST = ("T1", "floor")
"""A run is healthy where one of these has spoken: does the record agree with the trainer at all?"""


@dataclass(frozen=True)
class RunContext:
    """What a verdict says of the run beside its findings.

    Attributes:
        name, step: which run, and the last step that was looked at.
        engines: facts by engine. trainer: what the trainer states.
        steps, tokens, sequences: that were looked at.
    """

    name: str
    step: int | None = None
    engines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trainer: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    sequences: int = 0


def conclude(
    run: RunContext,
    findings: Sequence[Finding],
    causes: Sequence[CauseEntry] = CAUSES,
    only: Collection[str] | None = None,
) -> Verdict:
    """The verdict on a run of which the tests have found this; of the causes that fit, ``only`` these ids are told."""
    facts = [*run.engines.values(), run.trainer]
    given = {known.id: _given(known, facts) for known in causes}
    found = infer(findings, causes, given, run.engines)
    if only is not None:
        found = replace(found, suspects=[suspect for suspect in found.suspects if suspect.known.id in only])
    told = [suspect for suspect in found.suspects if suspect.confidence >= TOLD][:MOST_CAUSES]
    verdict = _verdict(found, findings)
    return Verdict(
        run.name,
        run.step,
        verdict,
        [] if verdict == HEALTHY else [_cause(suspect, found, run, findings) for suspect in told],
        sorted(findings, key=_place),
        _needs(verdict, told, found, findings),
        run.steps,
        run.tokens,
        run.sequences,
        _notes(found),
    )


def _notes(found: Inference) -> list[str]:
    """What healthy runs may have too, with what it would be a sign of."""
    notes = []
    for suspect in found.watched[:MOST_NOTES]:
        seen = "; ".join(dict.fromkeys(_words(finding) for finding in suspect.shown))
        notes.append(f"{seen} ({suspect.known.code} {suspect.known.title}, if it goes on: {suspect.known.remedy})")
    return notes


def _given(known: CauseEntry, facts: Sequence[Mapping[str, str]]) -> bool | None:
    """Whether the run has all that a cause is of."""
    said = [holds(condition, facts) for condition in known.where]
    return False if False in said else None if None in said else True


def _verdict(found: Inference, findings: Sequence[Finding]) -> str:
    if any(map(is_alarming, findings)):
        listed = 1.0 - found.nothing - found.unlisted
        if listed >= SURE:
            return FAULT
        if found.nothing < SURE:
            return UNDECIDED
    spoken = {finding.test for finding in findings if finding.outcome != UNKNOWN}
    return HEALTHY if spoken & set(ASKED_FIRST) else UNDECIDED


def _cause(suspect: CandidateCause, found: Inference, run: RunContext, findings: Sequence[Finding]) -> Cause:
    known = suspect.known
    engines = _engines(suspect, {*run.engines, *found.engines}, findings)
    since = [finding.since_step for finding in suspect.shown if finding.since_step is not None]
    evidence = dict.fromkeys(_words(finding) for finding in _telling((*suspect.shown, *suspect.also), engines))
    alike = _alike(suspect, found)
    order, is_so = _order(known, engines, run)
    return Cause(
        known.id,
        known.code,
        known.layer,
        known.title,
        known.what,
        suspect.confidence,
        min(since, default=None),
        engines,
        list(evidence)[:MOST_EVIDENCE],
        alike,
        PROBES[known.probe].name if alike or suspect.open else "",
        known.remedy,
        "" if is_so else order,
        order if is_so else "",
    )


def _order(known: CauseEntry, engines: Sequence[str], run: RunContext) -> tuple[str, bool]:
    """The order for these engines (none: all), and whether they have what it would set: then it is offered no more."""
    options = "".join(f" --engine {engine}" for engine in engines)
    order = known.command.format(engines=options, head=_head(run))
    word, _, rest = order.removeprefix("rltop ").partition(" ")
    if word != "set":
        return order, False
    flag, value = rest.split()[:2]
    had = [run.engines[engine].get(flag, "") for engine in engines or run.engines if engine in run.engines]
    return order, bool(had) and all(one.partition(" (")[0] == value for one in had)


def _telling(findings: Sequence[Finding], engines: Sequence[str]) -> list[Finding]:
    """One finding of each kind: of the run where it is on all engines, else of the engine that shows it best."""
    chosen: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = finding.test, finding.outcome, finding.detail.partition("/")[0] if finding.test == "facts" else ""
        if key not in chosen or (not engines and finding.engine is None) or (engines and chosen[key].engine is None):
            chosen[key] = finding
    return list(chosen.values())


def _engines(suspect: CandidateCause, engines: set[str], findings: Sequence[Finding]) -> list[str]:
    """Those that it shows on, and those of which the same tests can't tell yet; none where that is all."""
    named = {finding.engine for finding in suspect.shown if finding.engine is not None}
    tests = {finding.test for finding in suspect.shown if finding.engine is not None}
    if not suspect.known.one_engine:
        named |= {f.engine for f in findings if f.test in tests and f.outcome == UNKNOWN and f.engine is not None}
    return [] if named >= engines else sorted(named)


def _alike(suspect: CandidateCause, found: Inference) -> list[str]:
    """What fits as well; two faults that explain different things are no such pair."""
    own = {(finding.test, finding.outcome) for finding in suspect.shown}
    pairs = confusable(suspect.known)
    return [
        other.known.id
        for other in found.suspects
        if other is not suspect
        and other.confidence >= (TOLD if other.known.id in pairs else ALIKE * suspect.confidence)
        and own & {(f.test, f.outcome) for f in (*other.shown, *other.also)}
    ]


def _head(run: RunContext) -> str:
    """The value of ``lm_head_fp32`` that brings the engines' head to the trainer's."""
    heads = [facts["head_dtype"] for facts in run.engines.values() if "head_dtype" in facts]
    wide = bool(heads) and all(same_text(head, "float32") for head in heads)
    return "off" if wide and not same_text(run.trainer.get("head_dtype", "bfloat16"), "float32") else "on"


def _words(finding: Finding) -> str:
    return finding.text or f"{TESTS[finding.test].title}: {TESTS[finding.test].meaning.get(finding.outcome, '')}"


def _place(finding: Finding) -> tuple[int, float, int, str]:
    """Alarming ones first, the surest of them first; then as in the table of tests."""
    kind = 0 if is_alarming(finding) else 2 if finding.outcome == UNKNOWN else 1
    return kind, finding.p if kind == 0 else 0.0, list(TESTS).index(finding.test), finding.engine or ""


def _needs(verdict: str, told: Sequence[CandidateCause], found: Inference, findings: Sequence[Finding]) -> list[str]:
    """What would decide, in the order in which it costs least."""
    unknown = {finding.test: finding for finding in findings if finding.outcome == UNKNOWN}
    asked = {test for suspect in told for sign in suspect.open for test, _ in alternatives(sign)}
    if verdict == HEALTHY or (verdict == UNDECIDED and not told):
        asked |= set(ASKED_FIRST)
    needs = [_wanted(unknown[test]) for test in TESTS if test in asked & set(unknown)]
    needs += _probes(told, found)
    if verdict == UNDECIDED and found.unlisted >= 0.5:
        needs.append(
            f"no cause of the table explains this; probe {PROBES['P13'].name} names the side: {PROBES['P13'].does}"
        )
    return list(dict.fromkeys(needs))[:MOST_NEEDS]


def _probes(told: Sequence[CandidateCause], found: Inference) -> list[str]:
    """Each probe once, with all that it tells apart."""
    tells: dict[str, tuple[list[str], list[str]]] = {}
    for suspect in told:
        alike = _alike(suspect, found)
        if suspect.known.probe and (alike or suspect.open):
            ids, others = tells.setdefault(suspect.known.probe, ([], []))
            ids.append(suspect.known.id)
            others += alike
    return [
        f"probe {PROBES[code].name} tells {_apart(ids, list(dict.fromkeys(others)))}: {PROBES[code].does}"
        for code, (ids, others) in tells.items()
    ]


def _apart(ids: Sequence[str], others: Sequence[str]) -> str:
    rest, what = [other for other in others if other not in ids], ", ".join(ids)
    if rest:
        return f"{what} from {', '.join(rest)}"
    return f"{what} apart" if len(ids) > 1 else f"whether it is {what}"


def _wanted(finding: Finding) -> str:
    title = TESTS[finding.test].title
    if finding.more_sequences is not None:
        return f"about {finding.more_sequences} more sequences ({title})"
    return f"{title}: {finding.text}" if finding.text else f"{title}: not known"
