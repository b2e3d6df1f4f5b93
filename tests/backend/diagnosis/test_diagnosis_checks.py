"""The tests of a diagnosis on simulated runs: silent where nothing is wrong, and what is wrong is named."""

from __future__ import annotations

import gc
import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, CHECKS, UNKNOWN
from rltop.backend.diagnosis.checks.run_all import FUNCTIONS, NOT_COMPUTED, run_all
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from tests.support.simulated import Fault, Policy


def _alarms(case: DiagnosisInput) -> list[Finding]:
    return [one for one in run_all(case) if BY_NAME[one.test].alarms(one.outcome)]


def _found(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(one.test, one.outcome) for one in findings}


def _at_step(policy: Policy, step: int) -> DiagnosisInput:
    *_, case = policy.cases(step + 1)
    return case


def test_evidence_arrays_are_freed_after_a_verdict() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(thing) is EvidenceByEngine for thing in gc.get_objects())

    before = alive()
    run_all(_at_step(Policy(seed=1), 5))
    assert alive() <= before  # those of earlier tests may be freed meanwhile


@pytest.mark.parametrize(
    "policy",
    [
        Policy(seed=1),
        Policy(seed=2, heat=0.7, lag=3, engines=3),
        Policy(seed=3, heat=1.3, size=(40, 60)),
        Policy(seed=4, matched=0, lag=2),
    ],
    ids=["plain", "heat-0.7-lag-3", "heat-1.3-long", "no-old-logprobs"],
)
def test_nothing_alarms_at_any_step_of_a_healthy_run(policy: Policy) -> None:
    for case in policy.cases(15):
        assert _alarms(case) == []


@pytest.mark.parametrize(
    ("policy", "named", "within"),
    [
        (Policy(heat=0.7, fault=Fault(record_heat=1.0)), {("mean_ratio", "above"), ("slope", "sharper")}, 3),
        (Policy(heat=1.3, fault=Fault(record_heat=1.0)), {("mean_ratio", "above"), ("slope", "flatter")}, 3),
        (Policy(heat=0.9, fault=Fault(record_heat=1.0)), {("mean_ratio", "above"), ("slope", "sharper")}, 5),
        (Policy(heat=0.7, fault=Fault(trainer_heat=1.0)), {("floor", "above"), ("slope", "flatter")}, 3),
        (Policy(fault=Fault(top_p=0.9)), {("one_sided", "negative"), ("nll_minus_entropy", "below")}, 4),
        (
            Policy(fault=Fault(top_p=0.9, recorded=False)),
            {("nll_minus_entropy", "below"), ("calibration", "sharper")},
            7,
        ),
        (Policy(heat=0.7, fault=Fault(record_heat=1.0, trainer_heat=1.0)), {("nll_minus_entropy", "below")}, 3),
        (Policy(fault=Fault(stuck=True)), {("floor", "above"), ("fit", "frozen")}, 8),
        (Policy(fault=Fault(noise=0.15, misses=True, at=2)), {("cache_gap", "hit_worse")}, 8),
        (Policy(fault=Fault(bfloat16=True)), {("logit_lattice", "engine_coarse")}, 3),
        (Policy(fault=Fault(dropout=0.3)), {("repeat", "differs"), ("floor", "above")}, 3),
        (Policy(fault=Fault(penalty=0.5)), {("floor", "above")}, 3),
        (Policy(fault=Fault(shift=1)), {("copies", "shifted")}, 2),
        (Policy(fault=Fault(zeros=3)), {("copies", "zero_filled")}, 2),
    ],
    ids=[
        "raw-record", "raw-record-hot", "raw-record-0.9", "trainer-without-heat", "top-p", "top-p-raw", "heat-unseen",
        "stuck-weights", "stale-prefix", "bfloat16", "dropout", "penalty", "shifted", "zero-filled",
    ],
)  # fmt: skip
def test_a_fault_is_named_within_some_steps(policy: Policy, named: set[tuple[str, str]], within: int) -> None:
    assert named <= _found(_alarms(_at_step(policy, policy.fault.at + within)))


def test_correct_rollout_logprobs_stay_calibrated_for_any_trainer() -> None:
    for fault in (Fault(trainer_heat=1.0), Fault(stuck=True), Fault(dropout=0.3), Fault(noise=0.2)):
        found = {f.test: f.outcome for f in run_all(_at_step(Policy(heat=0.7, fault=fault), 6)) if f.engine is None}
        assert (found["mean_ratio"], found["nll_minus_entropy"]) == ("calibrated", "equal")


def test_the_faulty_engine_is_the_outlier() -> None:
    case = _at_step(Policy(engines=3, move=0.1, fault=Fault(stuck=True, engine="e1")), 8)
    outliers = [one for one in run_all(case) if one.test == "engine_gap" and one.outcome == "outlier"]
    assert [one.engine for one in outliers] == ["e1"]


def test_the_temperature_of_one_side_is_measured() -> None:
    slope = next(f for f in run_all(_at_step(Policy(heat=0.7, fault=Fault(record_heat=1.0)), 6)) if f.test == "slope")
    assert slope.value == pytest.approx(1 / 0.7, abs=0.05)


def test_the_bound_of_a_truncation_is_measured() -> None:
    sides = next(f for f in run_all(_at_step(Policy(fault=Fault(top_p=0.8)), 6)) if f.test == "one_sided")
    assert float(sides.detail) == pytest.approx(0.8, abs=0.03)


