"""Where a run lives on this machine: one 0700 directory per run, with the hub's sockets, lock and log.

``RLTOP_HOME`` holds the run directories (default: ``$XDG_RUNTIME_DIR/rltop``, else ``/tmp/rltop-<uid>``).
``RLTOP_HUB`` names a run directory outright, ``RLTOP_RUN`` a run inside ``RLTOP_HOME``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_LIMIT = 107
"""Longest path of a unix socket on Linux, in bytes (sun_path less its terminating zero)."""


class RunDirError(ValueError):
    """A run directory that can't be used; the message says what to do."""


@dataclass(frozen=True)
class RunDir:
    """The files of one run. Makes nothing by itself."""

    path: Path

    @property
    def run(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def argument(self) -> str:
        """What means this run on the command line: its name or, where that would mean another run, its path."""
        return self.run if self.path == home() / self.run else str(self.path)

    @property
    def ingest(self) -> str:
        """Collectors PUSH data here."""
        return self._endpoint("ingest")

    @property
    def control(self) -> str:
        """Collectors' DEALER sockets: commands to them, acknowledgements from them."""
        return self._endpoint("control")

    @property
    def view(self) -> str:
        """Viewers subscribe to conflated frames here."""
        return self._endpoint("view")

    @property
    def query(self) -> str:
        """Viewers ask for snapshots and send commands here."""
        return self._endpoint("query")

    @property
    def lock(self) -> Path:
        """Held (flock) by the one hub of this run for as long as it lives."""
        return self.path / "hub.lock"

    @property
    def info(self) -> Path:
        """JSON: pid, host, start time and epoch of the hub that holds the lock."""
        return self.path / "hub.json"

    @property
    def log(self) -> Path:
        """What the hub wrote to standard output and error."""
        return self.path / "hub.log"

    @property
    def audit(self) -> Path:
        """Append-only log of all commands, one JSON object a line, written by the hub."""
        return self.path / "audit.jsonl"

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self.path / name}.sock"

    def create(self) -> None:
        """Make the directory, mode 0700, or check the one that is there.

        Raises:
            RunDirError: the path is too long for a socket, or belongs to somebody else, or others can enter it.
            OSError: it can't be made.
        """
        self._check_length()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check()

    def check(self) -> None:
        """See that the directory that is there can be trusted: whoever can write in it could speak as the hub.

        Raises:
            RunDirError: as ``create``.
            OSError: there is none, or it can't be looked at.
        """
        self._check_length()
        found = self.path.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise RunDirError(
                f"{self.path}: must belong to you with mode 0700 (it has owner {found.st_uid}, "
                f"mode {stat.S_IMODE(found.st_mode):04o}); set RLTOP_HOME to a directory of your own"
            )

    def _check_length(self) -> None:
        longest = len(os.fsencode(self.path / "control.sock"))
        if longest > SOCKET_PATH_LIMIT:
            raise RunDirError(
                f"{self.path}: a socket in it would need {longest} bytes, the system allows {SOCKET_PATH_LIMIT}; "
                "choose a shorter run name, or set RLTOP_HOME to a shorter directory"
            )


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory that holds this user's run directories."""
    if chosen := environ.get("RLTOP_HOME"):
        return Path(chosen).absolute()
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "rltop"
    return Path(f"/tmp/rltop-{os.getuid()}")  # noqa: S108 - checked for owner and mode before use


def for_run(run: str, environ: Mapping[str, str] = os.environ) -> RunDir:
    """The directory of the named run.

    Raises:
        RunDirError: the name is not made of letters, digits, ``.``, ``_``, ``-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run):
        raise RunDirError(f"run name {run!r}: use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")
    return RunDir(home(environ) / run)


def at(hub: str) -> RunDir:
    """The run directory with this path.

    Raises:
        RunDirError: not a local directory. A hub is reached over the network only with keys, and this version has none.
    """
    if "://" in hub:
        raise RunDirError(f"hub {hub}: only a local run directory is served; network addresses are refused")
    return RunDir(Path(hub).absolute())


def from_environment(environ: Mapping[str, str] = os.environ) -> RunDir | None:
    """The run directory that ``RLTOP_HUB`` or ``RLTOP_RUN`` names; None if neither is set.

    Raises:
        RunDirError: see ``at`` and ``for_run``.
    """
    if hub := environ.get("RLTOP_HUB"):
        return at(hub)
    if run := environ.get("RLTOP_RUN"):
        return for_run(run, environ)
    return None
