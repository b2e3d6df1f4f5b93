"""A stored run that the shown run is compared with: drawn in every plot, summarised in one phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rltop.backend.api import Step
from rltop.backend.parity.compare import DIVERGES, ParityVerdict, parity

EVERY = 5
"""Steps between two comparisons."""


class Reference:
    """Reference runs. The first one is drawn; the verdict uses all.

    Args:
        runs: their steps by number.
    """

    def __init__(self, runs: Sequence[Mapping[int, Step]]) -> None:
        self.steps = runs[0]
        self.verdict: ParityVerdict | None = None
        self._runs = runs
        self._compared_steps = -EVERY

    def judge(self, steps: Mapping[int, Step]) -> ParityVerdict:
        """The verdict on the shown run, recomputed every ``EVERY`` steps and when steps disappear."""
        if self.verdict is None or not 0 <= len(steps) - self._compared_steps < EVERY:
            self._compared_steps = len(steps)
            self.verdict = parity(self._runs, steps)
        return self.verdict

    @property
    def since(self) -> int | None:
        """First step of divergence; None if there is none."""
        return self.verdict.since if self.verdict else None

    @property
    def text(self) -> str:
        """The verdict in a few words; empty before the first comparison."""
        if self.verdict is None:
            return ""
        diverging = [metric.label for metric in self.verdict.metrics if metric.verdict == DIVERGES]
        text = f"reference: {self.verdict.verdict}"
        if not diverging:
            return text
        return f"{text} in {', '.join(diverging[:3])}{' ...' if len(diverging) > 3 else ''} since step {self.since}"
