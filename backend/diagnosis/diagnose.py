"""What is wrong with a run, if anything: tests, then causes, then words. Pure."""

from __future__ import annotations

from rltop.backend.diagnosis.ask import ask
from rltop.backend.diagnosis.case import Case
from rltop.backend.diagnosis.conclude import Run, conclude
from rltop.backend.diagnosis.verdict import Verdict
from rltop.backend.fleet import facts


def diagnose(case: Case) -> Verdict:
    """The verdict on a run, as of its last step."""
    return conclude(run_of(case), ask(case))


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
