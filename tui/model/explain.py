"""Figures on the screen that the catalogue knows, to be asked what they are. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend import metrics
from rltop.backend.metrics.document import count

NOTHING = "focus a plot, the fleet or the places of the gap: tab goes from one to the next"


@dataclass(frozen=True)
class ShownFigure:
    """A figure on the screen.

    Attributes:
        label: what stands on the screen for it. metric: its name in the catalogue.
        value: as now shown; None where not known. of: over how many of what, likewise.
    """

    label: str
    metric: str
    value: float | None
    of: tuple[float, str] | None


def in_step(label: str, metric: str, values: metrics.Values) -> ShownFigure:
    """The figure as a step, or an engine's part of one, has it."""
    return ShownFigure(label, metric, values.get(metric), count(metrics.BY_NAME[metric], values))
