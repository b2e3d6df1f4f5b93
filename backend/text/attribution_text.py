"""Formats parts of an attribution. Pure."""

from __future__ import annotations

from rltop.backend.api.attribution import Interval, LagRegression


def estimate(value: Interval, form: str = ".3g") -> str:
    """A mean with its interval."""
    if value.low is None or value.high is None:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"


def line_text(line: LagRegression) -> str:
    """The regression of k3 on lag, as far as the lags support it."""
    if line.per_lag is None:
        return f"k3 by lag: {line.why}"
    intercept = "?" if line.at_lag0 is None else estimate(line.at_lag0)
    return f"k3 = {intercept} + {estimate(line.per_lag)} per version, {line.why or 'lags {} to {}'.format(*line.lags)}"
