"""The hub's clock: the wall clock at start plus monotonic time, with a warning when the wall clock jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

JUMP_S = 5.0
"""Change of the difference to the wall clock that counts as a jump; a smaller one is a clock being slewed."""


class SteadyClock:
    """A wall clock that never steps: seconds since the epoch, based on the wall clock at the hub's start.

    Args:
        wall, steady: wall clock and monotonic clock of the machine.
    """

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()
        self._reported = 0.0

    def __call__(self) -> float:
        """The current time."""
        return self._offset + self._steady()

    def take_jumps(self) -> list[tuple[str, str, str]]:
        """Severity, kind and text of a warning if the wall clock has jumped since the last call."""
        drift = self._wall() - self()
        jump = drift - self._reported
        if abs(jump) < JUMP_S:
            return []
        self._reported = drift
        way = "forward" if jump > 0 else "back"
        text = f"the machine's clock jumped {way} by {abs(jump):.0f} s; the hub keeps its own time, {-drift:+.0f} s off"
        return [("warn", "clock", text)]
