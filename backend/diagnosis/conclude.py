"""Turns findings into a verdict: which causes to report, in which order, and what would decide between them. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rltop.backend.api.verdict import FAULT, HEALTHY, SURE, UNDECIDED, Cause, Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as CHECKS
from rltop.backend.diagnosis.catalogue.all_checks import SUSPECT, UNKNOWN
from rltop.backend.diagnosis.catalogue.check import DETERMINISTIC
from rltop.backend.diagnosis.causes import CAUSES, confusable
from rltop.backend.diagnosis.causes.cause import CauseEntry, alternatives, as_shown, holds
from rltop.backend.diagnosis.causes.confirming_probes import BY_CODE as PROBES
from rltop.backend.diagnosis.causes.confirming_probes import is_runnable
from rltop.backend.diagnosis.infer import GAPS, CandidateCause, Inference, infer, is_alarming
from rltop.backend.fleet import facts
from rltop.backend.fleet.facts import same_text

MIN_CONFIDENCE = 0.05
"""Causes below it are left out, as a 95 % interval would."""

UNSEEN = 0.5
"""Largest share of a cause of which a needed symptom has not been seen: what has no name is not the last one left."""

ALIKE = 0.25
"""A cause with this share of another's confidence fits as well; a known pair from ``MIN_CONFIDENCE`` on."""

MAX_CAUSES, MAX_EVIDENCE, MAX_NEEDS, MAX_NOTES = 6, 8, 6, 4

BASIC_CHECK = "floor"
"""A run is healthy only if this check has a result: without version-matched tokens, lag hides weights and caches."""


@dataclass(frozen=True)
class RunContext:
    """The run that a verdict is about.

    Attributes:
        name, step: run name, and the last step that was checked.
        engines: facts by engine. trainer: facts that the trainer states.
        steps, tokens, sequences: how much was checked.
        hub_faults: exceptions that the hub contained lately; its figures may be incomplete.
        unexplained: metrics that are red in the latest steps although no check says why.
    """

    name: str
    step: int | None = None
    engines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    trainer: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    sequences: int = 0
    hub_faults: Sequence[str] = ()
    unexplained: Sequence[str] = ()


