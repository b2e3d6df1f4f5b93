"""The hub's end of the store: hands frames to the writer's process, and goes on without the disk when it must.

The core hands over each frame and waits a moment for its commit before it is sent, so that what a viewer has seen
survives a kill of the hub. The writer is a process of its own (``writer_process.py``): its many statements don't wait
for the interpreter's lock, and a frame takes one send and one receive of the core's thread. A frame is kept here until
the writer reports its commit. A disk that is full, slow, read-only or gone costs the history, never the live view:
frames wait within a bound, the trouble is told once, and writing resumes by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.store import aggregates, schema
from rltop.backend.store import write as files
from rltop.backend.store.aggregates import NOTHING, FrameAggregates, StoredAggregates, rows_beside
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.writer_process import About, Message, Report, pack

PATIENCE_S = 0.25
"""How long a frame is held back for its commit. The disk usually takes a few milliseconds; after this it is behind."""

RETRY_S = 2.0
"""How long the store rests after a fault before it tries again."""

MAX_WAITING = 20_000
"""Frames with news that may wait while the disk does not take them, over an hour's at 5 Hz; then the oldest go."""

CLOSE_S = 5.0
"""How long the end of the hub waits for the disk. The writer goes on by itself after that."""

LAST_WRITER_S = 10.0
"""How long a new hub waits until the writer of the last one has committed what it had received."""

CLOCK_SLACK_S = 5.0
"""A clock that is behind the last record by more than this is told."""

LOCK = "writer.lock"
"""Held (flock) by the one writer of the run for as long as it lives."""

_POLL_S = 0.01
_READ_BYTES = 1 << 20
_decode_report = msgspec.json.Decoder(Report).decode


