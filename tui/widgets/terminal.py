"""The connection to the terminal: its backlog, and the repaint rate it sustains."""

from __future__ import annotations

import os
import select
import threading
from typing import Any

MAX_BACKLOG = 1
"""Queued writes above which painting stops. Textual queues 30 and then blocks its own event loop."""

SLOWEST_HZ = 0.5


def backlog(app: Any) -> int:
    """Number of writes queued for the terminal; 0 without a terminal, or if Textual stores them elsewhere.

    Textual has no public interface for this; only this function reads its driver's queue, and a test covers it.
    """
    writer = getattr(getattr(app, "_driver", None), "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    return 0 if queue is None else int(queue.qsize())


def send(app: Any, sequence: str) -> None:
    """Write a control sequence to the terminal between two repaints; does nothing without a terminal."""
    driver = getattr(app, "_driver", None)
    if driver is not None and not app.is_headless:
        driver.write(sequence)


def end_with_terminal(fd: int) -> None:
    """End this process with exit code 1 once the terminal behind ``fd`` has closed.

    The session gets a signal then, but nohup and setsid keep it from the process, and Textual would spin or block on a
    write forever. A separate thread waits and ends the process at once: there is no screen to restore and no state to
    save.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # hang-up, error and close are always reported
        poll.poll()
        os._exit(1)

    threading.Thread(target=wait, name="rltop-terminal", daemon=True).start()


class RepaintPacer:
    """Decides at each tick whether to paint. Pure: time is an argument.

    While the terminal is behind, the interval doubles up to that of ``SLOWEST_HZ``; each painted tick without a backlog
    halves it, down to the requested rate.
    """

    def __init__(self, hz: float) -> None:
        self.hz = hz
        self.wait_s = 0.0
        self._last = float("-inf")

    @property
    def slow(self) -> bool:
        """The terminal is behind, or was until recently."""
        return self.wait_s > 0

    @property
    def painting_hz(self) -> float:
        """The current rate."""
        return 1 / self.wait_s if self.slow else self.hz

    def tick(self, now: float, waiting: int) -> bool:
        """Whether to paint now, with ``waiting`` queued writes."""
        if waiting > MAX_BACKLOG:
            self.wait_s = min(max(2 * self.wait_s, 2 / self.hz), 1 / SLOWEST_HZ)
            return False
        # Half a tick of tolerance: timers are late, and a tick missed by a little would halve the rate.
        if now - self._last + 0.5 / self.hz < self.wait_s:
            return False
        self._last = now
        self.wait_s = self.wait_s / 2 if self.wait_s / 2 > 1 / self.hz else 0.0
        return True
