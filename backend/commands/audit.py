"""The audit log of a run: append-only, one JSON object per line: who requested what, why, and the outcome.

``lines_of`` and ``changes_of`` are pure; only ``AuditFile`` and ``read`` access the file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.commands import messages
from rltop.backend.commands.events import ChangeClosed, CommandEvent, CommandRequested, outcome
from rltop.collectors.contract.actions import BY_VERB, PROBE

MAX_WAITING = 10_000
"""Lines kept in memory while the disk takes none; beyond that the oldest are dropped."""

MODE = 0o600

HALF_SWITCHED = "half_switched"
MEASURED = "measured"
"""Events of a command as a whole."""

SILENCED = "silenced"
"""Event of an alarm: no notifications for ``AuditLine.revert_s`` seconds."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log. Fields that ``api.Change`` has too mean the same.

    Attributes:
        at: UTC, ISO 8601, to the millisecond. time: the same in seconds.
        event: ``requested``, or the outcome (``applied``, ``reverted``, ``undone``, ``kept``, ``refused``,
            ``timed_out``, ``superseded``). With an empty ``engine``: of the command as a whole (``HALF_SWITCHED``, or
            ``MEASURED`` with the ``result`` of a probe), or of the alarm that ``command`` names (``acknowledged``,
            ``SILENCED``).
        requested: time of the request, seconds.
        corrects: the state that the hub had set in the engine's silence, and that this line replaces.
        hub: epoch of the hub that wrote the line.
        who, host: of the process that requested it. author: what else is known of it, and whom it claimed to be.
    """

    at: str
    time: float
    event: str
    command: str
    engine: str
    verb: str
    flag: str
    wanted: str = ""
    state: str = ""
    old: str | None = None
    new: str | None = None
    detail: str = ""
    who: str = ""
    host: str = ""
    why: str = ""
    reason: str = ""
    step: int | None = None
    engine_step: int | None = None
    policy_version: int | None = None
    in_flight: int | None = None
    lost_requests: int | None = None
    milliseconds: float | None = None
    flag_epoch: int | None = None
    strict: bool = False
    revert_s: float | None = None
    reverts_at: float | None = None
    reverts: str = ""
    target: str = ""
    requested: float = 0.0
    corrects: str = ""
    hub: str = ""
    probe: str = ""
    result: ProbeResult | None = None
    author: api.Author | None = None


_SHARED = tuple(name for name in AuditLine.__struct_fields__ if name in api.Change.__struct_fields__)
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AuditLine)


def lines_of(event: CommandEvent, now: float, hub: str) -> list[AuditLine]:
    """The lines that record ``event``."""
    if isinstance(event, CommandRequested):
        return [line_of(change, now, hub) for change in event.changes]
    if isinstance(event, ChangeClosed):
        return [line_of(event.change, now, hub, corrects=event.corrects)]
    whole = msgspec.structs.replace(
        event.changes[0], engine="", state="", reason=messages.half_switched(event.changes), old=None, new=None
    )
    return [line_of(whole, now, hub, event=HALF_SWITCHED)]


def line_of(change: api.Change, now: float, hub: str, *, corrects: str = "", event: str = "") -> AuditLine:
    """The line of one change; ``event`` defaults to its outcome."""
    shared = {name: getattr(change, name) for name in _SHARED}
    return AuditLine(at=iso(now), time=now, event=event or outcome(change), corrects=corrects, hub=hub, **shared)


def measured(result: ProbeResult, now: float, hub: str) -> AuditLine:
    """The line of a probe's result."""
    return AuditLine(
        at=iso(now), time=now, event=MEASURED, command=result.command, engine="", verb=PROBE, flag="",
        reason=f"{result.verdict}: {result.text}", step=result.step, policy_version=result.policy_version,
        hub=hub, probe=result.probe, result=result,
    )  # fmt: skip


