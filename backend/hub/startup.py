"""Starts the hub process: takes the run's lock, starts the store's writer, then imports and runs the hub.

The writer starts while the hub imports the rest of its code: a frame that is sent before the writer has started would
not survive a kill of the hub. So this module imports little.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rltop.backend.hub.supervisor import supervise
from rltop.backend.store.writer_launch import LaunchedWriter, launch_writer, wait_for_writer
from rltop.collectors.contract.keys import run_keys
from rltop.collectors.contract.rundir import RunDir, RunDirError

if TYPE_CHECKING:
    from rltop.backend.hub.process import Hub

LOCK_ATTEMPTS = 5
LOCK_PERIOD_S = 0.1

log = logging.getLogger("rltop.hub")


def run_command(arguments: list[str]) -> int:
    """Run the hub for the command line ``arguments``; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    usage = "python -m rltop.backend.hub [--supervise] RUNDIR (a local directory; network addresses are refused)"
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("rundir", metavar="RUNDIR")
    parser.add_argument("--supervise", action="store_true", help="start the hub again when it dies")
    parser.add_argument("--supervisor", type=int, default=0, metavar="PID", help="process that starts it again")
    parser.add_argument("--note", default="", metavar="TEXT", help="event to begin with")
    options = parser.parse_args(arguments)
    if "://" in options.rundir:
        parser.error("RUNDIR is a local directory; network addresses are refused")
    rundir = RunDir(Path(options.rundir).absolute())
    try:
        return supervise(rundir) if options.supervise else main(rundir, options.note, options.supervisor)
    except RunDirError as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        log.error("%s: can't be used as a run directory: %s", rundir.path, error)
        return 2


def main(rundir: RunDir, note: str = "", supervisor: int = 0) -> int:
    """Run the hub of ``rundir`` until it is stopped. Returns the exit code: 0 also if the run already has a hub.

    Args:
        rundir: of the run.
        note: an event to begin with.
        supervisor: pid of the process that starts it again; 0 without one.

    Raises:
        RunDirError: the directory can't be used.
    """
    rundir.create()
    with rundir.lock.open("w") as lock:
        if not _acquire(lock):
            log.info("run %s already has a hub", rundir.run)
            return 0
        for key in run_keys(rundir).values():
            key.create()
        carried = list[list[bytes]]()
        while True:
            hub = _begin(rundir, note, carried)
            try:
                succeeded = hub.run(functools.partial(_write_info, rundir, hub, supervisor))
            finally:
                if not hub.displaced:
                    rundir.info.unlink(missing_ok=True)
            if not hub.renewal:
                break
            note, carried = _renew(rundir, hub.renewal), hub.carried
    if hub.displaced:
        log.warning("%s: the hub's files were removed; starting again, the collectors reconnect", rundir.path)
        command = [sys.executable, "-m", "rltop.backend.hub", "--supervisor", str(supervisor), str(rundir.path)]
        os.execv(sys.executable, command)  # noqa: S606
    return 0 if succeeded else 1


def _begin(rundir: RunDir, note: str, carried: list[list[bytes]]) -> Hub:
    rundir.info.unlink(missing_ok=True)  # of a killed hub: it would pass for this one
    writer = _launch_writer(rundir)
    from rltop.backend.hub.process import Hub  # takes a while, in which the writer starts

    hub = Hub(rundir, writer, note, carried)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hub.stop)
    return hub


def _renew(rundir: RunDir, reason: str) -> str:
    """Move what is stored of the run to a directory of its own, for another run. Returns an event about it."""
    from rltop.backend.steps.continuity import ADVICE
    from rltop.backend.store.store import move_aside

    moved = move_aside(rundir.path)
    log.info("another run begins: %s; the earlier one is now %s", reason, moved)
    return f"{reason}: this is a new run, and the earlier one is now run {moved.name}. {ADVICE}"


def _acquire(lock: IO[str]) -> bool:
    """Take the lock for the life of the process; False if another hub has it. ``find_hub`` shares it for a moment."""
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_PERIOD_S)
    return False


def _launch_writer(rundir: RunDir) -> LaunchedWriter | None:
    """Start the writer, once the previous one has ended. None if that fails: the store tries again and reports it."""
    wait_for_writer(rundir.path)
    with contextlib.suppress(OSError):
        return launch_writer(rundir.path)
    return None


def _write_info(rundir: RunDir, hub: Hub, supervisor: int) -> None:
    from rltop.collectors.contract import wire

    info = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": hub.started,
        "epoch": hub.epoch,
        "proto": wire.PROTO,
        "supervisor": supervisor,
    }
    partial = rundir.info.with_suffix(".partial")
    partial.write_text(json.dumps(info))
    partial.replace(rundir.info)
