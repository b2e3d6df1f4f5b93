"""The situations that monitors were compared by, through the hub: each is named, and a healthy run is left alone.

The policies are exact (``tests/support/exact.py``), the hub's core and its messages real.
``python -m bench.situations`` tries more settings.
"""

from __future__ import annotations

import pytest

from bench.situations import SHAPES, SITUATIONS, Situation, settings
from bench.stress import DiagnosedRun, diagnose_run
from rltop.backend.diagnosis.diagnose import diagnose
from tests.support.exact import RIGHT, Run, Setting, Wrong

FAULTY = [one for one in SITUATIONS if one.kind.codes]


def told(situation: Situation, number: int) -> DiagnosedRun:
    """One run of a situation, asked at every other step."""
    setting = list(settings(situation, 1))[number]
    return diagnose_run(situation.kind, setting, situation.kind.wrong(setting, 0.0), every=2)


@pytest.mark.parametrize("situation", FAULTY, ids=lambda one: one.kind.name)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_a_situation_is_named_and_nothing_before_it(situation: Situation, shape: int) -> None:
    one = told(situation, shape * len(situation.heats) + shape % len(situation.heats))
    assert one.alarms == []
    causes = one.verdicts[-1].causes
    assert one.outcome != "wrong" and causes[0].code in situation.kind.codes, [cause.code for cause in causes]


@pytest.mark.parametrize("number", range(0, 2 * len(SHAPES), 3))
def test_a_healthy_run_is_left_alone(number: int) -> None:
    (healthy,) = (one for one in SITUATIONS if not one.kind.codes)
    assert told(healthy, number).alarms == []


def first(setting: Setting, wrong: Wrong) -> list[str]:
    """Codes of the first two causes at the end of a run."""
    *_, hub = Run(setting, wrong).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    return [cause.code for cause in verdict.causes[:2]]


def test_rounding_is_larger_below_a_temperature_of_1_and_no_fault() -> None:
    assert first(Setting(heat=0.3, dtype="bfloat16", facts=False, old="all", steps=8), RIGHT) == []


def test_a_wrong_record_is_not_taken_for_the_lag_that_is_there_too() -> None:
    setting = Setting(heat=1.5, lag=4, old="none", entropy=False, steps=16)
    assert first(setting, RIGHT) == []
    assert first(setting, Wrong(raw=True))[0] == "A1"


@pytest.mark.parametrize("engines", [1, 2])
def test_a_fleet_is_stuck_by_its_own_past(engines: int) -> None:
    setting = Setting(engines=engines, lag=4, old="none", steps=28, move=0.02)
    assert first(setting, RIGHT) == []
    assert first(setting, Wrong(at=8, stuck=True))[0] == "B2"


def test_without_old_logprobs_fresh_tokens_tell_that_weights_are_old() -> None:
    setting = Setting(engines=1, ragged=True, old="none", steps=20, move=0.1)
    assert first(setting, RIGHT) == []
    assert first(setting, Wrong(stuck=True, lies=True))[0] == "B2"
