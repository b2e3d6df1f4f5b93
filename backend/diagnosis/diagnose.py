"""Diagnoses a run: checks, then causes, then a verdict. Pure.

A switched flag splits a run in two. For some steps the sums cover tokens from before and after the switch, and such a
mixture looks like other faults: raw logprobs like a truncation, stale prefixes like the rounding of cache hits. So a
cause that was not reported at the switch is reported after it only if the steps after it support the cause alone, or
if it comes second to a cause from before: otherwise its command would switch a flag that is not at fault.
"""

from __future__ import annotations

import dataclasses

from msgspec.structs import replace

from rltop.backend.api import FAULT_EVENT, changed_engine
from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.checks.run_all import run_all
from rltop.backend.diagnosis.conclude import RunContext, conclude
from rltop.backend.diagnosis.unexplained import unexplained
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.fleet import facts

MAX_SWITCHES = 2
"""Latest switches that are considered: each may cost two more verdicts."""

FAULT_STEPS = 20
"""Steps for which a contained exception keeps the verdict from being healthy."""


def diagnose(
    run: DiagnosisInput, at_switches: dict[float, Verdict] | None = None, max_switches: int = MAX_SWITCHES
) -> Verdict:
    """The verdict on a run as of its last step.

    Args:
        run: the run's evidence and state.
        at_switches: cache of verdicts at switches, by the step's wall clock; keeps the latest ``MAX_SWITCHES``.
        max_switches: switches to consider.
    """
    findings = run_all(run)
    context = dataclasses.replace(context_of(run), unexplained=unexplained(run.steps, findings))
    verdict = conclude(context, findings)
    switched = _last_switch(run) if verdict.causes and max_switches else None
    if switched is None:
        return verdict
    before = _at_last_step(run.up_to(switched), {} if at_switches is None else at_switches, max_switches - 1)
    if not _ids(verdict) <= _ids(before):
        since = conclude(context, run_all(run.sampled_after(switched)))
        if verdict.causes[0].id not in _ids(before):
            return since
        verdict = conclude(context, findings, only=_ids(before) | _ids(since))
    return _with_earlier_starts(verdict, before)


def _at_last_step(run: DiagnosisInput, at_switches: dict[float, Verdict], max_switches: int) -> Verdict:
    """The verdict at a switch, from the cache if possible."""
    when = run.steps[-1].closed
    if when not in at_switches:
        at_switches[when] = diagnose(run, at_switches, max_switches)
        while len(at_switches) > MAX_SWITCHES:
            del at_switches[next(iter(at_switches))]
    return at_switches[when]


def _ids(verdict: Verdict) -> set[str]:
    return {cause.id for cause in verdict.causes}


def _with_earlier_starts(verdict: Verdict, before: Verdict) -> Verdict:
    """The verdict with the first steps that causes had at the switch: steps after a fix would move them."""
    starts = {cause.id: cause.since_step for cause in before.causes}
    causes = [replace(cause, since_step=starts.get(cause.id, cause.since_step)) for cause in verdict.causes]
    return replace(verdict, causes=causes)


def _last_switch(run: DiagnosisInput) -> int | None:
    """The last step that closed before the latest switch of a flag; None if no later step has closed."""
    switches = (change for change in run.changes if change.verb == "set" and changed_engine(change))
    latest = max((change.step for change in switches if change.step is not None), default=None)
    earlier = [step.step for step in run.steps[:-1] if latest is not None and step.step <= latest]
    return max(earlier, default=None)


def context_of(run: DiagnosisInput) -> RunContext:
    """The run that the verdict is about."""
    return RunContext(
        run.run,
        run.steps[-1].step if run.steps else None,
        {name: facts.of_engine(engine) for name, engine in run.present.items()},
        run.trainer.facts,
        len(run.steps),
        sum(int(step.values.get("tokens") or 0) for step in run.steps),
        sum(int(step.values.get("sequences") or 0) for step in run.steps),
        _recent_faults(run),
    )


def _recent_faults(run: DiagnosisInput) -> list[str]:
    """The latest of the exceptions that the hub contained during the last ``FAULT_STEPS`` steps."""
    recent = {step.step for step in run.steps[-FAULT_STEPS:]}
    return [event.text for event in run.events if event.kind == FAULT_EVENT and event.step in recent][-1:]
