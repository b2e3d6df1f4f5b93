"""Mergeable summaries of tokens: counts, float64 sums, extremes, fixed histograms and strata. Pure.

Every summary is a monoid: the empty summary, a constructor ``of`` that takes arrays, and an associative and commutative
``+`` (sums to float64 rounding, everything else exactly). Quantiles are computed only for display.
``d = trainer - rollout`` throughout, in nats; conventions of ``rltop.backend.metrics``.
"""

from rltop.backend.summary.engine_summary import Bounds, Summary
from rltop.backend.summary.gap import Gap
from rltop.backend.summary.kernel import CLAMP, Floats, Ints
from rltop.backend.summary.moments import Pairs, Regression, Sizes, Spread
from rltop.backend.summary.sequences import SequenceSummary
from rltop.backend.summary.strata import Strata

__all__ = [
    "CLAMP",
    "Bounds",
    "Floats",
    "Gap",
    "Ints",
    "Pairs",
    "Regression",
    "SequenceSummary",
    "Sizes",
    "Spread",
    "Strata",
    "Summary",
]
