"""The fault bench in short: recorded runs, each diagnosed before its fault begins, soon after, and at its end."""

from __future__ import annotations

from functools import cache

import pytest

from bench.diagnosis import Scored, onset_of
from bench.fault_runs import RUNS, UNRECORDED, Run
from rltop.backend.api.verdict import Verdict
from rltop.backend.demo.faults import BY_NAME as FAULTS
from rltop.backend.diagnosis.diagnose import diagnose
from tests.support.cases import DATA, load

MAX_BYTES = 5_000_000
LATE = 5
"""Steps after the onset by which a fault is to be told."""

EVERY = 7
"""Of a healthy run every so many steps are looked at here; `python -m bench.diagnosis score` looks at all."""

PACKED = [run for run in RUNS if (DATA / f"{run.name}.xz").exists()]
FAULTY = [run for run in PACKED if onset_of(run) is not None]
SOUND = [run for run in PACKED if onset_of(run) is None]


@cache
def looked(run: Run) -> Scored:
    """The run at some of its steps."""
    onset = onset_of(run)
    cases = {case.steps[-1].step: case for case in load(DATA / f"{run.name}.xz")}
    last = max(cases)
    wanted = range(EVERY, last, EVERY) if onset is None else (onset - 1, onset + LATE)
    steps = sorted({*(step for step in wanted if step in cases), last})
    return Scored(run, onset, steps, [diagnose(cases[step]) for step in steps], [])


def named(verdict: Verdict) -> list[str]:
    return [f"{cause.code} {cause.confidence:.2f}" for cause in verdict.causes]


def test_the_runs_are_all_there_and_small() -> None:
    assert len(SOUND) == 19 and {run.fault for run in FAULTY} == {name for name in FAULTS if name} - UNRECORDED
    assert sum(path.stat().st_size for path in DATA.iterdir()) < MAX_BYTES
    assert {run.part for run in SOUND} == {run.part for run in FAULTY} == {"tune", "score", "unseen"}


@pytest.mark.parametrize("part", ["tune", "score", "unseen"])
def test_at_least_95_percent_of_faults_are_named(part: str) -> None:
    runs = [run for run in FAULTY if run.part == part]
    wrong = {run.name: named(looked(run).verdicts[-1]) for run in runs if not looked(run).right}
    assert len(wrong) <= 0.05 * len(runs), wrong


def test_faults_are_told_and_named_within_five_steps() -> None:
    late, unnamed = [], []
    for run in FAULTY:
        scored = looked(run)
        assert scored.onset is not None
        told = dict(zip(scored.steps, scored.verdicts, strict=True))[scored.onset + LATE]
        late += [run.name] if not told.causes else []
        unnamed += [] if scored.is_right(told) else [run.name]
    assert late == []
    assert len(unnamed) <= 0.05 * len(FAULTY), unnamed


@pytest.mark.parametrize("run", FAULTY, ids=lambda run: run.name)
def test_a_fault_is_not_told_before_it_began(run: Run) -> None:
    assert looked(run).alarms == []


@pytest.mark.parametrize("run", SOUND, ids=lambda run: run.name)
def test_a_healthy_run_has_no_alarm(run: Run) -> None:
    assert looked(run).alarms == []
