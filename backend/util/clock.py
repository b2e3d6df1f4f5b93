"""The hub's clock: the wall clock of its start, moved on steadily, and news of the wall clock going elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 5.0
"""A wall clock that is off by so much more than when that was last told has jumped; less is a clock being steered."""


class SteadyClock:
    """Wall clock that never steps back and is never set: seconds since the epoch, as of the hub's start.

    Args:
        wall, steady: the machine's clocks.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._told = 0.0

    def __call__(self) -> float:
        """Now."""
        return self._offset + self._steady()

    def take_news(self) -> list[tuple[str, str, str]]:
        """Whether the wall clock has jumped since this was last asked, as severity, kind and text."""
        drift = self._wall() - self()
        jump = drift - self._told
        if abs(jump) < JUMP_S:
            return []
        self._told = drift
        way = "forward" if jump > 0 else "back"
        text = f"the machine's clock jumped {way} by {abs(jump):.0f} s; the hub's goes on steadily, {-drift:+.0f} s off"
        return [("warn", "clock", text)]
