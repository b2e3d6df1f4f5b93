"""What an engine will take back by itself: one lease for each subject, on a clock that never steps. Pure.

A lease ends once: kept, due, or superseded. One that ended is never revived. One that is due still says what was before
it, until it has been taken back: a command may come in between.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from rltop.collectors.contract.wire import Timer

REMEMBERED = 256
"""Kept commands remembered by id, so that keeping twice is no mistake."""


@dataclass(frozen=True)
class FlagTimer:
    """What ``command`` did to ``subject`` holds until ``due``.

    Attributes:
        verb, flag: of the command.
        back_to, back_strict: the value that the subject had before any lease, and whether in its strict form.
        due: monotonic clock, seconds. at: the same moment on the wall clock, for people.
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
        """Id of the command by which the engine takes it back."""
        return f"{self.command}/revert"


class FlagTimers:
    """The leases that run, by subject. Safe from any thread."""

    def __init__(self) -> None:
        self._running: dict[str, FlagTimer] = {}
        self._due: dict[str, FlagTimer] = {}
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, lease: FlagTimer) -> None:
        """Begin a lease; the one on the same subject must have been ended."""
        with self._lock:
            self._running[lease.subject] = lease

    def before(self, subject: str) -> FlagTimer | None:
        """The lease that runs on ``subject``, or that is due and not taken back yet: it knows what was before it."""
        with self._lock:
            return self._running.get(subject) or self._due.get(subject)

    def find(self, command: str) -> FlagTimer | None:
        """The lease that ``command`` began, if it runs."""
        return next((lease for lease in list(self._running.values()) if lease.command == command), None)

    def end(self, lease: FlagTimer) -> bool:
        """End it. True for exactly one of those who try."""
        with self._lock:
            if self._running.get(lease.subject) is not lease:
                return False
            del self._running[lease.subject]
            return True

    def keep(self, lease: FlagTimer) -> bool:
        """End it for good, because somebody wants what it did to stay. True as ``end``."""
        if not self.end(lease):
            return False
        self._kept[lease.command] = None
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)
        return True

    def was_kept(self, command: str) -> bool:
        """Whether the lease of ``command`` ended by being kept."""
        return command in self._kept

    def take_due(self, now: float) -> list[FlagTimer]:
        """End those whose time is over, soonest first. Whoever takes them back says so by ``settle``."""
        with self._lock:
            due = sorted((lease for lease in self._running.values() if now >= lease.due), key=lambda one: one.due)
            for lease in due:
                self._due[lease.subject] = self._running.pop(lease.subject)
        return due

    def settle(self, revert: str) -> None:
        """The command ``revert`` of a lease that was due is over, however it ended."""
        with self._lock:
            self._due = {subject: lease for subject, lease in self._due.items() if lease.revert != revert}

    def running(self) -> list[FlagTimer]:
        """Those that run, soonest due first."""
        return sorted(self._running.values(), key=lambda lease: lease.due)

    def timers(self) -> list[Timer]:
        """The same, for the wire."""
        return [Timer(one.command, one.verb, one.flag, one.back_to, one.at) for one in self.running()]
