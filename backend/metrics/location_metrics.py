"""Entries that compare: stretches of a sequence with the rest of it, an engine with the others. Pure."""

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
"""How many times the usual |d| is a jump, and how many tokens a stretch must have to be judged."""

COMPARED = ("ratio_mean", "logp_abs_diff_mean", "kl_k3", "extreme_frac_tau2", "entropy_sample_rollout")
"""Figures by which an engine is held against the others."""

MIN_ENGINES = 4
"""Of fewer, the median absolute deviation says nothing: two are always equally far from their middle."""


def gap_jump_position(s: Summary) -> float | None:
    """Where the position profile first exceeds ``JUMP`` times its median."""
    rows = s.strata.moments[OFFSET[POSITION.name] :][: len(POSITION.strata), FIGURE.abs_d]
    judged = np.flatnonzero(rows[:, MOMENT.n] >= JUMP_TOKENS)
    if not judged.size:
        return None
    means = rows[judged, MOMENT.s] / rows[judged, MOMENT.n]
    above = np.flatnonzero(means > JUMP * np.median(means))
    return float(POSITIONS[judged[above[0]]]) if above.size else None


def engine_z(engines: Mapping[str, Values]) -> dict[str, float | None]:
    """By engine, the z of the figure in which it stands out most; None where none can be judged."""
    found: dict[str, float | None] = dict.fromkeys(engines)
    for figure in COMPARED:
        known = {engine: value for engine, values in engines.items() if (value := values.get(figure)) is not None}
        if len(known) < MIN_ENGINES:
            continue
        middle = float(np.median(list(known.values())))
        spread = 1.4826 * float(np.median([abs(value - middle) for value in known.values()]))
        if spread <= 1e-9 * abs(middle):  # the same but for rounding: any difference would be infinitely odd
            continue
        for engine, value in known.items():
            z, before = (value - middle) / spread, found[engine]
            found[engine] = z if before is None or abs(z) > abs(before) else before
    return found


def _farthest(engines: Mapping[str, Values]) -> float | None:
    known = [z for values in engines.values() if (z := values.get("engine_z")) is not None]
    return max(known, key=abs, default=None)


WHERE = MetricFamily(
    "Where does the gap begin, and in which engine?",
    "More of it in `rltop attribution`.",
    (
        Metric("gap_jump_position", "tokens", "token", f"first position whose stretch (of the strata of position, with "
               f"{JUMP_TOKENS} tokens or more) has a mean |d| above {JUMP:g} times the median stretch's; None where "
               "none has", "vLLM issue 54035", "none", gap_jump_position,
               reading="The same position step after step: a tile of a kernel or the edge of a cache, not the text."),
        Metric("engine_z", "robust standard deviations", "engine", f"(figure - median of the engines) / (1.4826 median "
               f"absolute deviation), of {', '.join(COMPARED)} the one farthest off; of the fleet, the engine's that "
               "is", MISMATCH, "away from 0", None,
               Thresholds(4.0, 8.0, "rltop: of the same engine, two steps in a row"), reading="One bad replica. In "
               "small fleets a single step above 4 is common.", across=_farthest,
               needs=f"{MIN_ENGINES} engines that differ"),
    ),
)  # fmt: skip
