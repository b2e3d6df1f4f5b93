"""The fit behind an effect, against the same reckoning done the plain way, and on series whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rltop.backend.effects.level_shift import HUBER_BOUND, RHO, LevelShift, fit, observations_needed, t_quantile

Floats = NDArray[np.float64]


def series(
    seed: int, before: int, after: int, *, rho: float = 0.3, shift: float = 0.0, slope: float = 0.0, uneven: bool = True
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """x, y, weights and side of an AR(1) series about a line, noisier after than before, with long tails."""
    rng = np.random.default_rng(seed)
    n = before + after
    noise = rng.standard_t(5, n + 50)
    for t in range(1, n + 50):
        noise[t] += rho * noise[t - 1]
    x = np.arange(n) + (np.arange(n) >= before) * 2.0
    side = np.arange(n) >= before
    y = 3.0 + slope * x + side * shift + noise[50:] * np.where(side & uneven, 1.5, 1.0)
    return x, y, rng.uniform(0.5, 2.0, n), side


def plain(x: Floats, y: Floats, weights: Floats, after: NDArray[np.bool_], *, trend: bool) -> tuple[float, float]:
    """Shift and half width with whole matrices, one observation at a time."""
    n = len(y)
    t = x - x[after][0]
    columns = [np.ones(n), after * 1.0] + ([t, t * after] if trend else [])
    design = np.array(columns).T
    scale = np.diag(np.sqrt(weights / np.mean(weights)))
    target = y.copy()
    for _ in range(2000):
        beta = np.linalg.solve(design.T @ scale @ scale @ design, design.T @ scale @ scale @ target)
        line = design @ beta
        moved = target.copy()
        for i in range(n):
            same = [j for j in range(n) if after[j] == after[i]]
            sigma = np.mean([abs(target[j] - line[j]) * scale[j, j] for j in same]) * math.sqrt(math.pi / 2)
            bound = HUBER_BOUND * sigma / scale[i, i]
            moved[i] = min(max(y[i], line[i] - bound), line[i] + bound)
        if np.max(np.abs(moved - target)) < 1e-12:
            break
        target = moved
    kept = np.mean(np.abs(target - y) < 1e-9)
    e = scale @ (target - line)
    rho = sum(e[i] * e[i - 1] for i in range(1, n)) / sum(e[i] ** 2 for i in range(n))
    rho = min(max(rho + (design.shape[1] + 3 * rho) / n, RHO[0]), RHO[1])
    white = np.eye(n)
    white[0, 0] = math.sqrt(1 - rho**2)
    for i in range(1, n):
        white[i, i - 1] = -rho
    rows, goal = white @ scale @ design, white @ scale @ target
    inverse = np.linalg.inv(rows.T @ rows)
    hat = rows @ inverse @ rows.T
    beta = inverse @ rows.T @ goal
    residual = goal - rows @ beta
    lever = inverse @ rows.T
    variance = sum(lever[1, i] ** 2 * residual[i] ** 2 / (1 - hat[i, i]) for i in range(n))
    spread = np.array([(np.eye(n) - hat)[:, i] * lever[1, i] / math.sqrt(1 - hat[i, i]) for i in range(n)])
    eigen = np.linalg.eigvalsh(spread @ spread.T)
    freedom = eigen.sum() ** 2 / (eigen**2).sum()
    return float(beta[1]), t_quantile(0.975, float(freedom)) * math.sqrt(variance) / max(float(kept), 0.5)


def done(found: LevelShift | None) -> LevelShift:
    assert found is not None
    return found


@example(seed=123781, before=16, after=5, trend=False, rho=0.0)  # two outliers that converge slowly
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), before=st.integers(5, 25), after=st.integers(5, 25), trend=st.booleans(),
    rho=st.sampled_from([0.0, 0.6]),
)  # fmt: skip
def test_the_fit_equals_the_dense_matrix_solution(seed: int, before: int, after: int, trend: bool, rho: float) -> None:
    data = series(seed, before, after, rho=rho, slope=0.1)
    found, (shift, half) = done(fit(*data, trend=trend)), plain(*data, trend=trend)
    assert found.shift == pytest.approx(shift, rel=1e-3, abs=1e-3)
    assert found.half == pytest.approx(half, rel=2e-3)


@pytest.mark.parametrize(
    ("freedom", "p", "value"),
    [(2, 0.975, 4.30265), (3, 0.975, 3.18245), (5, 0.975, 2.57058), (10, 0.975, 2.22814),
     (30, 0.975, 2.04227), (100, 0.975, 1.98397), (3, 0.9995, 12.9240), (10, 0.9995, 4.58689), (4, 0.95, 2.13185),
     (1e6, 0.975, 1.95997)],
)  # fmt: skip
def test_t_quantiles_match_the_tables(freedom: float, p: float, value: float) -> None:
    assert t_quantile(p, freedom) == pytest.approx(value, rel=1e-3)


@given(st.floats(1.0, 200.0), st.floats(0.01, 10.0))
def test_t_quantiles_fall_with_the_degrees_of_freedom(freedom: float, more: float) -> None:
    assert t_quantile(0.975, freedom + more) <= t_quantile(0.975, freedom) * (1 + 2e-3)


@pytest.mark.parametrize("trend", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
@pytest.mark.parametrize(("before", "after"), [(40, 40), (40, 10), (15, 20)])
def test_intervals_cover_a_known_shift_nineteen_times_in_twenty(
    before: int, after: int, rho: float, trend: bool
) -> None:
    truth, slope, runs = 2.0, 0.3 if trend else 0.0, 400
    held = 0
    for seed in range(runs):
        found = done(fit(*series(seed, before, after, rho=rho, shift=truth, slope=slope), trend=trend))
        held += found.low <= truth <= found.high
    hard = rho > 0.5 and after < 15  # ten observations can't tell so long a memory from a level
    assert (0.88 if hard else 0.90) <= held / runs <= 0.99


def test_a_trend_alone_is_no_shift_and_a_shift_is_found_despite_one() -> None:
    missed = sum(done(fit(*series(s, 40, 40, slope=-0.5, shift=4.0), trend=True)).high < 0 for s in range(100))
    found = sum(done(fit(*series(s, 40, 40, slope=-0.5, shift=4.0), trend=True)).low > 0 for s in range(100))
    assert missed == 0
    assert found >= 80


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), trend=st.booleans(), scale=st.floats(1e-6, 1e6), offset=st.floats(-1e3, 1e3),
    weight=st.floats(1e-3, 1e3), pace=st.floats(1e-2, 1e2),
)  # fmt: skip
def test_the_fit_is_scale_invariant(
    seed: int, trend: bool, scale: float, offset: float, weight: float, pace: float
) -> None:  # fmt: skip
    x, y, w, after = series(seed, 15, 12)
    base, other = done(fit(x, y, w, after, trend=trend)), done(
        fit(pace * x + offset, scale * y, weight * w, after, trend=trend)
    )  # fmt: skip
    assert other.shift == pytest.approx(scale * base.shift, rel=1e-4, abs=1e-4 * scale)
    assert other.half == pytest.approx(scale * base.half, rel=1e-4)
    assert other.before == pytest.approx(scale * base.before, rel=1e-4, abs=1e-4 * scale)
    turned = done(fit(x, -y, w, after, trend=trend))
    assert (turned.low, turned.high) == pytest.approx((-base.high, -base.low), rel=1e-6, abs=1e-9)


def test_one_outlier_neither_hides_nor_creates_a_shift() -> None:
    x, y, w, after = series(1, 30, 30, shift=5.0)
    y[40] += 1000.0
    found = done(fit(x, y, w, after, trend=True))
    assert found.low > 0
    assert found.high < 15
    assert found.winsorised >= 1
    x, y, w, after = series(1, 30, 30)
    y[40] += 1000.0
    found = done(fit(x, y, w, after, trend=True))
    assert found.low < 0 < found.high < 15


def test_a_constant_figure_has_no_shift() -> None:
    x, _, w, after = series(0, 10, 10)
    for value in (0.0, 1 / 3, 1e6, -1e-6):
        found = done(fit(x, np.full(20, value), w, after, trend=True))
        assert found.low <= 0 <= found.high
        assert found.half == pytest.approx(0, abs=1e-8 * abs(value))
        assert found.winsorised == 0


@pytest.mark.parametrize(("before", "after"), [(0, 9), (9, 0), (2, 2), (0, 0)])
def test_one_side_or_too_few_observations_give_no_fit(before: int, after: int) -> None:
    n = before + after
    values: Any = np.arange(float(n))
    assert fit(values, values, np.ones(n), np.arange(n) >= before, trend=True) is None


def test_the_needed_observations_suffice_and_fewer_do_not() -> None:
    x, _, _, after = series(3, 40, 8)
    half = 1.0
    more = observations_needed(x, after, trend=False, half=half, wanted=0.7, limit=100)
    assert more is not None

    def width(extra: int) -> float:
        return half * math.sqrt((1 / 40 + 1 / (8 + extra)) / (1 / 40 + 1 / 8))

    assert width(more) <= 0.7 < width(more - 1)
    assert observations_needed(x, after, trend=False, half=half, wanted=0.3, limit=100) is None
