"""What is wrong with a run, if anything: tests, then causes, then words. Pure.

A switch parts a run in two. What the tokens of before leave behind in sums over both looks like something else for some
steps: raw records like a silent truncation, stale prefixes like the rounding of hits. So what was not told at a switch
is told after it only if the steps after it say so by themselves, first or beside what was told: its order, which looks
as good as any, would switch what is not wrong.
"""

from __future__ import annotations

from rltop.backend.diagnosis.ask import ask
from rltop.backend.diagnosis.case import Case
from rltop.backend.diagnosis.conclude import Run, conclude
from rltop.backend.diagnosis.verdict import Verdict
from rltop.backend.fleet import facts
from rltop.backend.view import moved


def diagnose(case: Case) -> Verdict:
    """The verdict on a run, as of its last step."""
    run, findings = run_of(case), ask(case)
    verdict = conclude(run, findings)
    switched = _last_switch(case) if verdict.causes else None
    if switched is None:
        return verdict
    before = case.up_to(switched)
    told = _ids(conclude(run_of(before), ask(before)))
    if _ids(verdict) <= told:
        return verdict
    since = conclude(run, ask(case.sampled_after(switched)))
    return since if verdict.causes[0].id not in told else conclude(run, findings, only=told | _ids(since))


def _ids(verdict: Verdict) -> set[str]:
    return {cause.id for cause in verdict.causes}


def _last_switch(case: Case) -> int | None:
    """The last step that had closed when a flag was last switched; None where that is not kept, or was now."""
    of_sets = (change for change in case.changes if change.verb == "set" and moved(change))
    switched = max((change.step for change in of_sets if change.step is not None), default=None)
    kept = [step.step for step in case.steps[:-1] if switched is not None and step.step <= switched]
    return max(kept, default=None)


def run_of(case: Case) -> Run:
    """What a verdict says of the run itself. An engine that said goodbye is not part of it, unless all have."""
    live = [engine for engine in case.engines.values() if engine.health != "gone"]
    tokens = sum(int(step.values.get("tokens") or 0) for step in case.steps)
    sequences = sum(int(step.values.get("sequences") or 0) for step in case.steps)
    return Run(
        case.run,
        case.steps[-1].step if case.steps else None,
        {engine.id: facts.of_engine(engine) for engine in live or case.engines.values()},
        case.trainer.facts,
        len(case.steps),
        tokens,
        sequences,
    )
