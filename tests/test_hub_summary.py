"""Token summaries: the numbers of the oracle, and the laws of merging."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rltop.backend import metrics
from rltop.backend.summary import Gap, Mean, Summary
from tests import oracles

anything = st.one_of(
    st.floats(-30, 30, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1e-13, -1e-13, 1e38, math.nan, math.inf, -math.inf]),
)
differences = arrays(np.float64, st.integers(0, 60), elements=anything)
moderate = arrays(np.float64, st.integers(0, 200), elements=st.floats(-25, 25))


def gap_values(gap: Gap) -> dict[str, float | None]:
    values = metrics.values(Summary(gap=gap))
    return {name: values[name] for name in oracles.gap([])}


def assert_same(ours: dict[str, float | None], theirs: dict[str, float | None], d: np.ndarray) -> None:
    scale = np.sort(d[np.isfinite(d)])
    for name, expected in theirs.items():
        got = ours[name]
        if expected is None:
            assert got is None, name
        elif "_p" in name and "frac" not in name:
            # Either order statistic about the rank is within 1 %, so the quantile is within 1 % of the larger of them.
            values = np.sort(np.abs(scale)) if "abs" in name else scale
            rank = int(name.rsplit("_p", 1)[1]) / 100 * (values.size - 1)
            near = max(abs(values[math.floor(rank)]), abs(values[math.ceil(rank)]))
            assert got == pytest.approx(expected, abs=0.01 * near + 1e-12), name
        elif name == "ratio_mean_se":  # a difference of sums: good to the root of float64's precision
            assert got == pytest.approx(expected, rel=1e-6, abs=1e-7 * (1 + math.exp(min(scale[-1], 20.0)))), name
        else:
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-12), name


@given(moderate)
def test_a_gap_has_the_numbers_of_the_oracle(d: np.ndarray) -> None:
    assert_same(gap_values(Gap.of(d)), oracles.gap(d.tolist()), d)


@given(differences)
def test_whatever_the_logprobs_no_figure_is_nan_or_infinite_and_every_token_is_counted(d: np.ndarray) -> None:
    gap = Gap.of(d)
    assert gap.n + gap.invalid == d.size
    assert all(value is None or math.isfinite(value) for value in gap_values(gap).values())
    assert int(gap.bins.sum()) == gap.n


@given(moderate)
def test_k3_less_k1_is_the_mean_ratio_less_one(d: np.ndarray) -> None:
    gap = Gap.of(d)
    if gap.n:
        assert gap.k1 is not None and gap.k3 is not None and gap.ratio is not None
        assert gap.k3 - gap.k1 == pytest.approx(gap.ratio - 1, rel=1e-9, abs=1e-9)
        assert gap.ess is not None and 0 < gap.ess <= 1


def assert_equal(left: Gap, right: Gap) -> None:
    assert (left.n, left.invalid, left.clamped, left.low, left.high) == (
        right.n, right.invalid, right.clamped, right.low, right.high,
    )  # fmt: skip
    assert np.array_equal(left.bins, right.bins)
    np.testing.assert_allclose(left.sums, right.sums, rtol=1e-9, atol=1e-6 * (1 + np.abs(left.sums).max(initial=0)))


@given(moderate, moderate, moderate)
def test_gaps_merge_in_any_order_and_grouping(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    whole = Gap.of(np.concatenate([a, b, c]))
    assert_equal(Gap.of(a) + Gap.of(b) + Gap.of(c), whole)
    assert_equal(Gap.of(c) + (Gap.of(a) + Gap.of(b)), whole)
    assert_equal(Gap() + Gap.of(a), Gap.of(a))


@given(differences, differences)
def test_means_merge(a: np.ndarray, b: np.ndarray) -> None:
    a, b = np.clip(a, -1e6, 1e6), np.clip(b, -1e6, 1e6)
    merged, whole = Mean.of(a) + Mean.of(b), Mean.of(np.concatenate([a, b]))
    assert (merged.n, merged.high) == (whole.n, whole.high)
    assert merged.total == pytest.approx(whole.total, abs=1e-6)


def test_a_batch_larger_than_a_chunk_is_one_summary() -> None:
    d = np.random.default_rng(1).normal(0.001, 0.05, 200_000)
    assert_same(gap_values(Gap.of(d)), oracles.gap(d.tolist()), d)


def test_quantiles_are_within_one_percent_over_many_scales() -> None:
    rng = np.random.default_rng(2)
    for scale in (1e-7, 1e-3, 0.1, 5.0):
        d = rng.laplace(0, scale, 50_000)
        for q in (0.5, 0.95, 0.99):
            assert Gap.of(d).abs_quantile(q) == pytest.approx(np.quantile(np.abs(d), q), rel=0.01)
        for q in (0.05, 0.95, 0.99):
            assert Gap.of(d).quantile(q) == pytest.approx(np.quantile(d, q), rel=0.01)


def test_nothing_and_all_invalid_give_none_everywhere() -> None:
    for gap in (Gap(), Gap.of(np.full(7, np.nan))):
        values = gap_values(gap)
        assert {name for name, value in values.items() if value is not None} <= {"invalid_frac"}
    assert gap_values(Gap.of(np.full(7, np.nan)))["invalid_frac"] == 1.0


def test_every_field_of_a_summary_merges() -> None:
    empty = Summary()
    both = empty + empty
    for field in fields(Summary):
        assert type(getattr(both, field.name)) is type(getattr(empty, field.name))
