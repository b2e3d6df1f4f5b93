"""Entries that hold what the trainer tells of a step against the steps before. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rltop.backend.metrics.metric import MISMATCH, Metric

TRAILING, LEAST = 50, 10
"""Steps before this one that it is held against, and how few are enough."""

Scalars = Mapping[str, float]
"""What the trainer passed to ``step(metrics=...)``."""


def grad_norm(scalars: Scalars) -> float | None:
    """The gradient's norm, under whatever path the trainer logs it (``actor/grad_norm``); None if it is not finite."""
    found = (value for name, value in scalars.items() if name.rpartition("/")[2] == "grad_norm")
    value = next(found, math.nan)
    return value if math.isfinite(value) else None


def grad_norm_z(scalars: Scalars, before: Sequence[Scalars]) -> float | None:
    """How far the norm is from those of the last steps; None where too few are known, or all are the same."""
    now = grad_norm(scalars)
    known = [value for earlier in before[-TRAILING:] if (value := grad_norm(earlier)) is not None]
    if now is None or len(known) < LEAST:
        return None
    middle = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(np.array(known) - middle)))
    return (now - middle) / spread if spread > 1e-9 * abs(middle) else None


GRAD_NORM_Z = Metric(
    "grad_norm_z", "robust standard deviations", "step", f"(grad_norm - median of the last {TRAILING} steps) / (1.4826 "
    "median absolute deviation)", MISMATCH, "high", None, trailing=grad_norm_z,
    needs=f"a scalar named grad_norm, or path/grad_norm, in the step and in {LEAST} before it",
    reading="Norms have heavy tails: 4 is seen in healthy runs. A spike where kl_k3 or extreme_frac_tau2 has one too "
            "is the gap's; one without is the objective's.",
)  # fmt: skip
