"""The demo's child processes: each in its own session, with its log, and none left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from rltop.backend.demo import jobs

TERM_GRACE_S = 15.0
"""How long a child may take to end in good order."""

KILL_GRACE_S = 5.0
TAIL_LINES = 20
POLL_S = 0.05


class Child:
    """A Python module run as a process that leads its own session, and so a group that holds its children.

    The child ends when ``stdin`` closes (``jobs.end_with_parent``): it can't outlive us.

    Args:
        name: for people, and of the log file.
        module: what ``python -m`` runs.
        job: its one argument, as JSON.
        environment: added to ours.
        log: takes standard error, and standard output unless ``piped``.
        piped: standard output is read with ``lines``.
    """

    def __init__(
        self,
        name: str,
        module: str,
        job: object,
        environment: Mapping[str, str],
        log: Path,
        *,
        piped: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._rest = b""
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, jobs.encode(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if piped else file,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def pid(self) -> int:
        """Of the leader, and of its group and session."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the leader; None while it runs, negative for a signal."""
        return self._process.poll()

    def lines(self) -> list[bytes]:
        """The whole lines that were printed since the last call. Never waits."""
        assert self._process.stdout is not None
        while chunk := self._process.stdout.read():
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        return whole

    def obituary(self) -> str:
        """How it ended and the end of its log, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return f"{self.name} ended with exit code {self.exit_code}; the end of {self.log}:\n" + "\n".join(lines)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the leader, or to everything in its group. A process that is gone is no error."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            elif self.exit_code is None:
                os.kill(self.pid, number)

    def is_gone(self) -> bool:
        """Whether nothing of its group is left."""
        return self.exit_code is not None and not group_members(self.pid)

    def release(self) -> None:
        """Close our ends of its pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def end_all(children: Iterable[Child], grace_s: float = TERM_GRACE_S) -> list[str]:
    """End all children in good order: leaders are asked, then groups, then killed. Returns what was left, by name."""
    living = list(children)
    for number, group, patience_s in (
        (signal.SIGTERM, False, grace_s),
        (signal.SIGTERM, True, KILL_GRACE_S),
        (signal.SIGKILL, True, KILL_GRACE_S),
    ):
        for child in living:
            child.signal(number, group=group)
        deadline = time.monotonic() + patience_s
        while living and time.monotonic() < deadline:
            for child in [child for child in living if child.is_gone()]:
                child.release()
                living.remove(child)
            time.sleep(POLL_S)
    return [f"{child.name} (group {child.pid})" for child in living]


def group_members(group: int) -> list[int]:
    """The live processes of a process group (zombies are not alive), from /proc."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            state, _, pgrp = entry.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                members.append(int(entry.parent.name))
    return members
