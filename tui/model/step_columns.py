"""The steps of a snapshot as numpy columns, computed on first use: the data of the plots."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api import Step
from rltop.tui.model.charts import ChartSeries
from rltop.tui.model.reference import Reference
from rltop.tui.widgets.canvas import Floats

XAxis = Literal["step", "version", "minutes"]
X_AXES: tuple[XAxis, ...] = ("step", "version", "minutes")
"""The x axes of the plots: training step, policy version, minutes since the first step."""


class StepColumns:
    """Columns over steps, in step order; NaN where a step lacks the value. Cached until the steps change.

    ``revision`` increases whenever they do.

    Args:
        reference: the run to compare with; None for none.
    """

    def __init__(self, reference: Reference | None = None) -> None:
        self.reference = reference
        self.steps: list[Step] = []
        self.revision = 0
        self._columns: dict[str, Floats] = {}

    def update(self, steps: Mapping[int, Step]) -> bool:
        """Replace the steps with those of the current snapshot; True if they changed."""
        current = list(steps.values())
        if any(a.step > b.step for a, b in pairwise(current)):
            current.sort(key=lambda step: step.step)
        if len(current) == len(self.steps) and all(map(operator.is_, current, self.steps)):
            return False
        self.steps = current
        self.revision += 1
        self._columns.clear()
        if self.reference is not None:
            self.reference.judge(steps)
        return True

    def column(self, metric: str) -> Floats:
        """The metric at every step, [steps], NaN where unknown."""
        return self._column(metric, lambda: (step.values.get(metric) for step in self.steps))

    def series(self, series: ChartSeries) -> Floats:
        """The line of a plot at every step, [steps], NaN where unknown."""
        if not (series.engine or series.otherwise):
            return self.column(series.metric)
        return self._column(f"{series.metric} {series.engine}", lambda: map(series.value, self.steps))

    def reference_column(self, metric: str) -> Floats | None:
        """The metric of the reference run at every step, [steps]; None without a reference."""
        if self.reference is None:
            return None
        reference_steps = self.reference.steps
        return self._column(
            f"#reference {metric}",
            lambda: (reference_steps[s.step].values.get(metric) if s.step in reference_steps else None
                     for s in self.steps),
        )  # fmt: skip

    def numbers(self) -> Floats:
        """The number of every step, [steps]."""
        return self._column("#step", lambda: (step.step for step in self.steps))

    def x(self, axis: XAxis) -> Floats:
        """The x position of every step, [steps]."""
        if axis == "step":
            return self.numbers()
        if axis == "version":
            return self._column("#version", lambda: (step.policy_version for step in self.steps))
        start = self.steps[0].closed if self.steps else 0.0
        return self._column("#minutes", lambda: ((step.closed - start) / 60 for step in self.steps))

    def linked(self) -> NDArray[np.bool_]:
        """Whether a line may connect each step to the next, [steps - 1].

        No line crosses steps that were not measured, or touches one that lacks part of its data.
        """
        whole = self._column("#whole", lambda: (not (step.partial or step.lost) for step in self.steps)) == 1
        linked: NDArray[np.bool_] = (np.diff(self.numbers()) == 1) & whole[:-1] & whole[1:]
        return linked

    def index(self, number: float) -> int | None:
        """Index of the last step up to ``number``; None if there is none."""
        index = int(np.searchsorted(self.numbers(), number, side="right")) - 1
        return index if index >= 0 else None

    def closed(self, number: int | None) -> float:
        """Wall clock at which the last step up to ``number`` closed; infinite for None, and where there is none."""
        index = None if number is None else self.index(number)
        return math.inf if index is None else self.steps[index].closed

    def _column(self, name: str, values: Callable[[], Iterable[float | None]]) -> Floats:
        if name not in self._columns:
            # None becomes NaN here.
            self._columns[name] = np.array(list(values()), dtype=np.float64)
        return self._columns[name]
