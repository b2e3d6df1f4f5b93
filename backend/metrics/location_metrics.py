"""Metrics that compare positions of a sequence, and engines, with each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rltop.backend.metrics.metric import MISMATCH, Metric, MetricFamily, Thresholds, Values
from rltop.backend.summary.dimensions import OFFSET, POSITION, POSITIONS
from rltop.backend.summary.kernel import FIGURE, MOMENT

if TYPE_CHECKING:
    from rltop.backend.summary import Summary

JUMP = 5.0
JUMP_TOKENS = 32
"""Multiple of the median |d| that counts as a jump, and the fewest tokens of a position bin that is compared."""

COMPARED = ("ratio_mean", "logp_abs_diff_mean", "kl_k3", "extreme_frac_tau2", "entropy_sample_rollout")
"""Metrics by which engines are compared."""

MIN_ENGINES = 4
"""With fewer engines the median absolute deviation means nothing: two are always equally far from their median."""


def gap_jump_position(s: Summary) -> float | None:
    """The first position at which the profile exceeds ``JUMP`` times its median."""
    rows = s.strata.moments[OFFSET[POSITION.name] :][: len(POSITION.strata), FIGURE.abs_d]
    compared = np.flatnonzero(rows[:, MOMENT.n] >= JUMP_TOKENS)
    if not compared.size:
        return None
    means = rows[compared, MOMENT.s] / rows[compared, MOMENT.n]
    above = np.flatnonzero(means > JUMP * np.median(means))
    return float(POSITIONS[compared[above[0]]]) if above.size else None


def engine_z(engines: Mapping[str, Values]) -> dict[str, float | None]:
    """For each engine, the robust z of the metric in which it deviates most; None if none can be compared."""
    found: dict[str, float | None] = dict.fromkeys(engines)
    for metric in COMPARED:
        known = {engine: value for engine, values in engines.items() if (value := values.get(metric)) is not None}
        if len(known) < MIN_ENGINES:
            continue
        middle = float(np.median(list(known.values())))
        spread = 1.4826 * float(np.median([abs(value - middle) for value in known.values()]))
        if spread <= 1e-9 * abs(middle):  # equal up to rounding: any difference would give an infinite z
            continue
        for engine, value in known.items():
            z, largest = (value - middle) / spread, found[engine]
            found[engine] = z if largest is None or abs(z) > abs(largest) else largest
    return found


def _largest(engines: Mapping[str, Values]) -> float | None:
    known = [z for values in engines.values() if (z := values.get("engine_z")) is not None]
    return max(known, key=abs, default=None)


WHERE = MetricFamily(
    "Where does the gap begin, and on which engine?",
    "`rltop attribution` has the details.",
    (
        Metric("gap_jump_position", "tokens", "token", f"first position whose bin (a stratum of position with "
               f"{JUMP_TOKENS} tokens or more) has a mean |d| above {JUMP:g} times the median bin's; None without "
               "such a bin", "vLLM issue 54035", "none", gap_jump_position,
               reading="The same position in every step: a kernel tile or a cache boundary, not the text."),
        Metric("engine_z", "robust standard deviations", "engine", f"(value - median of the engines) / (1.4826 median "
               f"absolute deviation), the largest of {', '.join(COMPARED)}; for the fleet, that of the farthest "
               "engine", MISMATCH, "away from 0", None,
               Thresholds(4.0, 8.0, "rltop: of the same engine, two steps in a row"), reading="Large: one bad replica. "
               "In small fleets a single step above 4 is common.", across=_largest,
               needs=f"{MIN_ENGINES} engines with different values"),
    ),
)  # fmt: skip
