"""The types of the metrics catalogue. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.backend.summary import Summary


@dataclass(frozen=True)
class Thresholds:
    """Values at which a metric turns amber and red, with their source. Starting points: models differ."""

    amber: float
    red: float
    source: str


Values = Mapping[str, float | None]
"""Values by metric name; None if not known."""


@dataclass(frozen=True)
class Metric:
    """One metric of a step.

    Attributes:
        name: as in ``api.Step.values`` and in reports.
        unit: nats, probability, ratio, share, versions, tokens, ...; empty if the trainer defines the unit.
        level: what it is computed over: token, sequence, request, group, engine, step.
        formula: in words.
        source: of the formula.
        bad: direction that is bad: ``high``, ``low``, ``away from 0``, ``away from 1``, or ``none``.
        of: computes it from a summary; None if it comes from ``across`` or ``trailing``.
        thresholds: None if no source gives any.
        reading: interpretation, if the formula alone does not suffice.
        needs: required input that is not always there.
        across: computes the fleet's value from the values of each engine.
        trailing: computes the step's value from the trainer's scalars of this step and of earlier ones, oldest first.
    """

    name: str
    unit: str
    level: str
    formula: str
    source: str
    bad: str
    of: Callable[[Summary], float | None] | None
    thresholds: Thresholds | None = None
    reading: str = ""
    needs: str = ""
    across: Callable[[Mapping[str, Values]], float | None] | None = None
    trailing: Callable[[Mapping[str, float], Sequence[Mapping[str, float]]], float | None] | None = None


@dataclass(frozen=True)
class MetricFamily:
    """Metrics that answer one question."""

    title: str
    question: str
    metrics: tuple[Metric, ...]


def share(part: float, whole: float) -> float | None:
    """``part / whole``; None if ``whole`` is 0."""
    return part / whole if whole else None


# Sources of several metrics.
SCHULMAN = "J. Schulman, Approximating KL Divergence (2020)"
SAMPLING = "importance sampling: E[exp(d)] = 1"
MISMATCH = "rltop"
PPO = "PPO, arXiv 1707.06347; GSPO, arXiv 2507.18071"
VERL = "verl docs, rollout_corr"

NEMO_K3 = Thresholds(1e-3, 1e-2, "NeMo-RL docs: <= 1e-3 acceptable; tinker-cookbook: stable below 0.01")
SLIME_ABS = Thresholds(0.03, 0.1, "slime CI fails above 0.1; healthy runs report 0.010 to 0.018")
DENSITY = Thresholds(
    0.01, 0.5, "the mean is 1 if rollout logprobs are the sampling density; verl: red outside 0.5 to 2"
)
ANY = Thresholds(0.0, 0.0, "any value above 0 is a fault")