def conclude(
    run: RunContext,
    findings: Sequence[Finding],
    causes: Sequence[CauseEntry] = CAUSES,
    only: Collection[str] | None = None,
) -> Verdict:
    """The verdict on a run with these findings; reports only causes with an id in ``only``, if given."""
    applicable = {entry.id: _applicable(entry, run) for entry in causes}
    inference = infer(findings, causes, applicable, run.engines)
    if only is not None:
        inference = replace(inference, candidates=[c for c in inference.candidates if c.entry.id in only])
    reported = [c for c in inference.candidates if c.confidence >= MIN_CONFIDENCE][:MAX_CAUSES]
    verdict = _verdict(inference, findings)
    doubts = [*run.hub_faults, *(run.unexplained if verdict == HEALTHY else ())]
    if verdict == HEALTHY and doubts:
        verdict = UNDECIDED
    return Verdict(
        run.name,
        run.step,
        verdict,
        [] if verdict == HEALTHY else [_cause(c, inference, run, findings) for c in reported],
        sorted(findings, key=_rank),
        [*doubts, *_needs(verdict, reported, inference, findings, run)],
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


def _applicable(entry: CauseEntry, run: RunContext) -> bool | None:
    """Whether the run has every feature that a cause concerns; None if a feature is not stated."""
    sides = [*run.engines.values(), run.trainer]
    stated = [holds(condition, sides) for condition in entry.where]
    if entry.shaped_by:
        stated.append(_is_shaped(entry, run))
    return False if False in stated else None if None in stated else True


def _is_shaped(entry: CauseEntry, run: RunContext) -> bool | None:
    """Whether a parameter that the cause concerns may have an effect; None if only some are known to have none."""
    neutral = [facts.is_neutral(name, run.engines.values(), run.trainer) for name in entry.shaped_by]
    if False in neutral or True not in neutral:
        return True
    return None if None in neutral else False


def _verdict(inference: Inference, findings: Sequence[Finding]) -> str:
    if any(map(is_alarming, findings)):
        if _clearest(inference) >= SURE:
            return FAULT
        if inference.healthy < SURE:
            return UNDECIDED
    decided = {finding.test for finding in findings if finding.outcome != UNKNOWN}
    return HEALTHY if BASIC_CHECK in decided else UNDECIDED


def _clearest(inference: Inference) -> float:
    """The share of the most likely cause, its variants of the same code included."""
    first = inference.candidates[0].entry.code if inference.candidates else ""
    return sum(_share(candidate) for candidate in inference.candidates if candidate.entry.code == first)


def _share(candidate: CandidateCause) -> float:
    """The share of a cause; even odds at most while a symptom that it always shows has not been seen."""
    return min(candidate.confidence, UNSEEN) if candidate.undecided else candidate.confidence


def _cause(candidate: CandidateCause, inference: Inference, run: RunContext, findings: Sequence[Finding]) -> Cause:
    entry = as_shown(candidate.entry, candidate.needed)
    engines = _engines(candidate, {*run.engines, *inference.engines}, findings)
    supporting = _representative((*candidate.needed, *candidate.optional), engines)
    alike = _alike(candidate, inference)
    command, applied = _command(entry, engines, run)
    return Cause(
        entry.id,
        entry.code,
        entry.layer,
        entry.title,
        entry.what,
        _share(candidate),
        _since(candidate),
        engines,
        list(dict.fromkeys(map(_sentence, supporting)))[:MAX_EVIDENCE],
        alike,
        _probe(entry, run) if alike or candidate.undecided else "",
        entry.remedy.replace(" --engine ID", _options(engines)),
        "" if applied else command,
        command if applied else "",
    )


def _options(engines: Sequence[str]) -> str:
    """The options that limit a command to ``engines``; none for all."""
    return "".join(f" --engine {engine}" for engine in engines)


def _command(entry: CauseEntry, engines: Sequence[str], run: RunContext) -> tuple[str, bool]:
    """The command for these engines (empty: all), and whether they already have the value that it would set."""
    command = entry.command.format(engines=_options(engines), head=_head(run))
    verb, _, rest = command.removeprefix("rltop ").partition(" ")
    if verb != "set":
        return command, False
    flag, value = rest.split()[:2]
    current = [run.engines[engine].get(flag, "") for engine in engines or run.engines if engine in run.engines]
    return command, bool(current) and all(one.partition(" (")[0] == value for one in current)


def _probe(entry: CauseEntry, run: RunContext) -> str:
    """The name of the entry's probe; empty if it has none, or this fleet can't run it."""
    probe = PROBES.get(entry.probe)
    return probe.name if probe and is_runnable(probe, run.engines.values()) else ""


def _representative(findings: Sequence[Finding], engines: Sequence[str]) -> list[Finding]:
    """One finding of each check and outcome: the run's if all engines are affected, else the clearest engine's."""
    chosen: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = finding.test, finding.outcome, finding.detail.partition("/")[0] if finding.test == "facts" else ""
        if key not in chosen or (not engines and finding.engine is None) or (engines and chosen[key].engine is None):
            chosen[key] = finding
    return list(chosen.values())


def _since(candidate: CandidateCause) -> int | None:
    """The first step of the finding with the most evidence.

    Deterministic findings of what the cause needs have an exact one. Of the others those of a gap come first, whose
    first step is a change with a healthy part before it, and stated facts last, which are noticed later.
    """
    needed, optional = (
        [f for f in found if f.since_step is not None] for found in (candidate.needed, candidate.optional)
    )
    exact = [f for f in needed if f.test != "facts" and CHECKS[f.test].rate == DETERMINISTIC]
    gaps = [f for f in (*needed, *optional) if f.test in DATED and is_alarming(f)]
    measured = [f for f in needed if f.test != "facts"]
    best = exact or gaps or measured or needed
    return min(best, key=lambda f: f.p).since_step if best else None


DATED = ("floor", "fit", "trend", "engine_gap", "cache_gap", "in_flight")
"""Checks of a gap, whose first step is a change point."""


def _engines(candidate: CandidateCause, engines: set[str], findings: Sequence[Finding]) -> list[str]:
    """The engines that show the cause; empty if all do, or if no finding is of one engine.

    Where engines differ in a fact, and neither value is that of a majority, those with a gap have the wrong one.
    """
    if candidate.entry.all_engines or candidate.entry.layer in ("trainer", "objective"):
        return []
    of_one = [f for f in candidate.needed if f.engine is not None]
    by_fleet = [f for f in of_one if f.test == "facts" and f.detail.endswith("/fleet")]
    gaps = [f for f in candidate.optional if f.engine is not None and f.test in GAPS and is_alarming(f)]
    clear = [f for f in of_one if f not in by_fleet] or gaps or by_fleet
    affected = {f.engine for f in clear}
    checks = {f.test for f in clear}
    affected |= {f.engine for f in findings if f.test in checks and f.outcome == UNKNOWN and f.detail == SUSPECT}
    return [] if affected >= engines else sorted(name for name in affected if name is not None)


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
    verdict: str,
    reported: Sequence[CandidateCause],
    inference: Inference,
    findings: Sequence[Finding],
    run: RunContext,
) -> list[str]:
    """Missing evidence that would decide, cheapest first."""
    undecided = {finding.test: finding for finding in findings if finding.outcome == UNKNOWN}
    wanted = {check for candidate in reported for symptom in candidate.undecided for check, _ in alternatives(symptom)}
    if verdict == HEALTHY or (verdict == UNDECIDED and not reported):
        wanted |= {"mean_ratio", BASIC_CHECK}
    needs = [_missing(undecided[check]) for check in CHECKS if check in wanted & set(undecided)]
    needs += _probes(reported, inference, run)
    if verdict == UNDECIDED and inference.unlisted >= 0.5:
        triad = PROBES["P13"]
        needs.append(f"no listed cause explains the findings; experiment {triad.name} finds the side: {triad.does}")
    return list(dict.fromkeys(needs))[:MAX_NEEDS]


