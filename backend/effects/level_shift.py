"""How far a series moved at a switch, with an interval that neither a trend nor autocorrelation nor one odd step fools.

Model: ``y_t = level + shift * after_t (+ slope * t + bend * t * after_t) + u_t``, t counted from the switch, u an AR(1)
process of any variance on either side.

1. Least squares, weighted. Residuals beyond ``PULL`` of their side's scale are pulled in to there and the fit is made
   anew, until it stands (Huber 1981, 7.8: pseudo-observations): one odd step neither makes nor hides an effect.
2. Residuals' lag-1 autocorrelation, corrected for the bias of a short series, within ``RHO``; the rows are whitened by
   it (Prais and Winsten 1954).
3. HC2 variance, right when the sides are not equally noisy (MacKinnon and White 1985), and t quantiles with the
   degrees of freedom of Bell and McCaffrey (2002; Imbens and Kolesar 2016), right when one side is short.

Which of these matter was found on recorded runs; ``docs/effects.md`` has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PULL = 2.0
"""In scales of a side; a scale is the mean absolute residual times sqrt(pi / 2), the standard deviation if normal."""

RHO = (-0.1, 0.9)
"""Bounds of the autocorrelation. Held to 0 and more, intervals of steps that are independent are too wide."""

ROUNDING = 1e-9
"""No interval is narrower than this part of the largest value: what never varies must not show an effect."""

_ROUNDS = 500


@dataclass(frozen=True, slots=True)
class LevelShift:
    """What a fit says: the shift, half the width of its interval, and the levels it lies between.

    ``before`` and ``after`` are the fitted levels at the switch, so that ``after - before`` is the shift; ``pulled``
    observations were odd; ``rho`` is the autocorrelation of the rest.
    """

    shift: float
    half: float
    before: float
    after: float
    pulled: int
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
    """The shift of ``y`` [n] where ``after`` [n] turns true; ``x`` [n] is the place in time, rising.

    ``weights`` [n] say how much an observation counts (tokens). None with fewer observations than the model and one
    more need, or without any on a side.
    """
    if after.all() or not after.any():
        return None
    design = _design(x, after, trend)
    n, k = design.shape
    if n <= k:
        return None
    root = np.sqrt(weights / weights.mean())
    rows, pulled = design * root[:, None], _pull_in(design, y, root, after)
    residuals = (pulled - design @ _solve(rows, pulled * root)) * root
    rho = _rho(residuals, k)
    rows, target = _whiten(rows, rho), _whiten(pulled * root, rho)
    beta = _solve(rows, target)
    kept = float(np.mean(pulled == y))
    variance, freedom = _variance(rows, target - rows @ beta)
    half = t_quantile((1 + level) / 2, freedom) * math.sqrt(variance) / max(kept, 0.5)
    half = max(half, ROUNDING * float(np.max(np.abs(y))))
    before, shift = float(beta[0]), float(beta[1])
    return LevelShift(shift, half, before, before + shift, int(np.count_nonzero(pulled != y)), rho)


def needed(x: Floats, after: Bools, *, trend: bool, half: float, wanted: float, limit: int) -> int | None:
    """How many more observations after the switch make the interval's half as small as ``wanted``.

    From the design alone, at the present noise. None if ``limit`` observations after the switch are not enough.
    """
    now = _spread(_design(x, after, trend))
    gap = float(np.median(np.diff(x))) if x.size > 1 else 1.0
    for more in range(1, limit - int(np.count_nonzero(after)) + 1):
        longer = np.concatenate([x, x[-1] + gap * np.arange(1, more + 1)])
        then = _spread(_design(longer, np.concatenate([after, np.ones(more, bool)]), trend))
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


def _spread(design: Floats) -> float:
    """Variance of the shift in units of the noise's."""
    return float(np.linalg.pinv(design.T @ design)[1, 1])


def _pull_in(design: Floats, y: Floats, root: Floats, after: Bools) -> Floats:
    """``y`` with its odd observations pulled in to ``PULL`` scales from the fit."""
    pulled = y
    project = design @ np.linalg.pinv(design * root[:, None])
    for _ in range(_ROUNDS):
        line = project @ (pulled * root)
        new = y.copy()
        for side in (after, ~after):
            scale = math.sqrt(math.pi / 2) * float(np.mean(np.abs((pulled - line)[side] * root[side])))
            bound = PULL * scale / root
            odd = side & (np.abs(y - line) > bound + 1e-12 * np.abs(line))
            new[odd] = (line + np.sign(y - line) * bound)[odd]
        if np.allclose(new, pulled, rtol=1e-10, atol=0.0):
            break
        pulled = new
    return pulled


def _rho(residuals: Floats, parameters: int) -> float:
    """Lag-1 autocorrelation; fitting ``parameters`` of them to n observations lowers it by about their share of n."""
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
    pull2 = lever[:, 1] ** 2 / free
    # With H the hat matrix and a = sqrt(pull2), the freedom is tr(B)^2 / tr(B B) of B = diag(a) (I - H) diag(a).
    moment = inverse @ (rows.T @ (rows * pull2[:, None]))
    trace2 = float(np.sum(pull2**2 * (2 * free - 1))) + float(np.trace(moment @ moment))
    return float(pull2 @ residuals**2), float(inverse[1, 1]) ** 2 / trace2


def t_quantile(p: float, freedom: float) -> float:
    """The ``p`` quantile, p > 0.5, of Student's t with ``freedom`` degrees of freedom, fractions too, at least 1.

    Hill 1970 (CACM algorithm 396): right to 0.1 % from 2 degrees on, up to a fifth too wide between 1 and 2.
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
