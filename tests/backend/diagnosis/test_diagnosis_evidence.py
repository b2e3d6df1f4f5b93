"""Evidence adds up, is kept within a bound and in the store, and the tests made from it err as rarely as they say."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.diagnosis.catalogue import checks_page
from rltop.backend.evidence import sequential
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, SUM
from rltop.backend.evidence.series import EvidenceSeries, Stretch
from rltop.backend.store import step_details
from rltop.backend.store.read import Reader
from rltop.backend.store.step_details import StepDetails
from rltop.backend.store.write import Writer
from tests.support.simulated import Fault, Policy


def _stretches(steps: int = 4, **about: object) -> list[Stretch]:
    *_, case = Policy(**about).cases(steps)  # type: ignore[arg-type]
    return list(case.evidence)


def _same(one: Evidence, other: Evidence, tolerance: float = 1e-9) -> bool:
    return all(
        np.allclose(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance)
        for name in ("moments", "sums", "extremes", "aligned", "profile", "lags")
    )


def test_sums_match_the_tokens() -> None:
    run = EvidenceByEngine(type("C", (), {"evidence": _stretches(1, seed=5, matched=64)})()).run
    n = run.sums[0, SUM.valid]
    assert n == run.sums[0, SUM.matched] == run.moments[0, FIGURE.excess, 1]
    assert run.moments[0, FIGURE.excess, 0] == 64
    assert abs(run.moments[0, FIGURE.matched_d, 2]) < 1e-3  # step 0 is on policy
    assert run.sums[0, SUM.requests] == run.sums[0, SUM.rows] == 64
    assert run.profile[0, :, 0].sum() == n


def test_adding_is_associative_and_has_a_zero() -> None:
    parts = [own for stretch in _stretches(3, fault=Fault(noise=0.2)) for own in stretch.engines.values()]
    assert _same(parts[0] + (parts[1] + parts[2]), (parts[0] + parts[1]) + parts[2])
    assert _same(parts[0] + Evidence(), parts[0])


def test_bytes_come_back_to_float32() -> None:
    own = next(iter(_stretches(2, fault=Fault(noise=0.2))[1].engines.values()))
    back = Evidence.from_bytes(own.to_bytes())
    assert _same(own, back, 1e-6)
    assert back.to_bytes() == own.to_bytes()
    with pytest.raises(ValueError, match="has"):
        Evidence.from_bytes(own.to_bytes()[:-4])


def test_a_series_is_bounded_and_keeps_all_sums() -> None:
    course, total = EvidenceSeries(max_parts=20), Evidence()
    stretches = _stretches(4)
    for step in range(60):
        engines = stretches[step % 4].engines
        course.put(step, engines)
        total = sum(engines.values(), total)
    kept = course.stretches()
    assert sum(len(stretch.engines) for stretch in kept) <= 22
    assert [stretch.first for stretch in kept[-3:]] == [57, 58, 59]
    assert all(a.last + 1 == b.first for a, b in itertools.pairwise(kept))
    assert _same(sum((own for stretch in kept for own in stretch.engines.values()), Evidence()), total)


def test_a_trainer_that_went_back_drops_later_steps() -> None:
    course = EvidenceSeries()
    stretches = _stretches(2)
    for step in (0, 1, 2, 3, 2):
        course.put(step, stretches[0].engines)
    assert [stretch.first for stretch in course.stretches()] == [0, 1, 2]
    course.put(4, stretches[0].engines)
    course.put(3, stretches[0].engines)  # closed late
    assert [stretch.first for stretch in course.stretches()] == [0, 1, 2, 3, 4]


def test_evidence_round_trips_through_the_store(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store.sqlite", "run", "epoch", 1.0)
    stretches = _stretches(3)
    for stretch in stretches:
        rows = step_details.evidence_rows(StepDetails(stretch.first, evidence=stretch.engines))
        writer.write([api.Frame("epoch", stretch.first, 1.0)], [[("evidence", row) for row in rows]])
    writer.close()
    with Reader(tmp_path / "store.sqlite") as reader:
        back = step_details.evidence_series(reader).stretches()
    assert [stretch.first for stretch in back] == [0, 1, 2]
    for one, other in zip(stretches, back, strict=True):
        assert one.engines.keys() == other.engines.keys()
        assert all(_same(one.engines[e], other.engines[e], 1e-5) for e in one.engines)


def test_weights_of_first_steps_sum_to_one() -> None:
    total = float(np.exp(sequential.log_weights(np.arange(1_000_000))).sum())
    assert 0.9 < total < 1.0


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.5))
@settings(max_examples=25)
def test_a_mean_of_zero_does_not_alarm(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    moments = _moments(rng.normal(0, spread, (120, 32)))
    first = np.arange(120)
    log_e = [sequential.above(moments[:t], first[:t], 0.2).log_e for t in range(1, 121, 7)]
    assert max(log_e) < math.log(1e5)


def test_evidence_for_a_mean_above_zero_is_an_e_value() -> None:
    rng = np.random.default_rng(0)
    first = np.arange(20)
    values = [sequential.above(_moments(rng.normal(0, 1, (20, 32))), first, 0.3).log_e for _ in range(1500)]
    assert np.exp(values).mean() < 1.3  # at most 1 for known variances; it is estimated from 32 sequences a step
    assert np.mean(np.array(values) > math.log(20)) < 1 / 20


@given(st.floats(0.05, 0.5), st.integers(0, 20))
@settings(max_examples=10)
def test_a_mean_above_zero_is_found_with_its_first_step(effect: float, at: int) -> None:
    rng = np.random.default_rng(0)
    off = []
    for _ in range(60):
        values = rng.normal(0, effect, (at + 12, 32))
        values[at:] += effect
        found = sequential.above(_moments(values), np.arange(at + 12), effect)
        assert found.log_e > math.log(1e6)
        off.append(abs(found.start - at))
    assert np.mean(np.array(off) <= 1) > 0.9  # what comes right before may lie above zero by chance


def test_the_end_of_a_fault_is_detected_after_three_steps() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.1, (30, 32))
    values[10:20] += 0.3
    moments, first = _moments(values), np.arange(30)
    assert sequential.above(moments[:20], first[:20], 0.2).start == 10
    assert sequential.above(moments[:25], first[:25], 0.2).log_e < math.log(1e6)


@given(st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=4), st.floats(0.05, 0.95))
def test_a_bet_on_a_fair_toss_has_an_expectation_of_one(stakes: list[float], p: float) -> None:
    """Of a value with mean 0 on two points, each account's factor has mean 1, and so has their mean."""
    low, high = -(1 - p), p  # with probabilities p and 1 - p
    mean = sum(chance * np.mean([1 + stake * x for stake in stakes]) for chance, x in ((p, low), (1 - p, high)))
    assert mean == pytest.approx(1.0)


@given(st.floats(0.001, 0.33), st.sampled_from([(0.02, 0.7), (0.2, 0.7), (0.4, 0.7), (1.6, 1.3), (2.0, 1.3)]))
def test_a_bet_on_unlikely_tokens_has_an_expectation_of_at_most_one(q: float, bet: tuple[float, float]) -> None:
    """calibration: with probability q another token comes; else (1 - p) / p of it were due."""
    share, bound = bet
    mean = q * share / bound + (1 - q) * math.exp((bound - share) * q / (1 - q))
    assert mean <= 1 + 1e-9


def test_the_page_of_checks_is_up_to_date() -> None:
    page = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text()
    assert page == checks_page.document()


def _moments(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> sequential.Floats:
    """Six sums by step of values [steps, sequences], each sequence of one token."""
    n = np.ones_like(values)
    columns = (n, n, values, n, values**2, values)
    return np.stack([column.sum(axis=1) for column in columns], axis=1)
