"""Faults on one engine only: which engine differs is not why, and the fault has a first step and its engines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend.api.verdict import Verdict
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.sequential import change_point
from tests.support.exact import Run, Setting, Wrong

KINDS = {
    "stale prefixes": (Wrong(stale_prefix=0.5), "C1"),
    "top-p": (Wrong(top_p=0.9), "A4"),
    "raw logprobs": (Wrong(raw=True), "A1"),
    "old weights": (Wrong(stuck=True, lies=True), "B6"),
}


def last(kind: str, at: int, engines: int, seed: int) -> Verdict:
    heat = 0.7 if kind == "raw logprobs" else 1.0
    setting = Setting(seed=seed, engines=engines, heat=heat, steps=at + 13, size=6)
    *_, hub = Run(setting, _wrong(kind, at)).hubs()
    return diagnose(hub.state.frames.diagnosis_input())


def _wrong(kind: str, at: int) -> Wrong:
    fields = {name: getattr(KINDS[kind][0], name) for name in Wrong.__dataclass_fields__}
    return Wrong(**(fields | {"engine": "e1", "at": at}))


@pytest.mark.parametrize(("at", "engines", "seed"), [(0, 3, 11), (9, 2, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_on_one_engine_has_its_cause_its_engine_and_its_first_step(
    kind: str, at: int, engines: int, seed: int
) -> None:
    cause = last(kind, at, engines, seed).causes[0]
    assert (cause.code, cause.engines) == (KINDS[kind][1], ["e1"])
    assert cause.since_step is not None and at <= cause.since_step <= at + 3


@pytest.mark.parametrize(("at", "engines"), [(0, 2), (9, 3)])
def test_weights_that_are_old_in_part_on_one_engine_are_not_surely_a_missed_update(at: int, engines: int) -> None:
    setting = Setting(engines=engines, steps=at + 13, size=6)
    *_, hub = Run(setting, Wrong(kept=0.15, engine="e1", at=at)).hubs()
    verdict = diagnose(hub.state.frames.diagnosis_input())
    assert all(cause.confidence < 0.8 for cause in verdict.causes if cause.code == "B6")
    assert len({cause.code for cause in verdict.causes}) > 1
    assert all(cause.engines == ["e1"] for cause in verdict.causes)


@settings(max_examples=50)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(2.0, 50.0), st.integers(0, 1000))
def test_the_first_step_of_a_level_above_the_healthy_one_is_found(
    before: int, after: int, rise: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, before + after)
    levels = np.concatenate([np.zeros(before), np.full(after, rise)]) + noise
    found = change_point(levels, 0.5)
    assert found == (before if before + after > 5 else found)
    assert change_point(levels[before:], 0.5) == 0


def test_a_level_that_rises_from_an_unhealthy_one_has_no_first_step() -> None:
    assert change_point(np.array([1.0] * 6 + [3.0] * 6), 0.5) == 0
    assert change_point(np.array([np.nan, 0.0, 0.1, np.nan, 0.0, 2.0, 2.1, 2.0, 1.9]), 0.5) == 5
