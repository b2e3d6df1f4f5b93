"""Starts a hub that has died again: the parent process of a hub that is supervised.

A hub that is stopped, that finds another hub in its run, or that can't use the directory ends for good. One that is
killed or fails is started again after a pause, and says so in an event; a hub that dies again and again is given up.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

from rltop.backend.util.durations import span
from rltop.collectors.contract.rundir import RunDir

FINAL_CODES = (0, 2)
"""Exit codes of a hub that is not started again: stopped or not needed; the directory can't be used."""

PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Pause before a hub is started again; it doubles with every hub that dies early."""

SETTLED_S = 60.0
"""A hub that has lived this long did not die early."""

MAX_EARLY_DEATHS = 10
"""Hubs in a row that die early; then there is no further one."""

log = logging.getLogger("rltop.hub")


@dataclass
class Supervisor:
    """Runs the hub of a run as a child process, and starts it again when it dies.

    Attributes:
        rundir: of the run.
        command: runs the hub; the note about the restart is appended.
        clock, sleep: monotonic seconds.
        child: the present hub.
    """

    rundir: RunDir
    command: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    child: subprocess.Popen[bytes] | None = None
    _stopping: bool = False

    def run(self) -> int:
        """Supervise until a hub ends for good; returns its exit code."""
        code, early, note = 0, 0, ""
        while not self._stopping:
            began = self.clock()
            code = self._run_hub(note)
            if code in FINAL_CODES or self._stopping:
                break
            lived = self.clock() - began
            early = 0 if lived >= SETTLED_S else early + 1
            if early >= MAX_EARLY_DEATHS:
                log.error("the hub of %s died %d times in a row; it is not started again", self.rundir.run, early)
                return code
            note = f"the hub {_death(code)} after {span(round(lived))}; its supervisor started it again"
            log.warning("%s: %s", self.rundir.run, note)
            self.sleep(min(PAUSE_S * 2 ** max(early - 1, 0), MAX_PAUSE_S))
        return 0 if self._stopping else code

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Stop the hub, and end. Safe in a signal handler."""
        self._stopping = True
        if self.child is not None and self.child.returncode is None:
            self.child.send_signal(signal.SIGTERM)

    def _run_hub(self, note: str) -> int:
        command = self.command or (sys.executable, "-m", "rltop.backend.hub", str(self.rundir.path))
        self.child = subprocess.Popen([*command, "--supervisor", str(os.getpid()), "--note", note], cwd="/")
        if self._stopping:  # the signal came before there was a child
            self.stop()
        return self.child.wait()


def _death(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def supervise(rundir: RunDir) -> int:
    """Run and supervise the hub of ``rundir``; SIGTERM and SIGINT stop both. Returns the exit code."""
    supervisor = Supervisor(rundir)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    return supervisor.run()
