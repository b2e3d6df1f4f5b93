"""Turns findings into a verdict: which causes to report, in which order, and what would decide between them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as CHECKS
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.causes import CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives, holds
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE as PROBES
from rltop.backend.diagnosis.infer import CandidateCause, Inference, infer, is_alarming
from rltop.backend.fleet.facts import same_text

SURE = 0.8
"""Least joint share of the listed causes for a fault, and of "nothing is wrong" for no fault: odds of 4 to 1."""

MIN_CONFIDENCE = 0.05
"""Causes below it are left out, as a 95 % interval would."""

ALIKE = 0.25
"""A cause with this share of another's confidence fits as well; a known pair from ``MIN_CONFIDENCE`` on."""

MAX_CAUSES, MAX_EVIDENCE, MAX_NEEDS, MAX_NOTES = 6, 8, 6, 4

BASIC_CHECKS = ("mean_ratio", "floor")
"""A run is healthy only if one of these has a result: they compare rollout logprobs with the trainer's at all."""


@dataclass(frozen=True)
class RunContext:
    """The run that a verdict is about.

    Attributes:
        name, step: run name, and the last step that was checked.
        engines: facts by engine. trainer: facts that the trainer states.
        steps, tokens, sequences: how much was checked.
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
    """The verdict on a run with these findings; reports only causes with an id in ``only``, if given."""
    facts = [*run.engines.values(), run.trainer]
    applicable = {entry.id: _applicable(entry, facts) for entry in causes}
    inference = infer(findings, causes, applicable, run.engines)
    if only is not None:
        inference = replace(inference, candidates=[c for c in inference.candidates if c.entry.id in only])
    reported = [c for c in inference.candidates if c.confidence >= MIN_CONFIDENCE][:MAX_CAUSES]
    verdict = _verdict(inference, findings)
    return Verdict(
        run.name,
        run.step,
        verdict,
        [] if verdict == HEALTHY else [_cause(c, inference, run, findings) for c in reported],
        sorted(findings, key=_rank),
        _needs(verdict, reported, inference, findings),
        run.steps,
        run.tokens,
        run.sequences,
        _notes(inference),
    )


def _notes(inference: Inference) -> list[str]:
    """Findings that healthy runs may have too, with the cause that they would point to."""
    notes = []
    for candidate in inference.mild[:MAX_NOTES]:
        evidence = "; ".join(dict.fromkeys(_sentence(finding) for finding in candidate.needed))
        entry = candidate.entry
        notes.append(f"{evidence} ({entry.code} {entry.title}; if it persists: {entry.remedy})")
    return notes


def _applicable(entry: CauseEntry, facts: Sequence[Mapping[str, str]]) -> bool | None:
    """Whether the run has every feature that a cause concerns; None if a feature is not stated."""
    stated = [holds(condition, facts) for condition in entry.where]
    return False if False in stated else None if None in stated else True


def _verdict(inference: Inference, findings: Sequence[Finding]) -> str:
    if any(map(is_alarming, findings)):
        listed = 1.0 - inference.healthy - inference.unlisted
        if listed >= SURE:
            return FAULT
        if inference.healthy < SURE:
            return UNDECIDED
    decided = {finding.test for finding in findings if finding.outcome != UNKNOWN}
    return HEALTHY if decided & set(BASIC_CHECKS) else UNDECIDED


def _cause(candidate: CandidateCause, inference: Inference, run: RunContext, findings: Sequence[Finding]) -> Cause:
    entry = candidate.entry
    engines = _engines(candidate, {*run.engines, *inference.engines}, findings)
    since = [finding.since_step for finding in candidate.needed if finding.since_step is not None]
    supporting = _representative((*candidate.needed, *candidate.optional), engines)
    alike = _alike(candidate, inference)
    command, applied = _command(entry, engines, run)
    return Cause(
        entry.id,
        entry.code,
        entry.layer,
        entry.title,
        entry.what,
        candidate.confidence,
        min(since, default=None),
        engines,
        list(dict.fromkeys(map(_sentence, supporting)))[:MAX_EVIDENCE],
        alike,
        PROBES[entry.probe].name if alike or candidate.undecided else "",
        entry.remedy,
        "" if applied else command,
        command if applied else "",
    )


def _command(entry: CauseEntry, engines: Sequence[str], run: RunContext) -> tuple[str, bool]:
    """The command for these engines (empty: all), and whether they already have the value that it would set."""
    options = "".join(f" --engine {engine}" for engine in engines)
    command = entry.command.format(engines=options, head=_head(run))
    verb, _, rest = command.removeprefix("rltop ").partition(" ")
    if verb != "set":
        return command, False
    flag, value = rest.split()[:2]
    current = [run.engines[engine].get(flag, "") for engine in engines or run.engines if engine in run.engines]
    return command, bool(current) and all(one.partition(" (")[0] == value for one in current)


def _representative(findings: Sequence[Finding], engines: Sequence[str]) -> list[Finding]:
    """One finding of each check and outcome: the run's if all engines are affected, else the clearest engine's."""
    chosen: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = finding.test, finding.outcome, finding.detail.partition("/")[0] if finding.test == "facts" else ""
        if key not in chosen or (not engines and finding.engine is None) or (engines and chosen[key].engine is None):
            chosen[key] = finding
    return list(chosen.values())


def _engines(candidate: CandidateCause, engines: set[str], findings: Sequence[Finding]) -> list[str]:
    """Affected engines, with those on which the same checks are undecided; empty if that is all engines."""
    affected = {finding.engine for finding in candidate.needed if finding.engine is not None}
    checks = {finding.test for finding in candidate.needed if finding.engine is not None}
    if not candidate.entry.one_engine:
        affected |= {f.engine for f in findings if f.test in checks and f.outcome == UNKNOWN and f.engine is not None}
    return [] if affected >= engines else sorted(affected)


def _alike(candidate: CandidateCause, inference: Inference) -> list[str]:
    """Ids of the causes that fit as well; a fault that explains other findings does not count."""
    own = {(finding.test, finding.outcome) for finding in candidate.needed}
    pairs = confusable(candidate.entry)
    return [
        other.entry.id
        for other in inference.candidates
        if other is not candidate
        and other.confidence >= (MIN_CONFIDENCE if other.entry.id in pairs else ALIKE * candidate.confidence)
        and own & {(f.test, f.outcome) for f in (*other.needed, *other.optional)}
    ]


def _head(run: RunContext) -> str:
    """The value of ``lm_head_fp32`` that gives the engines the trainer's head dtype."""
    heads = [facts["head_dtype"] for facts in run.engines.values() if "head_dtype" in facts]
    wide = bool(heads) and all(same_text(head, "float32") for head in heads)
    return "off" if wide and not same_text(run.trainer.get("head_dtype", "bfloat16"), "float32") else "on"


