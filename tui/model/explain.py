"""Numbers on the screen that the metric catalogue can explain. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend import metrics
from rltop.backend.metrics.document import count

NOTHING = "focus a plot, the fleet table or the table of the gap: tab moves the focus"


@dataclass(frozen=True)
class ShownFigure:
    """A number on the screen.

    Attributes:
        label: its label on the screen. metric: its name in the catalogue.
        value: the value shown; None where unknown. of: sample size and unit (``1300, "tokens"``); None where unknown.
    """

    label: str
    metric: str
    value: float | None
    of: tuple[float, str] | None


def in_step(label: str, metric: str, values: metrics.Values) -> ShownFigure:
    """The number from the values of a step, or of one engine in a step."""
    return ShownFigure(label, metric, values.get(metric), count(metrics.BY_NAME[metric], values))
