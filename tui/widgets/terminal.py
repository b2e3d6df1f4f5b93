"""The terminal's link: is it keeping up, and how often to paint on it."""

from __future__ import annotations

import os
import select
import threading
from typing import Any

MAX_BACKLOG = 1
"""Writes that may wait before painting stops. Textual queues 30 and then blocks its own event loop."""

SLOWEST_HZ = 0.5


def backlog(app: Any) -> int:
    """Writes that wait for the terminal to take them; 0 where there is no terminal, or Textual keeps them elsewhere.

    Textual offers no public way to ask; this is the only place that reads its driver's queue, and a test holds it.
    """
    writer = getattr(getattr(app, "_driver", None), "_writer_thread", None)
    queue = getattr(writer, "_queue", None)
    return 0 if queue is None else int(queue.qsize())


def send(app: Any, sequence: str) -> None:
    """Write a control sequence to the terminal between two paintings; nothing where there is none."""
    driver = getattr(app, "_driver", None)
    if driver is not None and not app.is_headless:
        driver.write(sequence)


def end_with_terminal(fd: int) -> None:
    """End this process, with exit code 1, once the terminal behind ``fd`` is gone for good.

    Its session is told by a signal, but nohup and setsid keep that from a viewer, and Textual then turns round in vain
    or waits for ever for a write to end. So a thread of its own waits, and asks nobody: there is no screen to restore,
    and a viewer holds nothing.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(fd, 0)  # hang-up, error and closed are told without being asked for
        poll.poll()
        os._exit(1)

    threading.Thread(target=wait, name="rltop-terminal", daemon=True).start()


class RepaintPacer:
    """Decides at each tick whether to paint. Pure: time is an argument.

    While the link is behind, the wait between paints doubles, down to ``SLOWEST_HZ``; each painted tick without a
    backlog halves it again, back to the rate asked for.
    """

    def __init__(self, hz: float) -> None:
        self.hz = hz
        self.wait_s = 0.0
        self._last = float("-inf")

    @property
    def slow(self) -> bool:
        """The link is or was just behind."""
        return self.wait_s > 0

    @property
    def painting_hz(self) -> float:
        """How often it paints now."""
        return 1 / self.wait_s if self.slow else self.hz

    def tick(self, now: float, waiting: int) -> bool:
        """May this tick paint, with so many writes ``waiting``?"""
        if waiting > MAX_BACKLOG:
            self.wait_s = min(max(2 * self.wait_s, 2 / self.hz), 1 / SLOWEST_HZ)
            return False
        # Half a tick of grace: timers are late, and a tick just missed would halve the rate.
        if now - self._last + 0.5 / self.hz < self.wait_s:
            return False
        self._last = now
        self.wait_s = self.wait_s / 2 if self.wait_s / 2 > 1 / self.hz else 0.0
        return True