def changes_of(lines: Iterable[AuditLine]) -> dict[str, api.Change]:
    """The last ``api.MAX_CHANGES`` changes in the log, by key, oldest first."""
    found: dict[str, api.Change] = {}
    for line in lines:
        if not line.engine:
            continue
        shared = {name: getattr(line, name) for name in _SHARED}
        change = api.Change(**shared, closed=line.time if line.state in api.TERMINAL else None)
        found[api.change_key(change)] = change
        target = f"{line.target}@{line.engine}"
        if line.event == "kept" and target in found:
            found[target] = msgspec.structs.replace(found[target], kept_by=line.who, reverts_at=None)
        while len(found) > api.MAX_CHANGES:
            del found[next(iter(found))]
    return found


def of_snapshot(snapshot: api.Snapshot) -> list[AuditLine]:
    """The lines that a recording has kept: requests, outcomes and acknowledged alarms, oldest first."""
    lines = []
    for change in snapshot.changes.values():
        asked = msgspec.structs.replace(change, state="requested", old=None, new=None, reason="", engine_step=None)
        lines.append(line_of(asked, change.requested, snapshot.epoch, event="requested"))
        if change.closed is not None:
            lines.append(line_of(change, change.closed, snapshot.epoch))
    lines += [
        AuditLine(
            at=iso(alarm.acknowledged_at), time=alarm.acknowledged_at, event="acknowledged", command=alarm.id,
            engine="", verb="alarm", flag="", detail=alarm.cause, who=alarm.acknowledged,
        )
        for alarm in snapshot.alarms.values() if alarm.acknowledged_at is not None
    ]  # fmt: skip
    return sorted(lines, key=lambda line: line.time)


def iso(seconds: float) -> str:
    """UTC to the millisecond."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03d}Z"


def as_text(line: AuditLine) -> str:
    """One line for people."""
    words = [line.at, f"{line.event:<13}", f"{line.engine or 'fleet':<6}", _subject(line), f"[{line.command}]"]
    if line.who:
        words.append(f"by {api.signature(line.who, line.host, line.author)}")
    if line.why:
        words.append(f"because {line.why!r}")
    if line.event in ("requested", SILENCED) and line.revert_s is not None:
        words.append(f"for {line.revert_s:g} s")
    if line.engine_step is not None and line.event != "requested":
        words.append(f"at engine step {line.engine_step}")
    if line.lost_requests is not None:
        words.append(f"{line.in_flight} in flight, {line.lost_requests} lost")
    return " ".join(words) + (f": {line.reason}" if line.reason else "")


def _subject(line: AuditLine) -> str:
    if line.verb == "keep":
        return f"keep {line.target}"
    if line.verb == PROBE:
        return f"{PROBE} {line.probe}"
    name = line.flag or (BY_VERB[line.verb].word if line.verb in BY_VERB else line.verb)
    if line.event == "requested":
        return f"{name} → {line.wanted}" if line.wanted else name
    if line.old is not None or line.new is not None:
        return f"{name} {line.old or '?'} → {line.new or '?'}"
    return name


# --- the file -----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[list[AuditLine], int]:
    """The lines of the log, oldest first, and the number of unreadable ones (a kill may tear a line).

    Raises:
        OSError: the log exists and can't be read.
    """
    lines, bad = [], 0
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a device or a pipe may have no end
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    for raw in content.split(b"\n"):
        if not raw:
            continue
        try:
            lines.append(_decoder.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    return lines, bad


class AuditFile:
    """Appends lines to a log and syncs them to disk. Lines that can't be written wait for the next attempt.

    Attributes:
        waiting: lines that are not on disk yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.waiting: deque[AuditLine] = deque(maxlen=MAX_WAITING)

    def write(self, lines: Iterable[AuditLine] = ()) -> str:
        """Append the waiting lines, then ``lines``. Returns the error, or an empty string. Never raises ``OSError``."""
        self.waiting.extend(lines)
        if not self.waiting:
            return ""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
            try:
                self._append(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            return f"{self._path}: {error.strerror or error}"
        return ""

    def _append(self, descriptor: int) -> None:
        """Write whole lines; a torn one at the end of the file (a kill, a full disk) is ended first."""
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")
        while self.waiting:
            content = _encoder.encode(self.waiting[0]) + b"\n"
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.waiting.popleft()
        os.fsync(descriptor)
