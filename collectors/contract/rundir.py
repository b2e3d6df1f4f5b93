"""Run directories: one directory per run with mode 0700, containing the hub's sockets, lock and log.

``RLTOP_HOME`` holds the run directories (default: ``$XDG_RUNTIME_DIR/rltop``, else ``/tmp/rltop-<uid>``).
``RLTOP_HUB`` names a run directory outright, ``RLTOP_RUN`` a run inside ``RLTOP_HOME``.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOCKET_PATH_LIMIT = 107
"""Longest path of a unix socket on Linux, in bytes (sun_path without its terminating zero)."""


class RunDirError(ValueError):
    """A run directory can't be used; the message says how to fix it."""


@dataclass(frozen=True)
class RunDir:
    """The paths of one run. Creates nothing by itself."""

    path: Path

    @property
    def run(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def argument(self) -> str:
        """This run as a command-line argument: its name, or its path if the name would refer to another run."""
        return self.run if self.path == home() / self.run else str(self.path)

    @property
    def ingest(self) -> str:
        """Socket to which collectors PUSH data."""
        return self._endpoint("ingest")

    @property
    def control(self) -> str:
        """Socket for collectors (DEALER): commands and acknowledgements."""
        return self._endpoint("control")

    @property
    def view(self) -> str:
        """Socket from which viewers receive conflated frames (SUB)."""
        return self._endpoint("view")

    @property
    def query(self) -> str:
        """Socket to which viewers send queries and commands."""
        return self._endpoint("query")

    @property
    def lock(self) -> Path:
        """Lock file (flock) that the hub of this run holds for its lifetime."""
        return self.path / "hub.lock"

    @property
    def info(self) -> Path:
        """JSON: pid, host, start time and epoch of the hub that holds the lock."""
        return self.path / "hub.json"

    @property
    def log(self) -> Path:
        """Standard output and error of the hub."""
        return self.path / "hub.log"

    @property
    def audit(self) -> Path:
        """Append-only log of all commands, one JSON object per line, written by the hub."""
        return self.path / "audit.jsonl"

    def hub_files(self) -> tuple[int, ...] | None:
        """Inodes of the hub's lock and sockets; None if one is missing."""
        sockets = (self.path / f"{name}.sock" for name in ("ingest", "control", "view", "query"))
        try:
            return tuple(file.lstat().st_ino for file in (self.lock, *sockets))
        except OSError:
            return None

    def _endpoint(self, name: str) -> str:
        return f"ipc://{self.path / name}.sock"

    def create(self) -> None:
        """Create the directory with mode 0700, or check the existing one.

        Raises:
            RunDirError: the path is too long for a socket, or another user owns the directory or has access to it.
            OSError: it can't be created.
        """
        self._check_length()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check()

    def check(self) -> None:
        """Check that no other user can write to the existing directory or replace it, and so act as the hub.

        Raises:
            RunDirError: as ``create``.
            OSError: it does not exist or can't be read.
        """
        self._check_length()
        check_private(self.path)

    def _check_length(self) -> None:
        longest = len(os.fsencode(self.path / "control.sock"))
        if longest > SOCKET_PATH_LIMIT:
            raise RunDirError(
                f"{self.path}: a socket in it would need {longest} bytes, the system allows {SOCKET_PATH_LIMIT}; "
                "choose a shorter run name, or set RLTOP_HOME to a shorter directory"
            )


def check_private(path: Path) -> None:
    """Check that no other user can enter the existing directory or replace it.

    Raises:
        RunDirError: it is not a directory of this user with mode 0700, or another user could replace it.
        OSError: it does not exist or can't be read.
    """
    found = path.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISDIR(found.st_mode):
        raise RunDirError(
            f"{path}: must be a directory of yours with mode 0700 (it has owner {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):04o}); set RLTOP_HOME to a directory of your own"
        )
    for part, reason in distrusted(path.parent):
        raise RunDirError(
            f"{path}: {part} {reason}, so another user could replace the directory; "
            "set RLTOP_HOME to a directory below your home"
        )


def distrusted(path: Path) -> Iterator[tuple[Path, str]]:
    """The parts of an absolute path whose entries another user than root could replace, and why.

    A link counts like a directory, and what it points to is checked too. In a directory with the sticky bit, users can
    replace only what is theirs.
    """
    seen = [*reversed(path.parents), path]
    for part in seen:
        found = part.lstat()
        if stat.S_ISLNK(found.st_mode):
            yield from distrusted(part.resolve())
        if found.st_uid not in _trusted():
            yield part, f"belongs to user {found.st_uid}"
        elif _others_write(found):
            yield part, f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"


def _trusted() -> set[int]:
    """This user, and root: in a container without a mapping for root, its files belong to the owner of ``/``."""
    return {os.getuid(), 0, Path("/").stat().st_uid}


def _others_write(found: os.stat_result) -> bool:
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode) or mode & stat.S_ISVTX:
        return False
    return bool(mode & 0o002) or (bool(mode & 0o020) and not _is_private_group(found.st_gid))


def _is_private_group(gid: int) -> bool:
    """Whether a group is root's, or the one that many systems make for a user alone: its name, and no other member."""
    try:
        group = grp.getgrgid(gid)
        own = {"root", pwd.getpwuid(os.getuid()).pw_name}
    except KeyError:
        return False
    return group.gr_name in own and set(group.gr_mem) <= own


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
        RunDirError: the name contains other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", run):
        raise RunDirError(f"run name {run!r}: use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")
    return RunDir(home(environ) / run)


def at(hub: str) -> RunDir:
    """The run directory with this path.

    Raises:
        RunDirError: not a local directory. Network access would need keys, which this version does not support.
    """
    if "://" in hub:
        raise RunDirError(f"hub {hub}: only a local run directory is supported; network addresses are refused")
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
