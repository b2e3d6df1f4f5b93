"""What is wrong with a run, if anything: tests, then causes, then words. Pure.

A switch parts a run in two. What the tokens of before leave behind in sums over both looks like something else for some
steps: raw records like a silent truncation, stale prefixes like the rounding of hits. So what was not told at a switch
is told after it only if the steps after it say so by themselves, first or beside what was told: its order, which looks
as good as any, would switch what is not wrong.
"""

from __future__ import annotations

from msgspec.structs import replace

from rltop.backend.api import changed_engine
from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.checks.run_all import ask
from rltop.backend.diagnosis.conclude import RunContext, conclude
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.fleet import facts

PARTS = 2
"""Switches that are looked back beyond, the last ones: each may cost two verdicts more."""


def diagnose(case: DiagnosisInput, known: dict[float, Verdict] | None = None, parts: int = PARTS) -> Verdict:
    """The verdict on a run, as of its last step.

    Args:
        case: all that is kept of it.
        known: verdicts at switches, by the wall clock of the step, from one call to the next; the last ``PARTS`` stay.
        parts: as the constant.
    """
    run, findings = run_of(case), ask(case)
    verdict = conclude(run, findings)
    switched = _last_switch(case) if verdict.causes and parts else None
    if switched is None:
        return verdict
    before = _at(case.up_to(switched), {} if known is None else known, parts - 1)
    if not _ids(verdict) <= _ids(before):
        since = conclude(run, ask(case.sampled_after(switched)))
        if verdict.causes[0].id not in _ids(before):
            return since
        verdict = conclude(run, findings, only=_ids(before) | _ids(since))
    return _begun_as(before, verdict)


def _at(case: DiagnosisInput, known: dict[float, Verdict], parts: int) -> Verdict:
    """The verdict at a switch; that of an earlier call, if there is one."""
    when = case.steps[-1].closed
    if when not in known:
        known[when] = diagnose(case, known, parts)
        while len(known) > PARTS:
            del known[next(iter(known))]
    return known[when]


def _ids(verdict: Verdict) -> set[str]:
    return {cause.id for cause in verdict.causes}


def _begun_as(before: Verdict, verdict: Verdict) -> Verdict:
    """With the beginnings that causes had then: what a cure adds to the sums says nothing of when it began."""
    begun = {cause.id: cause.since_step for cause in before.causes}
    causes = [replace(cause, since_step=begun.get(cause.id, cause.since_step)) for cause in verdict.causes]
    return replace(verdict, causes=causes)


def _last_switch(case: DiagnosisInput) -> int | None:
    """The last step that had closed when a flag was last switched; None where that is not kept, or was now."""
    of_sets = (change for change in case.changes if change.verb == "set" and changed_engine(change))
    switched = max((change.step for change in of_sets if change.step is not None), default=None)
    kept = [step.step for step in case.steps[:-1] if switched is not None and step.step <= switched]
    return max(kept, default=None)


def run_of(case: DiagnosisInput) -> RunContext:
    """What a verdict says of the run itself. An engine that said goodbye is not part of it, unless all have."""
    live = [engine for engine in case.engines.values() if engine.health != "gone"]
    tokens = sum(int(step.values.get("tokens") or 0) for step in case.steps)
    sequences = sum(int(step.values.get("sequences") or 0) for step in case.steps)
    return RunContext(
        case.run,
        case.steps[-1].step if case.steps else None,
        {engine.id: facts.of_engine(engine) for engine in live or case.engines.values()},
        case.trainer.facts,
        len(case.steps),
        tokens,
        sequences,
    )
