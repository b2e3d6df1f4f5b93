"""What an engine is behind is read from the versions of the rollouts that it finishes, at any pace of the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.diagnosis_null import paced
from rltop.backend.api.verdict import FAULT, Cause, Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from tests.support.exact import RIGHT, Run, Setting, Wrong


def verdicts(setting: Setting, wrong: Wrong = RIGHT) -> Iterator[Verdict]:
    for hub in Run(setting, wrong).hubs():
        yield diagnose(hub.state.frames.diagnosis_input())


def last_cause(setting: Setting, wrong: Wrong) -> Cause:
    *_, last = verdicts(setting, wrong)
    assert last.verdict == FAULT
    return last.causes[0]


@pytest.mark.parametrize("number", range(0, 96, 8))
def test_a_healthy_run_of_any_pace_has_no_fault_verdict(number: int) -> None:
    setting = paced(number)
    told = [[cause.code for cause in one.causes] for one in verdicts(setting) if one.verdict == FAULT]
    assert told == [], setting


@pytest.mark.parametrize(("engines", "at", "lag"), [(2, 0, 1), (2, 9, 1), (3, 6, 2), (4, 12, 4)])
@pytest.mark.parametrize("step_s", [0.7, 20.0])
def test_an_engine_whose_rollouts_keep_a_version_is_named_with_its_first_step(
    engines: int, at: int, lag: int, step_s: float
) -> None:
    setting = Setting(engines=engines, lag=lag, old="none", steps=at + 3 * lag + 14, step_s=step_s, groups=8, size=4)
    cause = last_cause(setting, Wrong(engine="e1", stuck=True, at=at))
    assert (cause.id, cause.engines) == ("stale-replica", ["e1"])
    assert cause.since_step is not None and at <= cause.since_step <= at + lag + 1


def test_the_report_of_an_engine_alone_is_no_fault() -> None:
    """Engines report no newer version for the whole run, while their rollouts have one at every step."""
    setting = Setting(step_s=0.01, reports=True, steps=24, groups=8, size=4)
    assert [one.verdict for one in verdicts(setting) if one.verdict == FAULT] == []


def test_an_engine_that_reports_a_newer_version_is_not_stuck() -> None:
    setting = Setting(engines=2, lag=2, uneven=12, reports=True, steps=14, old="none", groups=8, size=4, move=0.02)
    assert [one.verdict for one in verdicts(setting) if one.verdict == FAULT] == []
