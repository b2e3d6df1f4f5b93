"""What an entry of the catalogue is. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.backend.summary import Summary


@dataclass(frozen=True)
class Thresholds:
    """Where a metric turns amber and red, and who says so. Starting points; models differ."""

    amber: float
    red: float
    source: str


Values = Mapping[str, float | None]
"""Figures by name; None where not known."""


@dataclass(frozen=True)
class Metric:
    """One figure of a step.

    Attributes:
        name: as in ``view.Step.values`` and in reports.
        unit: nats, probability, ratio, share, versions, tokens, ...; empty for what has the trainer's own unit.
        level: what the figure runs over: token, sequence, request, group, engine, step.
        formula: in words.
        source: where the formula is from.
        bad: which way is bad: ``high``, ``low``, ``away from 0``, ``away from 1``, or ``none``.
        of: the figure of a summary; None for what only a comparison gives.
        thresholds: None where no source gives any.
        aliases: ``framework: key`` of the same quantity elsewhere; in brackets how it differs, where it does.
        reading: what it tells, where the formula alone does not.
        needs: what it can't be had without, where that is not always there.
        across: the fleet's figure, of the figures of each engine.
        trailing: the step's figure, of the trainer's scalars of this step and of those before it, oldest first.
    """

    name: str
    unit: str
    level: str
    formula: str
    source: str
    bad: str
    of: Callable[[Summary], float | None] | None
    thresholds: Thresholds | None = None
    aliases: tuple[str, ...] = ()
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
    """``part / whole``; None of nothing."""
    return part / whole if whole else None


# Sources that several entries name.
SCHULMAN = "J. Schulman, Approximating KL Divergence (2020)"
SAMPLING = "importance sampling: E[exp(d)] = 1"
MISMATCH = "rltop"
PPO = "PPO, arXiv 1707.06347; GSPO, arXiv 2507.18071"
VERL = "verl docs, rollout_corr"

NEMO_K3 = Thresholds(1e-3, 1e-2, "NeMo-RL docs: <= 1e-3 acceptable; tinker-cookbook: stable below 0.01")
SLIME_ABS = Thresholds(0.03, 0.1, "slime CI fails above 0.1; healthy runs report 0.010 to 0.018")
DENSITY = Thresholds(
    0.01, 0.5, "a mean of 1 is a theorem when the record is the sampling density; verl: red outside 0.5 to 2"
)
ANY = Thresholds(0.0, 0.0, "any is a fault")
