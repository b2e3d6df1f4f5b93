"""The demo's child processes: each has its own session and log, and none outlives the demo."""

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
"""How long a child may take to end after SIGTERM."""

KILL_GRACE_S = 5.0
TAIL_LINES = 20
POLL_S = 0.05


class Child:
    """A Python module run as the leader of its own session and process group.

    The child ends when its ``stdin`` closes (``jobs.end_with_parent``), so it can't outlive this process.

    Args:
        name: name in messages.
        module: for ``python -m``.
        job: the only argument, sent as JSON.
        environment: added to this process's environment.
        log: file for standard error, and for standard output unless ``piped``.
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
        """Id of the process, its group and its session."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the leader; None while it runs, negative for a signal."""
        return self._process.poll()

    def lines(self) -> list[bytes]:
        """The complete lines printed since the last call. Never waits."""
        assert self._process.stdout is not None
        while chunk := self._process.stdout.read():
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        return whole

    def failure(self) -> str:
        """Exit code and end of the log, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return f"{self.name} ended with exit code {self.exit_code}; the end of {self.log}:\n" + "\n".join(lines)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the leader or to its group. An exited process is no error."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            elif self.exit_code is None:
                os.kill(self.pid, number)

    def is_gone(self) -> bool:
        """Whether all processes of the group have ended."""
        return self.exit_code is not None and not group_members(self.pid)

    def release(self) -> None:
        """Close this side of its pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def end_all(children: Iterable[Child], grace_s: float = TERM_GRACE_S) -> list[str]:
    """End all children: SIGTERM to leaders, then to groups, then SIGKILL. Returns the names of survivors."""
    alive = list(children)
    for number, group, patience_s in (
        (signal.SIGTERM, False, grace_s),
        (signal.SIGTERM, True, KILL_GRACE_S),
        (signal.SIGKILL, True, KILL_GRACE_S),
    ):
        for child in alive:
            child.signal(number, group=group)
        deadline = time.monotonic() + patience_s
        while alive and time.monotonic() < deadline:
            for child in [child for child in alive if child.is_gone()]:
                child.release()
                alive.remove(child)
            time.sleep(POLL_S)
    return [f"{child.name} (group {child.pid})" for child in alive]


def group_members(group: int) -> list[int]:
    """The live processes of a process group (zombies are not alive), from /proc."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, pgrp = entry.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                members.append(int(entry.parent.name))
    return members
