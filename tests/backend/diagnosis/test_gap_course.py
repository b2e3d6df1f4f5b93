"""What the course of the version-matched gap says: frozen, late, cast or partial weights, and what stays undecided."""

from __future__ import annotations

import pytest

from rltop.backend.api.verdict import FAULT, UNDECIDED, Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from tests.support.exact import Run, Setting, Wrong

SETTINGS = (
    Setting(seed=11, steps=26),
    Setting(seed=12, steps=26, old="all", lag=2, move=0.02),
    Setting(seed=13, steps=26, engines=3, move=0.1, coherent=0.6),
)


def told(setting: Setting, wrong: Wrong) -> tuple[Verdict, set[str]]:
    """The verdict at the end of a run, and the outcomes of ``fit`` on the run and its engines."""
    *_, hub = Run(setting, wrong).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    return verdict, {finding.outcome for finding in verdict.findings if finding.test == "fit"} - {"unknown"}


def codes(verdict: Verdict) -> list[str]:
    return [cause.code for cause in verdict.causes]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("at", [0, 9])
def test_a_gap_that_grows_as_the_trainer_moves_is_of_frozen_weights(setting: Setting, at: int) -> None:
    verdict, outcomes = told(setting, Wrong(at=at, stuck=True, lies=True))
    assert outcomes == {"frozen"}
    assert (verdict.verdict, verdict.causes[0].code) == (FAULT, "B2")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("at", [0, 8])
def test_a_constant_gap_of_some_updates_is_of_late_weights(setting: Setting, late: int, at: int) -> None:
    verdict, outcomes = told(setting, Wrong(at=at, late=late))
    assert outcomes <= {"late", "constant"} and outcomes
    assert "B9" in codes(verdict)[:2]
    assert not {"B2", "B3"} & set(codes(verdict))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_cast_that_begins_in_mid_run_is_no_partial_update(setting: Setting) -> None:
    verdict, outcomes = told(setting, Wrong(at=8, cast=True))
    assert outcomes <= {"rounding", "constant"} and outcomes
    assert verdict.causes[0].id == "cast-weights"
    assert not {"B2", "B3"} & set(codes(verdict))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kept", [0.03, 0.1, 0.4])
def test_a_part_of_the_weights_is_never_called_all_of_them(setting: Setting, kept: float) -> None:
    verdict, outcomes = told(setting, Wrong(at=6, kept=kept))
    assert outcomes <= {"partial"}
    assert "B3" in codes(verdict) and "B2" not in codes(verdict)
    assert verdict.verdict == UNDECIDED or verdict.causes[0].code == "B3"


@pytest.mark.parametrize("wrong", [Wrong(noise=0.5), Wrong(at=8, noise=0.5), Wrong(at=8, kept=0.05)])
def test_what_has_no_evidence_of_its_own_is_not_named(wrong: Wrong) -> None:
    verdict, outcomes = told(Setting(seed=5, facts=False), wrong)
    named = verdict.causes[0].code if verdict.verdict == FAULT else ""
    assert named not in ("B7", "B3") or outcomes == {"partial"}
    assert all(cause.confidence <= 0.5 for cause in verdict.causes if cause.id == "bad-export")