def _sentence(finding: Finding) -> str:
    return finding.text or f"{CHECKS[finding.test].title}: {CHECKS[finding.test].meaning.get(finding.outcome, '')}"


def _rank(finding: Finding) -> tuple[int, float, int, str]:
    """Sort key: alarming findings by p, then the others as in the catalogue, undecided ones last."""
    kind = 0 if is_alarming(finding) else 2 if finding.outcome == UNKNOWN else 1
    return kind, finding.p if kind == 0 else 0.0, list(CHECKS).index(finding.test), finding.engine or ""


def _needs(
    verdict: str, reported: Sequence[CandidateCause], inference: Inference, findings: Sequence[Finding]
) -> list[str]:
    """Missing evidence that would decide, cheapest first."""
    undecided = {finding.test: finding for finding in findings if finding.outcome == UNKNOWN}
    wanted = {check for candidate in reported for symptom in candidate.undecided for check, _ in alternatives(symptom)}
    if verdict == HEALTHY or (verdict == UNDECIDED and not reported):
        wanted |= set(BASIC_CHECKS)
    needs = [_missing(undecided[check]) for check in CHECKS if check in wanted & set(undecided)]
    needs += _probes(reported, inference)
    if verdict == UNDECIDED and inference.unlisted >= 0.5:
        triad = PROBES["P13"]
        needs.append(f"no listed cause explains the findings; probe {triad.name} finds the side: {triad.does}")
    return list(dict.fromkeys(needs))[:MAX_NEEDS]


def _probes(reported: Sequence[CandidateCause], inference: Inference) -> list[str]:
    """Each probe once, with all causes that it distinguishes."""
    by_probe: dict[str, tuple[list[str], list[str]]] = {}
    for candidate in reported:
        alike = _alike(candidate, inference)
        if candidate.entry.probe and (alike or candidate.undecided):
            ids, others = by_probe.setdefault(candidate.entry.probe, ([], []))
            ids.append(candidate.entry.id)
            others += alike
    return [
        f"probe {PROBES[code].name} {_distinguishes(ids, list(dict.fromkeys(others)))}: {PROBES[code].does}"
        for code, (ids, others) in by_probe.items()
    ]


def _distinguishes(ids: Sequence[str], others: Sequence[str]) -> str:
    rest, listed = [other for other in others if other not in ids], ", ".join(ids)
    if rest:
        return f"distinguishes {listed} from {', '.join(rest)}"
    return f"distinguishes {listed}" if len(ids) > 1 else f"confirms or rules out {listed}"


def _missing(finding: Finding) -> str:
    title = CHECKS[finding.test].title
    if finding.more_sequences is not None:
        return f"about {finding.more_sequences} more sequences ({title})"
    return f"{title}: {finding.text}" if finding.text else f"{title}: no result yet"
