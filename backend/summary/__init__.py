"""From tokens to a mergeable summary: counts, float64 sums, extremes, fixed histograms and strata. Pure.

Every summary here is an identity (the empty one), an ``of`` that makes one from arrays, and ``+``, which is associative
and commutative (sums to float64 rounding, everything else exactly). Quantiles are read only at display.
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
