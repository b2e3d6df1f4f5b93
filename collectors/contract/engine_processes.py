"""The processes of this user on this machine that run or load an engine with the plugin, whether attached or not.

Each writes one record, a small JSON file, to a directory of mode 0700 (``directory``), and replaces it when its state
changes. A record whose process is gone is removed by the next reader. Standard library only: a dormant plugin reads
and writes these.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rltop.collectors.contract.rundir import SOCKET_PATH_LIMIT, RunDirError, check_private, home

LOADING, DORMANT, ATTACHED = "loading", "dormant", "attached"
"""States: the engine is not ready yet; it is ready and not observed; its collector reports to a hub."""

STATES = (LOADING, DORMANT, ATTACHED)

MAX_RECORD_BYTES = 1 << 16


@dataclass(frozen=True)
class EngineProcess:
    """The record of one process.

    Attributes:
        pid: of the process.
        started: its start time in ticks since boot; tells it from a later process with the same pid. "" if unknown.
        machine: host name and pid namespace, in which ``pid`` has a meaning.
        state: one of ``STATES``.
        engines: ids of its engines; empty while loading.
        vllm_version: of vLLM.
        run: path of the run directory to which it reports or will report; empty if none.
    """

    pid: int
    started: str
    machine: str
    state: str
    engines: tuple[str, ...] = ()
    vllm_version: str = ""
    run: str = ""

    @property
    def socket(self) -> Path:
        """Where the process listens for ``contract.attach`` requests."""
        return socket_of(self.pid)


def directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of the records. Its first character is not allowed in the name of a run."""
    return home(environ) / ".engines"


def socket_of(pid: int) -> Path:
    """The socket of process ``pid``."""
    return directory() / f"{pid}.sock"


def _record_of(pid: int) -> Path:
    return directory() / f"{pid}.json"


def create_directory() -> Path:
    """Create the directory with mode 0700, or check the existing one.

    Raises:
        RunDirError: see ``check_private``; or its path is too long for a socket.
        OSError: it can't be created.
    """
    path = directory()
    longest = len(os.fsencode(path / f"{2**22}.sock"))
    if longest > SOCKET_PATH_LIMIT:
        raise RunDirError(f"{path}: too long for a socket ({longest} bytes); set RLTOP_HOME to a shorter directory")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path)
    return path


def this_process(state: str, engines: tuple[str, ...] = (), vllm_version: str = "", run: str = "") -> EngineProcess:
    """The record of the calling process."""
    pid = os.getpid()
    return EngineProcess(pid, _start_ticks(pid), _machine(), state, engines, vllm_version, run)


def write(record: EngineProcess) -> None:
    """Write or replace the record of this process, atomically.

    Raises:
        RunDirError, OSError: as ``create_directory``.
    """
    path = create_directory() / f".{record.pid}.new"
    path.write_text(json.dumps(asdict(record)))
    path.replace(_record_of(record.pid))


def remove(pid: int) -> None:
    """Remove the record and the socket of a process, if there are any."""
    for path in (_record_of(pid), socket_of(pid)):
        with contextlib.suppress(OSError):
            path.unlink()


def engine_processes() -> list[EngineProcess]:
    """The live processes by pid. Removes the records of processes that are gone; unreadable ones are skipped.

    Raises:
        RunDirError: the directory is not private.
    """
    try:
        check_private(directory())
        paths = sorted(directory().glob("*.json"))
    except OSError:
        return []
    found = [record for path in paths if (record := _read(path)) is not None and record.machine == _machine()]
    for record in found:
        if not _is_alive(record):
            remove(record.pid)
    return sorted(filter(_is_alive, found), key=lambda record: record.pid)


def _read(path: Path) -> EngineProcess | None:
    """The record at ``path``; None if it is no valid record of its name."""
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MAX_RECORD_BYTES))
        record = EngineProcess(**fields | {"engines": tuple(fields["engines"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    texts = (record.started, record.machine, record.vllm_version, record.run, *record.engines)
    valid = isinstance(fields["engines"], list) and all(isinstance(text, str) for text in texts)
    valid = valid and record.state in STATES
    return record if valid and path.stem == str(record.pid) else None


def _is_alive(record: EngineProcess) -> bool:
    ticks = _start_ticks(record.pid)
    if ticks or record.started:
        return ticks == record.started
    try:
        os.kill(record.pid, 0)
    except OSError:
        return False
    return True


def _start_ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat, and "" for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _machine() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()