def test_the_first_step_of_a_fault_is_found() -> None:
    policy = Policy(fault=Fault(at=6, trainer_heat=1.0), heat=0.7)
    since = {f.test: f.since_step for f in _alarms(_at_step(policy, 12)) if f.engine is None}
    assert since["floor"] == 6
    assert abs((since["trend"] or 0) - 6) <= 1


def test_an_alarm_ends_when_the_fault_does() -> None:
    ends = _Mended(heat=0.7, fault=Fault(record_heat=1.0))
    *_, last = ends.cases(24)
    assert {f.test for f in _alarms(last)} & {"mean_ratio", "sign", "nll_minus_entropy", "floor", "slope"} == set()


COPIES = ("unrecorded", "zero_filled", "padded", "recomputed", "shifted+1")
PATTERNS = list(itertools.product([False, True], repeat=3))


@pytest.mark.parametrize("seen", PATTERNS)
@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_a_single_earlier_step_are_no_fault_any_more(kind: str, seen: tuple[bool, ...]) -> None:
    case = _at_step(Policy(seed=1), 8)
    steps = [
        msgspec.structs.replace(step, copies={engine: {kind: 8} if bad else {"equal": 8} for engine in step.copies})
        for step, bad in zip(case.steps[-3:], seen, strict=True)
    ]
    found = [f for f in run_all(replace(case, steps=[*case.steps[:-3], *steps])) if f.test == "copies"]
    is_fault = seen[-1] or sum(seen) > 1
    assert {BY_NAME["copies"].alarms(finding.outcome) for finding in found} == {is_fault}
    assert is_fault or ("in one earlier step or two" in found[0].text) == any(seen)


@pytest.mark.parametrize("seen", PATTERNS)
def test_rows_without_rollouts_in_a_single_earlier_step_are_no_fault_any_more(seen: tuple[bool, ...]) -> None:
    case = _at_step(Policy(seed=1), 8)
    steps = [
        msgspec.structs.replace(step, unjoined={"unknown_completion": 90} if bad else {})
        for step, bad in zip(case.steps[-3:], seen, strict=True)
    ]
    found = [f for f in run_all(replace(case, steps=[*case.steps[:-3], *steps])) if f.test == "join"]
    assert [BY_NAME["join"].alarms(finding.outcome) for finding in found] == [seen[-1] or sum(seen) > 1]


class _Mended(Policy):
    """A run whose fault is over after step 11."""

    def _batch(self, rng, index, step):  # type: ignore[no-untyped-def]
        if step == 12:
            self.fault = Fault()
        return super()._batch(rng, index, step)


def test_every_check_of_the_catalogue_is_run_or_listed_as_not_computed() -> None:
    assert {*FUNCTIONS, *NOT_COMPUTED} == {test.name for test in CHECKS}
    found = run_all(_at_step(Policy(), 1))
    assert {one.test for one in found} == {test.name for test in CHECKS}
    for one in found:
        assert one.outcome in (*BY_NAME[one.test].outcomes, UNKNOWN)


def test_all_checks_of_an_empty_run_are_unknown() -> None:
    assert {one.outcome for one in run_all(DiagnosisInput("run", []))} == {UNKNOWN}


@pytest.mark.parametrize("depth", [4, 8])
def test_a_bounded_queue_never_alarms(depth: int) -> None:
    for case in Policy(seed=16, lag=depth).cases(24):
        assert {one.outcome for one in run_all(case) if one.test == "lag" and one.outcome != UNKNOWN} == {"steady"}


def test_a_lag_that_rises_above_the_one_that_the_run_settled_in_is_high() -> None:
    found: dict[int, set[str]] = {}
    policy = Policy(seed=17, lag=4)
    for case in policy.cases(24):
        policy.lag = 4 if len(case.steps) < 18 else 7
        found[case.steps[-1].step] = {one.outcome for one in run_all(case) if one.test == "lag"}
    assert all("high" not in outcomes for step, outcomes in found.items() if step < 18)
    assert "high" in found[20]


def test_a_lag_in_waves_is_high_since_the_first_of_them() -> None:
    policy = Policy(seed=18, lag=1)
    for case in policy.cases(34):
        policy.lag = 1 + (len(case.steps) - 10) % 8 if len(case.steps) > 10 else 1
    (found,) = [one for one in run_all(case) if one.test == "lag" and one.engine is None]
    assert (found.outcome, found.since_step) == ("high", 12)


class Busy(Policy):
    """Engines of a machine that does much else: each is several times slower in a third of its steps."""

    def slowness(self, rng: np.random.Generator, engine: str) -> float:
        return float(rng.choice([1.0, 8.0], p=[0.65, 0.35]))


class Slow(Policy):
    """One engine is several times slower, always."""

    def slowness(self, rng: np.random.Generator, engine: str) -> float:
        return 8.0 if engine == "e1" else 1.0


def _slow(policy: Policy, steps: int) -> list[int]:
    return [
        case.steps[-1].step
        for case in policy.cases(steps)
        if any(one.test == "speed" and one.outcome == "slow" for one in run_all(case))
    ]


def test_an_engine_is_slow_if_it_always_is_and_not_if_all_are_occasionally() -> None:
    assert _slow(Slow(seed=3, engines=3), 8) == [3, 4, 5, 6, 7]
    for seed in range(4):
        assert _slow(Busy(seed=seed, engines=4, size=(4, 6)), 40) == []


def test_larger_updates_are_no_fault_without_old_logprobs() -> None:
    policy = Policy(seed=83, lag=4, matched=0)
    for case in policy.cases(30):
        policy.move = 0.2 * min(1.0, (len(case.steps) + 1) / 20)  # a learning rate that warms up
        assert _alarms(case) == []
