"""When a recorded fault could be told at all: by the run's own figures, not by what is said of it."""

from __future__ import annotations

import pytest

from bench.diagnosis import onset_of
from bench.evident import MOVES, evident
from bench.fault_runs import RUNS, Run
from rltop.backend.demo.faults import BY_NAME as FAULTS
from tests.support.cases import DATA, load

MOVED = [run for run in RUNS if run.fault in MOVES and run.part == "tune"]


def of(run: Run, last: int | None = None) -> int | None:
    onset = onset_of(run)
    assert onset is not None
    cases = load(DATA / f"{run.name}.xz")
    return evident(run, onset, cases[-1] if last is None else cases[last])


def test_every_fault_that_moves_a_figure_is_one_of_the_demo() -> None:
    assert set(MOVES) <= set(FAULTS)


@pytest.mark.parametrize("run", MOVED, ids=lambda run: run.name)
def test_a_fault_is_evident_some_steps_after_its_onset_and_never_before(run: Run) -> None:
    onset, found = onset_of(run), of(run)
    assert onset is not None and found is not None
    assert onset <= found <= onset + 5


def test_nothing_is_evident_while_rows_are_of_before_the_fault() -> None:
    run = next(run for run in MOVED if run.fault == "never-updated")
    assert of(run, last=1) is None
    assert of(run, last=2) == 2


def test_a_fault_in_the_trainer_is_evident_at_once() -> None:
    run = next(run for run in RUNS if run.fault == "shifted-logprobs")
    assert of(run) == onset_of(run)
