"""A stored run to hold the shown one against: on every plot, and in a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rltop.backend.api import Step
from rltop.backend.parity.compare import DIVERGES, ParityVerdict, parity

EVERY = 5
"""Steps after which the runs are judged anew; in between the last word stands."""


class Reference:
    """Stored runs, of which the first is drawn.

    Args:
        runs: their steps by number.
    """

    def __init__(self, runs: Sequence[Mapping[int, Step]]) -> None:
        self.steps = runs[0]
        self.verdict: ParityVerdict | None = None
        self._runs = runs
        self._judged = -EVERY

    def judge(self, steps: Mapping[int, Step]) -> ParityVerdict:
        """The verdict on the shown run; worked out when there are some more steps, or fewer."""
        if self.verdict is None or not 0 <= len(steps) - self._judged < EVERY:
            self._judged = len(steps)
            self.verdict = parity(self._runs, steps)
        return self.verdict

    @property
    def since(self) -> int | None:
        """First step of divergence."""
        return self.verdict.since if self.verdict else None

    @property
    def text(self) -> str:
        """The verdict in a few words; empty before there is one."""
        if self.verdict is None:
            return ""
        which = [metric.label for metric in self.verdict.metrics if metric.verdict == DIVERGES]
        where = f" in {', '.join(which[:3])}{' ...' if len(which) > 3 else ''} since step {self.since}" if which else ""
        return f"reference: {self.verdict.verdict}{where}"
