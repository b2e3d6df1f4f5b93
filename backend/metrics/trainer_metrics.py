"""Metrics that compare the trainer's scalars of a step with those of earlier steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rltop.backend.metrics.metric import MISMATCH, Metric

TRAILING, LEAST = 50, 10
"""Earlier steps that a step is compared with, and the fewest that suffice."""

Scalars = Mapping[str, float]
"""The scalars that the trainer passed to ``step(metrics=...)``."""


def grad_norm(scalars: Scalars) -> float | None:
    """The gradient norm, logged under any path (``actor/grad_norm``); None if absent or not finite."""
    found = (value for name, value in scalars.items() if name.rpartition("/")[2] == "grad_norm")
    value = next(found, math.nan)
    return value if math.isfinite(value) else None


def grad_norm_z(scalars: Scalars, before: Sequence[Scalars]) -> float | None:
    """Robust z of the gradient norm against the last steps; None if too few are known, or all are equal."""
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
    reading="Norms have heavy tails: 4 occurs in healthy runs. A spike together with one of kl_k3 or "
            "extreme_frac_tau2 comes from the gap, a spike alone from the objective.",
)  # fmt: skip
