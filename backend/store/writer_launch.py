"""Launches the store's writer process and guards that a run has one at a time. Imports little: see ``hub.startup``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULE = "rltop.backend.store.writer_process"

LOCK = "writer.lock"
"""File in the run directory that the run's writer locks (flock) for as long as it lives."""

PREVIOUS_WRITER_S = 10.0
"""How long a new hub waits until the previous hub's writer has committed what it received."""

_POLL_S = 0.01


@dataclass(frozen=True)
class LaunchedWriter:
    """A writer process, and the hub's end of the socket to it. It waits for its ``WriterConfig``."""

    process: subprocess.Popen[bytes]
    socket: socket.socket


def launch_writer(directory: Path) -> LaunchedWriter:
    """Start a writer for the run in ``directory``.

    The writer inherits the descriptor of the lock, so the lock is held without interruption.

    Raises:
        OSError: the lock is held by another writer, or no process can be started.
    """
    hub, writer = socket.socketpair()
    try:
        with writer, _locked(directory / LOCK) as lock:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(writer.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # it may outlive the hub, whose reader waits for end of file
                pass_fds=(writer.fileno(), lock),
                cwd="/",
            )
    except OSError:
        hub.close()
        raise
    return LaunchedWriter(process, hub)


def wait_for_writer(directory: Path, timeout_s: float = PREVIOUS_WRITER_S) -> None:
    """Wait until the writer of a hub that ended has committed what it received, and has exited."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            with _locked(directory / LOCK):
                return
        except BlockingIOError:
            time.sleep(_POLL_S)
        except OSError:
            return  # the writer fails in the same way, and reports it


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock; a process that inherits its descriptor keeps it. Raises ``OSError`` if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise BlockingIOError("the previous writer has not exited yet") from None
    finally:
        os.close(descriptor)
