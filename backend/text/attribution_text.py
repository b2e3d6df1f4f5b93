"""Formats parts of an attribution. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.backend.api.attribution import Attribution, Interval, LagRegression, Stratum


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


UNRANKED = frozenset({"all", "prompt", "probability"})
"""Dimensions that are not ranked: of single prompts there are too many, and a gap grows with 1 - p in any run."""

MIN_EXCESS = 0.02
"""Least share of the gap beyond the share of the tokens for which a stratum is ranked."""


@dataclass(frozen=True)
class RankedSource:
    """A stratum with more of the gap than its tokens account for.

    Attributes:
        dimension, label: of the stratum.
        of_gap: its share of the sum of |d|. of_tokens: its share of the tokens.
        certain: its mean |d| is above that of all tokens beyond its 95 % interval.
    """

    dimension: str
    label: str
    of_gap: float
    of_tokens: float
    certain: bool

    @property
    def excess(self) -> float:
        """Share of the gap that its tokens do not account for."""
        return self.of_gap - self.of_tokens


def ranking(strata: Sequence[Stratum]) -> list[RankedSource]:
    """The strata with the largest excess, the best of each dimension, largest first."""
    total = next((one for one in strata if one.dimension == "all" and one.engine is None), None)
    if total is None or not total.tokens or total.abs_diff.mean <= 0:
        return []
    whole = total.tokens * total.abs_diff.mean
    best: dict[str, RankedSource] = {}
    for one in strata:
        if one.engine is None and one.dimension not in UNRANKED and one.tokens < total.tokens:
            certain = one.abs_diff.low is not None and one.abs_diff.low > total.abs_diff.mean
            share = one.tokens * one.abs_diff.mean / whole
            source = RankedSource(one.dimension, one.label, share, one.tokens / total.tokens, certain)
            if source.excess >= max(MIN_EXCESS, best[one.dimension].excess if one.dimension in best else 0.0):
                best[one.dimension] = source
    return sorted(best.values(), key=lambda source: (not source.certain, -source.excess))


def summary(found: Attribution) -> str:
    """One or two sentences: how much of the gap is staleness, and where the rest stands out."""
    total = _all(found.strata)
    if total is None or total.k3.mean <= 0:
        return "There is no gap between trainer and rollout logprobs."
    matched = _all(found.matched)
    sources = [source for source in ranking(found.matched if matched else found.strata) if source.certain]
    place = " It is even over all strata." if matched is None else " The rest is even over all strata."
    if sources:
        first = sources[0]
        place = (
            f" {'Of the rest, ' if matched else ''}{first.dimension} {first.label} has {first.of_gap:.0%} "
            f"with {first.of_tokens:.0%} of the tokens."
        )
    return _staleness(total, matched, found.lines) + place


def _staleness(total: Stratum, matched: Stratum | None, lines: Sequence[LagRegression]) -> str:
    base = matched.k3.mean if matched is not None else _at_lag0(lines)
    if base is None:
        return f"k3 is {total.k3.mean:.3g} nats; without version-matched tokens, staleness can't be separated."
    share = min(max(1 - base / total.k3.mean, 0.0), 1.0)
    how = "" if matched is not None else ", by the line over lags"
    rest = "nothing but rounding" if base < 1e-9 else f"{base:.3g} nats"
    return (
        f"About {share:.0%} of the gap is lag (staleness){how}: k3 is {total.k3.mean:.3g} nats, and {rest} remains "
        "at equal versions."
    )


def _at_lag0(lines: Sequence[LagRegression]) -> float | None:
    line = next((line for line in lines if line.engine is None), None)
    return None if line is None or line.at_lag0 is None else max(line.at_lag0.mean, 0.0)


def _all(strata: Sequence[Stratum]) -> Stratum | None:
    return next((one for one in strata if one.dimension == "all" and one.engine is None), None)
