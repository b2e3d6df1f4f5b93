"""Gaps are held against what the run's own first steps rounded by: how that is bounded, how it errs, what it tells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.checks import rounding_noise
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E
from rltop.backend.diagnosis.checks.rounding_noise import BASE_SEQUENCES, STRAY
from rltop.backend.diagnosis.checks.run_all import run_all
from rltop.backend.evidence import kernel
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.evidence_arrays import EvidenceArrays
from rltop.backend.evidence.kernel import FIGURE, SUM
from rltop.backend.fleet.rounding import FINEST, WIDER
from tests.support.simulated import Fault, Policy

TOKENS = 15
"""Of each sequence, with a complement of 0.2 each."""


def pile(*steps: tuple[int, int], size: float = 0.0) -> EvidenceArrays:
    """Steps of so many matched sequences, of which so many have a d beyond the bound; all d are ``size`` large."""
    moments, sums = np.zeros((len(steps), *Evidence().moments.shape)), np.zeros((len(steps), *Evidence().sums.shape))
    for at, (rows, beyond) in enumerate(steps):
        n = rows * TOKENS
        moments[at, FIGURE.matched_d2, :3] = rows, n, n * size**2
        sums[at, [SUM.matched, SUM.complement, SUM.sequences_below]] = n, 0.2 * n, beyond
    numbers = np.arange(len(steps), dtype=np.int64)
    rest = (
        np.zeros((len(steps), *getattr(Evidence(), name).shape))
        for name in ("extremes", "aligned", "profile", "lags", "turns")
    )
    return EvidenceArrays(numbers, numbers, moments, sums, *rest)


def found(policy: Policy, steps: int, test: str, engine: str | None = None) -> list[Finding]:
    """What a test says of the run, or of an engine, step by step."""
    return [next(f for f in run_all(case) if (f.test, f.engine) == (test, engine)) for case in policy.cases(steps)]


@given(st.floats(0, 1), st.sampled_from([4e-3, 0.05, 0.5]), st.integers(0, 100))
def test_the_bound_is_that_of_the_dtypes_or_ten_times_the_first_steps(size: float, declared: float, rows: int) -> None:
    bound = rounding_noise.bound_of_first_steps(pile((rows, 0), (0, 0), (64, 0), size=size), declared)
    assert FINEST * declared <= bound <= declared
    own = WIDER * size / math.sqrt(0.2)
    assert bound == pytest.approx(float(np.clip(own, FINEST * declared, declared)))


def test_few_sequences_set_no_bound() -> None:
    assert rounding_noise.bound_of_first_steps(pile((BASE_SEQUENCES - 1, 0)), 0.05) == 0.05
    assert rounding_noise.bound_of_first_steps(pile(), 0.05) == 0.05


@given(st.floats(0, 1), st.integers(1, 24), st.sampled_from([1e-6, 4e-5, 2e-4, 5e-4]))
@settings(max_examples=60)
def test_a_bet_on_sequences_expects_no_gain_under_rounding(part: float, rows: int, least: float) -> None:
    share = part * max(STRAY, min((least / kernel.FINE) ** 2 * 0.2 * TOKENS, 1.0))
    chances = [math.comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(rows + 1)]
    wealth = [math.exp(rounding_noise.bet_on_sequences(pile((rows, k)), least)[0]) for k in range(rows + 1)]
    assert sum(chance * own for chance, own in zip(chances, wealth, strict=True)) <= 1 + 1e-9


def test_stray_sequences_never_alarm() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        steps = [(20, int(rng.binomial(20, STRAY))) for _ in range(100)]
        assert max(rounding_noise.bet_on_sequences(pile(*steps[:n]), 4e-5)[0] for n in range(5, 101, 5)) < ALARM_LOG_E


def test_a_few_sequences_beyond_the_bound_alarm_at_once() -> None:
    log_e, start = rounding_noise.bet_on_sequences(pile(*[(20, 0)] * 9, (20, 12)), 4e-5)
    assert log_e > ALARM_LOG_E
    assert start == 9


def test_a_gap_below_the_dtypes_bound_is_found_if_the_run_had_none_before() -> None:
    policy = Policy(seed=9, fault=Fault(noise=0.01, at=5))
    floors, courses = found(policy, 8, "floor"), found(policy, 8, "trend")
    assert [one.outcome for one in floors] == ["at_floor"] * 5 + [UNKNOWN] + ["above"] * 2  # one step is too few
    assert {(one.outcome, one.since_step) for one in (floors[-1], courses[-1])} == {("above", 5), ("jump", 5)}


def test_a_gap_of_that_size_from_the_start_is_rounding() -> None:
    assert {one.outcome for one in found(Policy(seed=9, fault=Fault(noise=0.01)), 8, "floor")} == {"at_floor"}


def test_a_small_gap_makes_an_outlier_if_the_other_engines_have_none() -> None:
    policy = Policy(seed=4, engines=2, fault=Fault(noise=0.02, engine="e1", at=3))
    assert found(policy, 7, "engine_gap", "e1")[-1].outcome == "outlier"
    assert found(policy, 7, "engine_gap", "e0")[-1].outcome == "alike"
    both = Policy(seed=4, engines=2, fault=Fault(noise=0.02, at=3))
    assert {one.outcome for engine in ("e0", "e1") for one in found(both, 12, "engine_gap", engine)} == {"alike"}


def test_hits_and_misses_are_undecided_while_they_are_few() -> None:
    apart = found(Policy(seed=1, fault=Fault(noise=0.15, misses=True, at=2)), 8, "cache_gap")
    assert "alike" not in {one.outcome for one in apart[2:]}
    assert (apart[-1].outcome, apart[-1].detail) == ("hit_worse", "alone")
