"""The line k3 = a + b lag, told only as far as the lags of the tokens allow. Pure.

k3 grows faster than lag, so a line through lags that are near each other has a slope of noise and a foot as high as k3
itself: it would tell of an engine that is off in every healthy run. And what a line has at lag 0 is no evidence where
no token is near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rltop.backend.summary.dimensions import LAG, MAX_LAG, OFFSET, UNKNOWN
from rltop.backend.summary.moments import Regression
from rltop.backend.summary.strata import K3, Strata

MIN_SPAN = 3
"""Versions that the lags must span, and within which of lag 0 there must be tokens, for the line to be told there."""

END = 20
"""One token in so many must be at either end of the span."""

_LAGS = np.arange(-1, MAX_LAG + 1)
_ROWS = slice(OFFSET[LAG.name], OFFSET[LAG.name] + LAG.strata.index(UNKNOWN))

Estimate = tuple[float, float | None]
"""A value and its standard error, None with too few sequences."""


@dataclass(frozen=True, slots=True)
class LagLine:
    """``k3 = at_lag0 + per_lag * lag``.

    Attributes:
        lags: between which the tokens' lags are, but for one in ``END`` at either end.
        at_lag0: nats; None where not to be told. per_lag: likewise, nats per version.
        why: what keeps either from being told, for a person; empty if nothing does.
    """

    lags: tuple[int, int]
    at_lag0: Estimate | None = None
    per_lag: Estimate | None = None
    why: str = ""


def lag_line(line: Regression, strata: Strata) -> LagLine | None:
    """What can be told of a line and the strata of the same tokens; None where all have one lag, or none is known."""
    fit = line.fit()
    ends = lag_ends(strata)
    if fit is None or ends is None:
        return None
    low, high = ends
    if high - low < MIN_SPAN:
        seen = f"nearly all {low}" if low == high else f"{low} to {high}"
        return LagLine(ends, why=f"lags too close to tell ({seen})")
    errors = line.errors() or (None, None)
    foot, slope = zip(fit, errors, strict=True)
    if low >= MIN_SPAN:
        return LagLine(ends, None, slope, f"lags too far from 0 to tell what is left there ({low} to {high})")
    return LagLine(ends, foot, slope)


def lag_ends(strata: Strata) -> tuple[int, int] | None:
    """The lowest lag that one token in ``END`` is at or below, the highest that as many are at or above.

    None where no lag is known. Lags beyond the strata count as the last.
    """
    tokens = strata.moments[_ROWS, K3, 1]
    total = tokens.sum()
    if not total:
        return None
    low = np.flatnonzero(np.cumsum(tokens) * END >= total)[0]
    high = np.flatnonzero(np.cumsum(tokens[::-1])[::-1] * END >= total)[-1]
    return int(_LAGS[low]), int(_LAGS[high])