def _probes(reported: Sequence[CandidateCause], inference: Inference, run: RunContext) -> list[str]:
    """Each probe that this fleet can run once, with all causes that it distinguishes; manual ones as experiments."""
    by_probe: dict[str, tuple[list[str], list[str]]] = {}
    for candidate in reported:
        alike = _alike(candidate, inference)
        if (alike or candidate.undecided) and _probe(candidate.entry, run):
            ids, others = by_probe.setdefault(candidate.entry.probe, ([], []))
            ids.append(candidate.entry.id)
            others += alike
    return [
        f"{_kind(code)} {PROBES[code].name} {_distinguishes(ids, list(dict.fromkeys(others)))}: {PROBES[code].does}"
        for code, (ids, others) in by_probe.items()
    ]


def _kind(code: str) -> str:
    return "probe" if PROBES[code].runs else "experiment"


def _distinguishes(ids: Sequence[str], others: Sequence[str]) -> str:
    rest, listed = [other for other in others if other not in ids], ", ".join(ids)
    if rest:
        return f"distinguishes {listed} from {', '.join(rest)}"
    return f"distinguishes {listed}" if len(ids) > 1 else f"confirms or rules out {listed}"


def _missing(finding: Finding) -> str:
    title = CHECKS[finding.test].title
    if finding.test == BASIC_CHECK and finding.more_sequences is None:
        return f"weights and caches were not judged: {finding.text}"
    if finding.more_sequences is not None:
        return f"about {finding.more_sequences} more sequences ({title})"
    return f"{title}: {finding.text}" if finding.text else f"{title}: no result yet"
