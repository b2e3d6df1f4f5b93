"""The process behind each name: whoever sends first in an epoch; another process can't send in its name. Pure.

A process is known by the secret that it states in its messages (its session) and by its pid as the kernel reports it,
where that can be seen. A restarted process has another epoch: ``names`` decides which name it gets.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_PROCESSES = 4096
"""Processes that are remembered; the ones that were silent the longest are forgotten."""


@dataclass(slots=True)
class SenderProcess:
    """What is known of a process: its session, None if it has not stated it, and its pid, if it can be seen."""

    session: str | None
    pid: int | None


class SenderProcesses:
    """All processes that have sent something, by name and epoch."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], SenderProcess] = OrderedDict()

    def is_sender(self, name: str, epoch: str, pid: int | None, session: str | None = None) -> bool:
        """Whether a message is from the process that has this name and epoch; the first one gets them.

        ``session``: as stated in the message; None if messages of its kind state none.
        """
        key = name, epoch
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = SenderProcess(session, pid)
            while len(self._known) > MAX_PROCESSES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        known.pid = pid if known.pid is None else known.pid
        known.session = session if known.session is None else known.session
        same_pid = pid is None or pid == known.pid
        return same_pid and (session is None or session == known.session)

    def session(self, name: str, epoch: str) -> str:
        """The session of a process; empty if it has stated none."""
        known = self._known.get((name, epoch))
        return known.session or "" if known is not None else ""

    def pid(self, name: str, epoch: str) -> int | None:
        """The pid of a process, if it can be seen."""
        known = self._known.get((name, epoch))
        return known.pid if known is not None else None
