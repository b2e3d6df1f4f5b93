"""Timers of temporary changes: at most one per subject, on the monotonic clock. Pure.

A timer ends once: kept, due, or superseded; an ended timer never runs again. A due timer keeps the previous value until
its revert is closed, because another command may be executed in between.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from rltop.collectors.contract.wire import Timer

REMEMBERED = 256
"""Kept commands remembered by id, so that a repeated ``keep`` succeeds."""


@dataclass(frozen=True)
class FlagTimer:
    """The change of ``subject`` by ``command`` is reverted when the timer is due.

    Attributes:
        verb, flag: of the command.
        back_to, back_strict: the value of the subject before any timer, and whether in its strict form.
        due: monotonic clock, seconds.
        at: the same moment on the wall clock, for display.
    """

    command: str
    subject: str
    verb: str
    flag: str
    back_to: str
    back_strict: bool
    due: float
    at: float

    @property
    def revert(self) -> str:
        """Id of the engine's command that reverts the change."""
        return f"{self.command}/revert"


class FlagTimers:
    """The running timers by subject. Safe from any thread."""

    def __init__(self) -> None:
        self._running: dict[str, FlagTimer] = {}
        self._due: dict[str, FlagTimer] = {}
        self._kept_commands: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, timer: FlagTimer) -> None:
        """Start a timer; an earlier one on the same subject must have been stopped."""
        with self._lock:
            self._running[timer.subject] = timer

    def latest(self, subject: str) -> FlagTimer | None:
        """The timer that runs on ``subject``, or that is due and not reverted yet."""
        with self._lock:
            return self._running.get(subject) or self._due.get(subject)

    def find(self, command: str) -> FlagTimer | None:
        """The running timer that ``command`` started; None if it has none."""
        return next((timer for timer in list(self._running.values()) if timer.command == command), None)

    def stop(self, timer: FlagTimer) -> bool:
        """Stop a running timer. True for exactly one of several callers."""
        with self._lock:
            if self._running.get(timer.subject) is not timer:
                return False
            del self._running[timer.subject]
            return True

    def keep(self, timer: FlagTimer) -> bool:
        """Stop a timer so that its change stays, and remember that. True as for ``stop``."""
        if not self.stop(timer):
            return False
        self._kept_commands[timer.command] = None
        while len(self._kept_commands) > REMEMBERED:
            self._kept_commands.popitem(last=False)
        return True

    def was_kept(self, command: str) -> bool:
        """Whether the timer of ``command`` was stopped by ``keep``."""
        return command in self._kept_commands

    def pop_due(self, now: float) -> list[FlagTimer]:
        """End the timers that are due at ``now`` (monotonic), in order. The caller reverts them; see ``forget_due``."""
        with self._lock:
            due = sorted((timer for timer in self._running.values() if now >= timer.due), key=lambda timer: timer.due)
            for timer in due:
                self._due[timer.subject] = self._running.pop(timer.subject)
        return due

    def forget_due(self, revert: str) -> None:
        """Forget the due timer whose revert command, with this id, was closed."""
        with self._lock:
            self._due = {subject: timer for subject, timer in self._due.items() if timer.revert != revert}

    def running(self) -> list[FlagTimer]:
        """The running timers, the next to expire first."""
        return sorted(self._running.values(), key=lambda timer: timer.due)

    def as_wire(self) -> list[Timer]:
        """The running timers as messages, in the same order."""
        return [Timer(one.command, one.verb, one.flag, one.back_to, one.at) for one in self.running()]
