"""Finds the hub of a run on this machine, and starts one if there is none.

A hub holds ``hub.lock`` (flock) for its lifetime and describes itself in ``hub.json``. A process that can't get a
shared lock knows that a hub is alive. Starting is serialised by another lock, so that concurrent starters get one hub.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from rltop.collectors.contract.extras import is_installed, missing
from rltop.collectors.contract.rundir import RunDir, RunDirError

START_S = 60.0
"""How long a hub may take to start: about a second, and over 15 on a machine whose cores engines keep busy."""

POLL_S = 0.02
LOG_TAIL_LINES = 15
MAX_INFO_BYTES = 64 << 10
RUN_ID_FILES = frozenset({"hub.lock", "hub.json", "store.sqlite"})
"""A directory with one of these is a run: a hub ran here, or the store of a run was copied here."""


class LaunchError(RuntimeError):
    """No hub could be started; the message contains the end of its log."""


class HubInfo(msgspec.Struct, frozen=True):
    """The content of ``hub.json``, written once the hub's sockets are bound.

    ``started``: the hub's wall clock, seconds. ``epoch``: random id of this hub process. ``proto``: its wire version.
    ``supervisor``: pid of the process that starts it again when it dies; 0 without one.
    """

    pid: int
    host: str
    started: float
    epoch: str
    proto: int
    supervisor: int = 0


def find_hub(rundir: RunDir) -> HubInfo | None:
    """The live hub of this run; None if there is none, or it is not ready yet. Changes nothing."""
    info = _read_info(rundir)  # before testing the lock, so that a hub that starts now can get it
    return info if info is not None and _is_held(rundir.lock) else None


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped by a signal or a debugger."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


def list_runs(home: Path) -> list[tuple[RunDir, HubInfo | None]]:
    """The runs in ``home`` (see ``rundir.home``) sorted by name, each with its live hub or None."""
    if not home.is_dir():
        return []
    return [(RunDir(path), find_hub(RunDir(path))) for path in sorted(home.iterdir()) if is_run(path)]


def is_run(path: Path) -> bool:
    """Whether the directory is a run. Directories that this user can't read are not runs."""
    return os.access(path, os.R_OK | os.X_OK) and any((path / name).exists() for name in RUN_ID_FILES)


def remove_run(rundir: RunDir) -> None:
    """Delete the directory of a run that has no hub, with everything in it.

    Raises:
        LaunchError: a hub is alive or being started.
        OSError: it can't be deleted.
    """
    with _locked(rundir.path / "start.lock", time.monotonic()), rundir.lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            info = _read_info(rundir)
            process = f", process {info.pid}" if info else ""
            raise LaunchError(
                f"run {rundir.run!r} is live (hub{process}); `rltop hub {rundir.argument} --stop` stops its hub"
            ) from None
        shutil.rmtree(rundir.path)


def ensure_hub(rundir: RunDir, *, timeout_s: float = START_S, supervise: bool = False) -> HubInfo:
    """Return the run's hub; start one if there is none, in a process and session of its own that outlives the caller.

    Safe to call from several processes at once: they get one hub. Blocks about a second while a hub starts, at most
    ``timeout_s``. ``supervise``: a hub that is started here is started again when it dies. Collectors don't ask for
    that: what they start must not start processes later.

    Raises:
        RunDirError: the run directory can't be used.
        LaunchError: the hub exited, or was not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    try:
        rundir.create()
        with _locked(rundir.path / "start.lock", deadline):
            return find_hub(rundir) or _start(rundir, deadline, supervise=supervise)
    except OSError as error:
        raise LaunchError(f"can't start a hub in {rundir.path}: {error}") from error


def _start(rundir: RunDir, deadline: float, *, supervise: bool) -> HubInfo:
    if not is_installed("numba"):  # the process would end at the first rows
        elsewhere = f"`rltop hub {rundir.argument} --new` in an environment that has it"
        raise LaunchError(f"a hub measures: {missing('numba')}; or start the hub by {elsewhere}")
    _remove_stale_info(rundir)
    options = ["--supervise"] if supervise else []
    command = [sys.executable, "-m", "rltop.backend.hub", *options, str(rundir.path)]
    with rundir.log.open("ab") as log:
        hub = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True, cwd="/"
        )
    while time.monotonic() < deadline:
        if info := find_hub(rundir):
            hub.returncode = 0  # it outlives this process; without this, collecting the handle would warn
            return info  # of this hub, or of one that another process started without the lock
        if hub.poll():
            raise LaunchError(f"the hub of {rundir.path} ended with exit code {hub.returncode}{_tail(rundir.log)}")
        time.sleep(POLL_S)
    os.killpg(hub.pid, signal.SIGKILL)  # the leader of its session: with the hub of a supervisor
    hub.wait()
    raise LaunchError(f"the hub of {rundir.path} was not ready in time and was killed{_tail(rundir.log)}")


def _remove_stale_info(rundir: RunDir) -> None:
    """Remove the ``hub.json`` of a killed hub, so that ``hub.json`` with a held lock means that a hub is ready."""
    with rundir.lock.open("ab") as lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        rundir.info.unlink(missing_ok=True)


def _read_info(rundir: RunDir) -> HubInfo | None:
    try:
        with _opened(rundir.info) as file:
            return msgspec.json.decode(file.read(MAX_INFO_BYTES), type=HubInfo)
    except (OSError, msgspec.DecodeError):
        return None


def _opened(path: Path) -> IO[bytes]:
    """Open a file to read it. Raises ``OSError`` for anything that is no file: a pipe would block its reader."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return file


def _is_held(lock: Path) -> bool:
    try:
        with _opened(lock) as file:
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
                    raise LaunchError(f"{path}: another process is still starting the hub; try again") from None
                time.sleep(POLL_S)
        yield file


def _tail(log: Path) -> str:
    """The end of the hub's log, to append to a message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        lines = []
    return f"; the end of {log}:\n" + "\n".join(lines) if lines else f"; {log} is empty"


__all__ = [
    "HubInfo",
    "LaunchError",
    "RunDirError",
    "ensure_hub",
    "find_hub",
    "is_run",
    "is_stopped",
    "list_runs",
    "remove_run",
]
