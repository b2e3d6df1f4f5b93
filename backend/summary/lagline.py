"""The regression of k3 on lag, reported as far as the range of lags supports it. Pure.

The slope is reported only if the lags span at least ``MIN_SPAN`` versions, the intercept only if there are tokens near
lag 0. k3 grows faster than lag, so over a narrow range of lags the slope is noise and the intercept as high as k3
itself, which would suggest a faulty engine in every healthy run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rltop.backend.summary.dimensions import LAG, MAX_LAG, OFFSET, UNKNOWN
from rltop.backend.summary.kernel import FIGURE, MOMENT
from rltop.backend.summary.moments import Regression
from rltop.backend.summary.strata import Strata

MIN_SPAN = 3
"""Versions that the lags must span for a slope; an intercept also needs tokens at a lag below it."""

END = 20
"""The range of lags leaves out less than one token in ``END`` on either side."""

_LAGS = np.arange(-1, MAX_LAG + 1)
_ROWS = slice(OFFSET[LAG.name], OFFSET[LAG.name] + LAG.strata.index(UNKNOWN))

Estimate = tuple[float, float | None]
"""A value and its standard error, None with too few sequences."""


@dataclass(frozen=True, slots=True)
class LagLine:
    """``k3 = at_lag0 + per_lag * lag``.

    Attributes:
        lags: range of the lags, leaving out less than one token in ``END`` on either side.
        at_lag0: nats; None if the lags do not support it. per_lag: nats per version; None on the same condition.
        why: reason that one of them is None; empty if both are given.
    """

    lags: tuple[int, int]
    at_lag0: Estimate | None = None
    per_lag: Estimate | None = None
    why: str = ""


def lag_line(line: Regression, strata: Strata) -> LagLine | None:
    """The parts of a regression that the lags in ``strata`` support; None if all have one lag or none is known."""
    fit = line.fit()
    ends = lag_ends(strata)
    if fit is None or ends is None:
        return None
    low, high = ends
    if high - low < MIN_SPAN:
        seen = f"nearly all {low}" if low == high else f"{low} to {high}"
        return LagLine(ends, why=f"lags span too few versions for a line ({seen})")
    errors = line.errors() or (None, None)
    intercept, slope = zip(fit, errors, strict=True)
    if low >= MIN_SPAN:
        return LagLine(ends, None, slope, f"lags too far from 0 for an intercept ({low} to {high})")
    return LagLine(ends, intercept, slope)


def lag_ends(strata: Strata) -> tuple[int, int] | None:
    """The lowest lag that one token in ``END`` is at or below, and the highest that as many are at or above.

    None if no lag is known. Lags beyond the last stratum count as in it.
    """
    tokens = strata.moments[_ROWS, FIGURE.k3, MOMENT.n]
    total = tokens.sum()
    if not total:
        return None
    low = np.flatnonzero(np.cumsum(tokens) * END >= total)[0]
    high = np.flatnonzero(np.cumsum(tokens[::-1])[::-1] * END >= total)[-1]
    return int(_LAGS[low]), int(_LAGS[high])
