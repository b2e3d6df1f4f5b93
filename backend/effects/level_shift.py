"""Estimates the level shift of a series at a switch, robust to trend, autocorrelation and outliers.

Model: ``y_t = level + shift * after_t (+ slope * t + bend * t * after_t) + u_t``, t counted from the switch, u an AR(1)
process of any variance on either side.

1. Weighted least squares. Residuals beyond ``HUBER_BOUND`` scales of their side are winsorised and the fit is repeated
   until it converges (Huber 1981, 7.8: pseudo-observations), so that one outlier neither creates nor hides an effect.
2. Lag-1 autocorrelation of the residuals, corrected for the bias of a short series, within ``RHO``; the rows are
   whitened by it (Prais and Winsten 1954).
3. HC2 variance, valid if the sides are not equally noisy (MacKinnon and White 1985), and t quantiles with the degrees
   of freedom of Bell and McCaffrey (2002; Imbens and Kolesar 2016), valid if one side is short.

The choice was made on recorded runs; ``docs/effects.md`` has the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

HUBER_BOUND = 2.0
"""In scales of a side; a scale is the mean absolute residual times sqrt(pi / 2), the standard deviation if normal."""

RHO = (-0.1, 0.9)
"""Bounds of the autocorrelation. With a lower bound of 0 the intervals of independent steps are too wide."""

ROUNDING = 1e-9
"""Least half-width of an interval relative to the largest value, so that a constant shows no effect."""

_ROUNDS = 500

_EXTRAPOLATE_EVERY = 10
"""Rounds between two extrapolations: a few outliers on a short side converge by 0.3 % a round."""


@dataclass(frozen=True, slots=True)
class LevelShift:
    """The result of a fit: the shift and half the width of its interval.

    ``before`` and ``after`` are the fitted levels at the switch; their difference is the shift. ``winsorised``: number
    of outliers. ``rho``: autocorrelation of the residuals.
    """

    shift: float
    half: float
    before: float
    after: float
    winsorised: int
    rho: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.shift - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.shift + self.half


def fit(x: Floats, y: Floats, weights: Floats, after: Bools, *, trend: bool, level: float = 0.95) -> LevelShift | None:
    """The shift of ``y`` [n] where ``after`` [n] becomes true; ``x`` [n] is the time, rising.

    ``weights`` [n]: sample size of each observation (tokens). None if there are no more observations than parameters,
    or none on a side.
    """
    if after.all() or not after.any():
        return None
    design = _design(x, after, trend)
    n, k = design.shape
    if n <= k:
        return None
    root = np.sqrt(weights / weights.mean())
    rows, robust = design * root[:, None], _winsorised(design, y, root, after)
    residuals = (robust - design @ _solve(rows, robust * root)) * root
    rho = _rho(residuals, k)
    rows, target = _whiten(rows, rho), _whiten(robust * root, rho)
    beta = _solve(rows, target)
    kept = float(np.mean(robust == y))
    variance, freedom = _variance(rows, target - rows @ beta)
    half = t_quantile((1 + level) / 2, freedom) * math.sqrt(variance) / max(kept, 0.5)
    half = max(half, ROUNDING * float(np.max(np.abs(y))))
    before, shift = float(beta[0]), float(beta[1])
    return LevelShift(shift, half, before, before + shift, int(np.count_nonzero(robust != y)), rho)


def observations_needed(x: Floats, after: Bools, *, trend: bool, half: float, wanted: float, limit: int) -> int | None:
    """Further observations after the switch that reduce the interval's half-width to ``wanted``.

    Computed from the design at the present noise. None if ``limit`` observations after the switch are not enough.
    """
    now = _shift_variance(_design(x, after, trend))
    gap = float(np.median(np.diff(x))) if x.size > 1 else 1.0
    for more in range(1, limit - int(np.count_nonzero(after)) + 1):
        longer = np.concatenate([x, x[-1] + gap * np.arange(1, more + 1)])
        then = _shift_variance(_design(longer, np.concatenate([after, np.ones(more, bool)]), trend))
        if half * math.sqrt(then / now) <= wanted:
            return more
    return None


def _design(x: Floats, after: Bools, trend: bool) -> Floats:
    columns = [np.ones(x.size), after.astype(np.float64)]
    if trend:
        origin = x[after][0] if after.any() else x[-1]
        t = (x - origin) / max(float(np.ptp(x)), 1e-12)
        columns += [t, t * after]
    return np.column_stack(columns)


def _solve(rows: Floats, target: Floats) -> Floats:
    return np.asarray(np.linalg.lstsq(rows, target, rcond=None)[0], np.float64)


def _shift_variance(design: Floats) -> float:
    """Variance of the shift relative to that of the noise."""
    return float(np.linalg.pinv(design.T @ design)[1, 1])


def _winsorised(design: Floats, y: Floats, root: Floats, after: Bools) -> Floats:
    """``y`` with its outliers moved to ``HUBER_BOUND`` scales from the fit."""
    robust, last = y, np.zeros(y.size)
    project = design @ np.linalg.pinv(design * root[:, None])
    for number in range(1, _ROUNDS + 1):
        line = project @ (robust * root)
        new = y.copy()
        for side in (after, ~after):
            scale = math.sqrt(math.pi / 2) * float(np.mean(np.abs((robust - line)[side] * root[side])))
            bound = HUBER_BOUND * scale / root
            outlier = side & (np.abs(y - line) > bound + 1e-12 * np.abs(line))
            new[outlier] = (line + np.sign(y - line) * bound)[outlier]
        if np.allclose(new, robust, rtol=1e-10, atol=0.0):
            break
        step = new - robust
        if number % _EXTRAPOLATE_EVERY == 0:
            new = new + _rest(step, last)
        robust, last = new, step
    return robust


def _rest(step: Floats, last: Floats) -> Floats:
    """The sum of all further steps if each is to the one before as this one is to the last (Aitken)."""
    size = float(last @ last)
    ratio = float(step @ last) / size if size else 0.0
    return step * (ratio / (1 - ratio)) if 0 < ratio < 1 else np.zeros(step.size)


def _rho(residuals: Floats, parameters: int) -> float:
    """Lag-1 autocorrelation; fitting ``parameters`` to n observations lowers it by about their ratio: corrected."""
    power = float(residuals @ residuals)
    if not power:
        return 0.0
    rho = float(residuals[1:] @ residuals[:-1]) / power
    return min(max(rho + (parameters + 3 * rho) / residuals.size, RHO[0]), RHO[1])


def _whiten(values: Floats, rho: float) -> Floats:
    first = values[:1] * math.sqrt(1 - rho**2)
    return np.concatenate([first, values[1:] - rho * values[:-1]])


def _variance(rows: Floats, residuals: Floats) -> tuple[float, float]:
    """HC2 variance of the shift, and its Bell-McCaffrey degrees of freedom."""
    inverse = np.linalg.pinv(rows.T @ rows)
    lever = rows @ inverse
    free = np.maximum(1 - np.einsum("ij,ij->i", lever, rows), 1e-9)
    weight2 = lever[:, 1] ** 2 / free
    # With H the hat matrix and a = sqrt(weight2), the freedom is tr(B)^2 / tr(B B) of B = diag(a) (I - H) diag(a).
    moment = inverse @ (rows.T @ (rows * weight2[:, None]))
    trace2 = float(np.sum(weight2**2 * (2 * free - 1))) + float(np.trace(moment @ moment))
    return float(weight2 @ residuals**2), float(inverse[1, 1]) ** 2 / trace2


def t_quantile(p: float, freedom: float) -> float:
    """The ``p`` quantile, p > 0.5, of Student's t with ``freedom`` (real, at least 1) degrees of freedom.

    Hill 1970 (CACM algorithm 396): accurate to 0.1 % from 2 degrees on, up to a fifth too wide between 1 and 2.
    """
    n, both = max(freedom, 1.0), 2 * (1 - p)
    a = 1 / (n - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = float((d * both) ** (2 / n))
    if y <= 0.05 + a:
        tail = 1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)
        return math.sqrt(n * ((tail * y - 1) * (n + 1) / (n + 2) + 1 / y))
    x = NormalDist().inv_cdf(both / 2)
    y = x * x
    if n < 5:
        c += 0.3 * (n - 4.5) * (x + 0.6)
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return math.sqrt(n * math.expm1(a * y * y))
