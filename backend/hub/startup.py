"""Starts the hub process: takes the run's lock, starts the store's writer, then imports and runs the hub.

The writer starts while the hub imports the rest of its code: a frame that is sent before the writer has started would
not survive a kill of the hub. So this module imports little.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rltop.backend.store.writer_launch import LaunchedWriter, launch_writer, wait_for_writer
from rltop.collectors.contract.rundir import RunDir, RunDirError

if TYPE_CHECKING:
    from rltop.backend.hub.process import Hub

LOCK_ATTEMPTS = 5
LOCK_PERIOD_S = 0.1

log = logging.getLogger("rltop.hub")


def run_command(arguments: list[str]) -> int:
    """Run the hub for the command line ``arguments``; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(arguments) != 1 or "://" in arguments[0]:
        log.error("usage: python -m rltop.backend.hub RUNDIR (a local directory; network addresses are refused)")
        return 2
    try:
        return main(RunDir(Path(arguments[0]).absolute()))
    except RunDirError as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        log.error("%s: can't be used as a run directory: %s", arguments[0], error)
        return 2


def main(rundir: RunDir) -> int:
    """Run the hub of ``rundir`` until it is stopped. Returns the exit code: 0 also if the run already has a hub.

    Raises:
        RunDirError: the directory can't be used.
    """
    rundir.create()
    with rundir.lock.open("w") as lock:
        if not _acquire(lock):
            log.info("run %s already has a hub", rundir.run)
            return 0
        rundir.info.unlink(missing_ok=True)  # left by a killed hub; beside a held lock it would be taken for ours
        writer = _launch_writer(rundir)
        from rltop.backend.hub.process import Hub  # takes a while, in which the writer starts

        hub = Hub(rundir, writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hub.stop)
        try:
            return 0 if hub.run(lambda: _write_info(rundir, hub)) else 1
        finally:
            rundir.info.unlink(missing_ok=True)


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


def _write_info(rundir: RunDir, hub: Hub) -> None:
    from rltop.collectors.contract import wire

    info = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": hub.started,
        "epoch": hub.epoch,
        "proto": wire.PROTO,
    }
    partial = rundir.info.with_suffix(".partial")
    partial.write_text(json.dumps(info))
    partial.replace(rundir.info)
