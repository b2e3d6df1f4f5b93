"""Summaries: the laws of merging, and that every token counts."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rltop.backend import metrics
from rltop.backend.evidence import kernel as evidence_kernel
from rltop.backend.summary import Bounds, Gap, Pairs, Regression, SequenceSummary, Sizes, Spread, Strata, Summary
from rltop.backend.summary import kernel as summary_kernel
from rltop.backend.summary.groups import MAX_GROUPS, Groups
from rltop.backend.summary.kernel import FIGURE, RUN
from rltop.backend.summary.token_runs import POSITION_EDGES, TokenRuns, cut, gap_of, reduce
from tests.support import oracles

anything = st.one_of(
    st.floats(-30, 30, width=32),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1e-13, -1e-13, 1e38, math.nan, math.inf, -math.inf]),
)
differences = arrays(np.float64, st.integers(0, 60), elements=anything)
moderate = arrays(np.float64, st.integers(0, 200), elements=st.floats(-25, 25))
small = arrays(np.float64, st.integers(0, 30), elements=st.floats(-10, 10))


def gap_with(d: np.ndarray) -> Gap:
    """A gap with these differences."""
    return gap_of(d, np.zeros_like(d))


def gap_values(gap: Gap) -> dict[str, float | None]:
    values = metrics.values(Summary(gap=gap))
    return {name: values[name] for name in oracles.gap([])}


def assert_like(left: Any, right: Any, scale: float = 1.0) -> None:
    """Equal, sums to rounding."""
    if isinstance(left, np.ndarray) and left.dtype.kind == "f":
        assert left.shape == right.shape
        size = 1 + float(np.abs(left[np.isfinite(left)]).max(initial=0))
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9 * scale * size)
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-9, abs=1e-9 * scale)
    elif hasattr(left, "__dataclass_fields__"):
        for field in fields(left):
            assert_like(getattr(left, field.name), getattr(right, field.name), scale)
    else:
        assert left == right


@given(differences)
def test_no_figure_is_nan_or_infinite_and_every_token_is_counted(d: np.ndarray) -> None:
    gap = gap_with(d)
    assert gap.n + gap.invalid == gap.tokens == d.size
    assert all(value is None or math.isfinite(value) for value in metrics.values(Summary(gap=gap)).values())
    assert int(gap.bins.sum()) == gap.n


@given(moderate)
def test_k3_minus_k1_is_the_mean_ratio_minus_one(d: np.ndarray) -> None:
    gap = gap_with(d)
    if gap.n:
        assert gap.k1 is not None and gap.k3 is not None and gap.ratio is not None
        assert gap.k3 - gap.k1 == pytest.approx(gap.ratio - 1, rel=1e-13, abs=1e-13)
        assert gap.ess is not None and 0 < gap.ess <= 1


@given(moderate, moderate, moderate)
def test_gaps_merge_in_any_order_and_grouping(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    left = gap_with(np.concatenate([a, b, c]))
    for right in (gap_with(a) + gap_with(b) + gap_with(c), gap_with(c) + (gap_with(a) + gap_with(b))):
        assert_like(gap_values(left).keys(), gap_values(right).keys())
        floor = 1e-7 * (1 + math.exp(min(float(left.extremes[1]), 20.0)))  # spreads are differences of sums
        for name, value in gap_values(left).items():
            assert gap_values(right)[name] == (None if value is None else pytest.approx(value, rel=1e-7, abs=floor))
        assert_like(left.bins, right.bins)
        assert_like(left.extremes, right.extremes)
        assert_like(left.surprisal, right.surprisal, 1e4)
        assert_like(left.probs, right.probs)
    assert_like(Gap() + gap_with(a), gap_with(a))


@given(small, small, small)
def test_means_pairs_and_sizes_merge_in_any_order_and_grouping(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    whole = np.concatenate([a, b, c])
    assert_like(Spread.of(c) + (Spread.of(a) + Spread.of(b)), Spread.of(whole), 1e3)
    pairs = [Pairs.of(x, x * x) for x in (a, b, c, whole)]
    assert_like(pairs[2] + (pairs[0] + pairs[1]), pairs[3], 1e5)
    assert_like(Sizes.of(c) + (Sizes.of(a) + Sizes.of(b)), Sizes.of(whole))


@given(arrays(np.int64, st.integers(0, 30), elements=st.integers(-40, 40)))
def test_counts_act_as_repeated_values(x: np.ndarray) -> None:
    values, often = np.unique(x, return_counts=True)
    assert_like(Spread.of(values, often), Spread.of(x), 1e4)
    assert_like(Sizes.of(values, often), Sizes.of(x))


@given(st.lists(st.integers(0, 127), min_size=1))
def test_small_sizes_are_exact(sizes: list[int]) -> None:
    found = Sizes.of(np.array(sizes))
    assert sorted(np.repeat(found.values, found.counts)) == sorted(sizes)


bound = st.one_of(st.none(), st.floats(0, 2))
bounds = st.builds(Bounds, bound, bound, st.booleans())


@given(bounds, bounds, bounds)
def test_bounds_merge_in_any_order_and_grouping(a: Bounds, b: Bounds, c: Bounds) -> None:
    assert (a + b) + c == c + (a + b) == a + (b + c)
    assert a + Bounds() == a


def rows_of(rng: np.random.Generator, size: int) -> np.ndarray:
    rows = np.abs(rng.normal(size=(size, len(RUN))))
    rows[:, RUN.n] = rng.integers(0, 5, size)
    rows[:, RUN.low], rows[:, RUN.high] = -rows[:, RUN.high], rows[:, RUN.high]
    return rows


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40))
def test_sequences_lines_and_groups_of_parts_merge_to_those_of_the_whole(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_of(rng, first + second)
    lengths, gains = rng.integers(1, 500, len(rows)), rng.normal(size=len(rows))
    keys, rewards = rng.integers(0, 9, len(rows)).astype(np.uint64), rng.integers(0, 3, len(rows)).astype(np.float64)
    cut_at = slice(first), slice(first, None)
    of_sequences = [SequenceSummary.of(rows[part], lengths[part], gains[part]) for part in (*cut_at, slice(None))]
    assert_like(of_sequences[1] + of_sequences[0], of_sequences[2], 1e4)
    of_lines = [Regression.of(rows[part, :5]) for part in (*cut_at, slice(None))]
    assert_like(of_lines[1] + of_lines[0], of_lines[2])
    of_groups = [Groups.of(keys[part], rows[part], rewards[part]) for part in (*cut_at, slice(None))]
    assert_like(of_groups[1] + of_groups[0], of_groups[2])


def test_too_many_groups_are_sampled_completely_and_in_any_order() -> None:
    rng = np.random.default_rng(0)
    keys = np.repeat(rng.permutation(3 * MAX_GROUPS).astype(np.uint64), 2)
    rows, rewards = rows_of(rng, keys.size), rng.random(keys.size)
    order = rng.permutation(keys.size)
    parts = [Groups.of(keys[part], rows[part], rewards[part]) for part in np.array_split(order, 5)]
    forth = sum(parts, Groups())
    back = sum(reversed(parts), Groups())
    assert_like(forth, back)
    assert forth.keys.tolist() == list(range(MAX_GROUPS))
    assert set(forth.rewards[:, 0]) == {2.0}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 400), st.integers(0, 2)), min_size=1, max_size=12))
def test_pieces_are_the_runs_split_at_position_edges(described: list[tuple[int, int, int]]) -> None:
    sizes, at, places = (np.array(column, np.int64) for column in zip(*described, strict=True))
    end = np.cumsum(sizes)
    runs = TokenRuns(end - sizes, end, np.arange(sizes.size), places, at, np.zeros(sizes.size, np.int64), 3)
    pieces = cut(runs)
    covered = np.concatenate([np.arange(a, b) for a, b in zip(pieces.start, pieces.end, strict=True)])
    assert covered.tolist() == list(range(int(end[-1])))
    for start, stop, run, bin_ in zip(pieces.start, pieces.end, pieces.run, pieces.position, strict=True):
        first, last = at[run] + start - runs.start[run], at[run] + stop - 1 - runs.start[run]
        assert POSITION_EDGES[bin_] <= first
        assert bin_ + 1 == POSITION_EDGES.size or last < POSITION_EDGES[bin_ + 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_strata_hold_the_moments_of_their_sequences_and_merge(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, places = rng.integers(1, 90, rows), np.zeros(rows, np.int64)
    end = np.cumsum(sizes)
    trainer, rollout = -rng.exponential(1, (2, end[-1]))
    zero = np.zeros(rows, np.int64)
    pieces = cut(TokenRuns(end - sizes, end, np.arange(rows), places, zero, zero, 1))
    labels = {"finish": rng.integers(0, 6, rows)}
    reduced = reduce(trainer, rollout, pieces)
    (found,) = Strata.of(reduced, pieces, labels)
    plain: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row, (stop, size) in enumerate(zip(end, sizes, strict=True)):
        for at in range(size):
            token = stop - size + at
            position = int(np.searchsorted(POSITION_EDGES, at, side="right")) - 1
            probability = int(
                np.searchsorted([1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9], math.exp(rollout[token]), side="right")
            )
            strata = {"all": 0, "position": position, "probability": probability, "finish": int(labels["finish"][row])}
            for key in strata.items():
                plain.setdefault(key, {}).setdefault(row, []).append(abs(trainer[token] - rollout[token]))
    told = {(dimension.name, dimension.strata.index(label)): moments for dimension, label, moments in found}
    assert told.keys() == plain.keys()
    for key, of_rows in plain.items():
        n = np.array([len(values) for values in of_rows.values()], float)
        s = np.array([math.fsum(values) for values in of_rows.values()])
        expected = [len(n), n.sum(), s.sum(), (n * n).sum(), (s * s).sum(), (n * s).sum()]
        assert told[key][1] == pytest.approx(expected)
    halves = [pieces.select((pieces.group < rows // 2) == first) for first in (True, False)]
    parts = [Strata.of(reduce(trainer, rollout, half), half, labels)[0] for half in halves]
    assert_like(parts[1] + parts[0], found)
    assert found.moments.shape[1] == len(FIGURE)


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-5, 5)), min_size=3, max_size=30))
def test_a_regression_over_one_lag_has_no_fit(pairs: list[tuple[int, float]]) -> None:
    sums = np.array([(n, 2.0 * n, 4.0 * n, y, 2.0 * y) for n, y in pairs])
    assert Regression.of(sums).fit() is None
    assert Regression.of(sums).errors() is None


def test_no_tokens_and_invalid_tokens_give_none_everywhere() -> None:
    for gap in (Gap(), gap_with(np.full(7, np.nan))):
        values = gap_values(gap)
        assert {name for name, value in values.items() if value is not None} <= {"invalid_frac"}
    assert gap_values(gap_with(np.full(7, np.nan)))["invalid_frac"] == 1.0


def test_every_field_of_a_summary_merges() -> None:
    empty = Summary()
    both = empty + empty
    for field in fields(Summary):
        assert type(getattr(both, field.name)) is type(getattr(empty, field.name))
    assert_like(both, empty)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.floats(-50, 50), st.integers(0, 2**32 - 1))
def test_equal_numbers_have_no_slope_after_any_merge(sizes: list[int], x: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    merged = sum((Pairs.of(np.full(size, x), rng.normal(size=size)) for size in sizes), Pairs())
    assert (merged.slope, merged.correlation) == (None, None)
    line = sum((Pairs.of(rising := x + np.arange(size, dtype=np.float64), rising) for size in [2, *sizes]), Pairs())
    assert line.slope == pytest.approx(1.0)


def test_both_kernels_share_their_constants() -> None:
    """They can't import them: numba renews cached code only when its own file changes."""
    for name in ("CLAMP", "BOUND", "NEAR"):
        assert getattr(evidence_kernel, name) == getattr(summary_kernel, name)