class Store:
    """Keeps the history of the run in ``directory``. One thread at a time.

    Args:
        directory: of the run.
        run, epoch, started: of the hub.
        retry_s: as ``RETRY_S``.
    """

    def __init__(self, directory: Path, run: str, epoch: str, started: float, *, retry_s: float = RETRY_S) -> None:
        self.path = directory.absolute() / NAME
        self._life = (run, epoch, started)
        self._retry_s = retry_s
        self._process: subprocess.Popen[bytes] | None = None
        self._hub: socket.socket
        self._retry_at = 0.0
        self._waiting: deque[tuple[int, bytes]] = deque()  # number and message of each frame that is not committed
        self._sent = 0  # of these, how many the writer has
        self._begun = 0  # bytes that it has of the next
        self._reports = b""
        self._news: list[tuple[str, str, str]] = []
        self._trouble = ""
        self._late = False
        self._dropped = 0

    # --- before ``start`` -------------------------------------------------------------------------------------------

    def past(self) -> api.Snapshot | None:
        """What is stored of the run so far; None if nothing is, or it can't be read."""
        wait_for_writer(self.path.parent)
        try:
            with Reader(self.path) as reader:
                past = reader.picture()
        except (schema.StoreError, sqlite3.Error, msgspec.DecodeError, OSError):
            return None  # the writer will meet the same and tell
        behind = past.time - self._life[2]
        if behind > CLOCK_SLACK_S:
            self._tell(
                "warn", f"the clock is {behind:.0f} s behind what was stored last; what comes is stored after it"
            )
        return past

    def recall(self) -> StoredAggregates:
        """What is stored of what effects and attribution are reckoned from."""
        try:
            with Reader(self.path) as reader:
                return aggregates.recall(reader)
        except (schema.StoreError, sqlite3.Error, zlib.error, msgspec.DecodeError, ValueError, OSError):
            return StoredAggregates()  # as above; effects are then told from here on

    # --- the core's thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the writer."""
        self._exchange()

    def put(self, frame: api.Frame, beside: FrameAggregates = NOTHING) -> bool:
        """Hand over the next frame, and what is kept beside it.

        Returns:
            Whether what is beside it is taken too: not while the disk takes nothing.
        """
        whole = not self._trouble
        try:
            frame, beside = (frame, beside) if whole else (_news_of(frame), beside.bare())
            message = pack(Message(frame, list(rows_beside(beside))))
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs the history alone
            self._dropped += 1
            self._fault(repr(error))
            return False
        self._waiting.append((frame.seq, message))
        while len(self._waiting) > max(MAX_WAITING, oldest := self._sent + bool(self._begun)):
            del self._waiting[oldest]
            self._dropped += 1
        self._exchange(hear=False)
        return whole

    @property
    def unstored(self) -> int:
        """How many frames the disk has not taken, as far as the writer has reported by now."""
        self._exchange()
        return len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether all that was handed over is on the disk, as of the last look at ``unstored``."""
        return not self._waiting and not self._trouble

    def settle(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the disk, unless it is known to be behind. How many frames it has not taken: 0 is all safe."""
        until = time.monotonic() + timeout_s
        left = 0.0 if self._late and len(self._waiting) > 1 else timeout_s
        while self._waiting and not self._trouble and left > 0:
            self._exchange(left)
            left = until - time.monotonic()
        self._late = bool(self._waiting) and bool(self.unstored)
        return len(self._waiting)

    def take_news(self) -> list[tuple[str, str, str]]:
        """What the run should be told, as severity, kind and text."""
        news, self._news = self._news, []
        return news

    def end(self, timeout_s: float = CLOSE_S) -> None:
        """Wait until what waits is committed and the file is closed. Harmless a second time."""
        until = time.monotonic() + timeout_s
        self._late = False
        self.settle(timeout_s)
        self._retry_at = float("inf")
        if self._process is None:
            return
        self._hub.close()
        try:
            self._process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # let go of: it outlives us, and commits what it has
        self._process = None

    # --- the writer -------------------------------------------------------------------------------------------------

    def _exchange(self, wait_s: float = 0.0, *, hear: bool = True) -> None:
        """Send what waits and take in what the writer reports, waiting for either at most ``wait_s`` seconds."""
        if self._process is None and time.monotonic() >= self._retry_at:
            self._spawn()
        if self._process is None:
            return
        try:
            self._send(wait_s)
            if hear:
                self._hear(wait_s)
        except BlockingIOError:
            pass  # not yet
        except OSError:
            self._lost_writer(self._process)

    def _send(self, wait_s: float) -> None:
        flags = self._patience(socket.SO_SNDTIMEO, wait_s)
        while not self._trouble and self._sent < len(self._waiting):
            _, message = self._waiting[self._sent]
            self._begun += self._hub.send(memoryview(message)[self._begun :], flags)
            if self._begun == len(message):
                self._sent, self._begun = self._sent + 1, 0

    def _hear(self, wait_s: float) -> None:
        received = self._hub.recv(_READ_BYTES, self._patience(socket.SO_RCVTIMEO, wait_s))
        if not received:
            raise ConnectionResetError
        *lines, self._reports = (self._reports + received).split(b"\n")
        for line in lines:
            self._take(_decode_report(line))

    def _patience(self, option: int, wait_s: float) -> int:
        """Flags of a call that waits so long: in the kernel, since ``settimeout`` would poll before, another call."""
        if wait_s <= 0:
            return socket.MSG_DONTWAIT
        microseconds = max(int(wait_s * 1e6), 1000)
        self._hub.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(microseconds, 1_000_000)))
        return 0

    def _take(self, report: Report) -> None:
        waited = len(self._waiting)
        while self._waiting and self._waiting[0][0] <= report.seq:
            self._waiting.popleft()
            self._sent -= 1
        self._dropped += report.dropped
        self._news += [(severity, "store", text) for severity, text in report.news]
        if report.trouble:
            self._fault(report.trouble)
        elif self._trouble and not report.news:
            lost = f"; {self._dropped} before them were let go" if self._dropped else ""
            self._tell("info", f"history is being stored again: {waited} frames had waited{lost}")
            self._trouble, self._dropped = "", 0

    def _spawn(self) -> None:
        """A new process, which holds the lock by a descriptor that it is given: no moment lies between two owners."""
        run, epoch, started = self._life
        hub, theirs = socket.socketpair()
        try:
            with theirs, _locked(self.path.parent / LOCK) as lock:
                about = About(theirs.fileno(), lock, str(self.path), run, epoch, started, self._retry_s)
                command = [sys.executable, "-m", About.__module__, msgspec.json.encode(about).decode()]
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # it may outlive the hub, whose reader waits for the end of that
                    pass_fds=(about.hub, about.lock),
                    cwd="/",
                )
        except OSError as error:
            hub.close()
            self._fault(str(error))
        else:
            hub.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _READ_BYTES)
            self._hub = hub

    def _lost_writer(self, process: subprocess.Popen[bytes]) -> None:
        """It ended without being asked to: the next one gets all that was not committed."""
        self._hub.close()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the disk; it keeps the lock
            process.wait(1.0)
        self._process = None
        self._sent, self._begun, self._reports = 0, 0, b""
        self._fault(f"the writer ended with exit code {process.returncode}")

    def _fault(self, text: str) -> None:
        """Say what is wrong, unless it was said."""
        self._retry_at = time.monotonic() + self._retry_s
        if text != self._trouble:
            self._trouble = text
            self._tell("error", f"history is not stored: {text} ({self.path}); the live view goes on")

    def _tell(self, severity: str, text: str) -> None:
        self._news.append((severity, "store", text))


def _news_of(frame: api.Frame) -> api.Frame:
    """The frame without what repeats itself: engines, trainer and counters say the same again later."""
    return api.Frame(
        frame.epoch, frame.seq, frame.time, steps=frame.steps, events=frame.events, changes=frame.changes,
        alarms=frame.alarms,
    )  # fmt: skip


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The descriptor of a lock; who inherits it keeps the lock. Raises ``OSError``: somebody has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise BlockingIOError("the last writer has not ended yet") from None
    finally:
        os.close(descriptor)


def wait_for_writer(directory: Path, timeout_s: float = LAST_WRITER_S) -> None:
    """Wait until the writer of a hub that is gone has committed what it had received, and has ended."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            with _locked(directory / LOCK):
                return
        except BlockingIOError:
            time.sleep(_POLL_S)
        except OSError:
            return  # the writer will meet the same and tell


def set_aside(directory: Path) -> Path | None:
    """Let the run in ``directory`` begin without a past; its store keeps under another name. No hub may live there.

    Returns:
        Where the past is now; None if there was none.
    """
    if not (directory / NAME).exists():
        return None
    wait_for_writer(directory)
    return files.set_aside(directory / NAME, "earlier")
