"""Finding the hub of a run on this machine, and starting one where there is none.

A hub holds ``hub.lock`` (flock) for as long as it lives and describes itself in ``hub.json``: whoever can't share the
lock knows that it is there. Starting goes under a lock of its own, so that any number of starters make one hub.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from rltop.collectors.contract.rundir import RunDir, RunDirError

POLL_S = 0.02
LOG_TAIL_LINES = 15
RUN_ID_FILES = frozenset({"hub.lock", "hub.json"})


class LaunchError(RuntimeError):
    """No hub could be started; the message holds the end of its log."""


class HubInfo(msgspec.Struct, frozen=True):
    """What a hub says of itself in ``hub.json``, written once its sockets are bound.

    ``started`` is the hub's wall clock in seconds; ``epoch`` is new for every life of a hub; ``proto`` is the wire
    version it speaks.
    """

    pid: int
    host: str
    started: float
    epoch: str
    proto: int


def find_hub(rundir: RunDir) -> HubInfo | None:
    """The live hub of this run; None if there is none, or it is not ready yet. Changes nothing."""
    info = _read_info(rundir)  # before the lock is looked at: a hub that starts now is not disturbed
    return info if info is not None and _is_held(rundir.lock) else None


def list_runs(home: Path) -> list[tuple[RunDir, HubInfo | None]]:
    """The runs in ``home`` (see ``rundir.home``) by name, each with its hub if it lives."""
    if not home.is_dir():
        return []
    return [(RunDir(path), find_hub(RunDir(path))) for path in sorted(home.iterdir()) if _is_run(path)]


def ensure_hub(rundir: RunDir, *, timeout_s: float = 15.0) -> HubInfo:
    """The run's hub, started if there is none: a new process in its own session, which outlives the caller.

    Safe to call from several processes at once; one hub comes of it. Blocks for the second or so a hub needs, at most
    ``timeout_s``.

    Raises:
        RunDirError: the run directory can't be used.
        LaunchError: the hub ended at once, or was not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    try:
        rundir.create()
        with _locked(rundir.path / "start.lock", deadline):
            return find_hub(rundir) or _start(rundir, deadline)
    except OSError as error:
        raise LaunchError(f"can't start a hub in {rundir.path}: {error}") from error


def _start(rundir: RunDir, deadline: float) -> HubInfo:
    _forget_dead_hub(rundir)
    command = [sys.executable, "-m", "rltop.backend.hub", str(rundir.path)]
    with rundir.log.open("ab") as log:
        hub = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True, cwd="/"
        )
    while time.monotonic() < deadline:
        if info := find_hub(rundir):
            hub.returncode = 0  # let go of: it outlives us, and a handle collected before its process would warn
            return info  # of ours, or of somebody's who was quicker and did not ask us
        if hub.poll():
            raise LaunchError(f"the hub of {rundir.path} ended with exit code {hub.returncode}{_tail(rundir.log)}")
        time.sleep(POLL_S)
    hub.kill()
    hub.wait()
    raise LaunchError(f"the hub of {rundir.path} was not ready in time and was ended{_tail(rundir.log)}")


def _forget_dead_hub(rundir: RunDir) -> None:
    """Remove what a killed hub said of itself, so that ``hub.json`` beside a held lock means a hub that is ready."""
    with rundir.lock.open("ab") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        rundir.info.unlink(missing_ok=True)


def _is_run(path: Path) -> bool:
    """Whether a hub ever lived here; what is not ours to look into is no run of ours."""
    return os.access(path, os.R_OK | os.X_OK) and any((path / name).exists() for name in RUN_ID_FILES)


def _read_info(rundir: RunDir) -> HubInfo | None:
    try:
        return msgspec.json.decode(rundir.info.read_bytes(), type=HubInfo)
    except (OSError, msgspec.DecodeError):
        return None


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "rb+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LaunchError(f"{path}: somebody else is still starting the hub; try again") from None
                time.sleep(POLL_S)
        yield file


def _tail(log: Path) -> str:
    """The end of the hub's log, as the end of a sentence."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        lines = []
    return f"; the end of {log}:\n" + "\n".join(lines) if lines else f"; {log} is empty"


__all__ = ["HubInfo", "LaunchError", "RunDirError", "ensure_hub", "find_hub", "list_runs"]
