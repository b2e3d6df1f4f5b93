"""The hub's side of the store: sends frames to the writer process, and continues without the disk if it must.

The worker thread hands over each frame and waits briefly for its commit before the frame is sent, so that what a viewer
has seen survives a kill of the hub. The writer is a process of its own (``writer_process.py``): its many SQLite
statements don't compete for the GIL, and a frame costs the worker thread one send and one receive. A frame is kept here
until the writer reports its commit. A disk that is full, slow, read-only or gone costs the history, never the live
view: frames wait within a bound, the error is reported once, and writing resumes on its own.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
import time
from collections import deque
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.store import aggregates, schema
from rltop.backend.store import write as files
from rltop.backend.store.aggregates import NOTHING, FrameAggregates, StoredAggregates, aggregate_rows
from rltop.backend.store.read import NAME, Reader, evaluating
from rltop.backend.store.writer_launch import LaunchedWriter, launch_writer, wait_for_writer
from rltop.backend.store.writer_process import Message, WriterConfig, WriterReport, pack
from rltop.collectors.contract.rundir import RunDir

COMMIT_TIMEOUT_S = 0.25
"""How long a frame is held back for its commit, which usually takes a few milliseconds."""

RETRY_S = 2.0
"""Pause of the store after an error."""

MAX_WAITING = 20_000
"""Frames with news that may wait for the disk, over an hour's at 5 Hz; then the oldest are dropped."""

CLOSE_TIMEOUT_S = 5.0
"""How long a hub that ends waits for the disk. The writer finishes on its own after that."""

CLOCK_TOLERANCE_S = 5.0
"""A clock that is behind the last stored frame by more than this is reported."""

_READ_BYTES = 1 << 20
_decode_report = msgspec.json.Decoder(WriterReport).decode


class Store:
    """Stores the history of the run in ``directory``. One thread at a time.

    Args:
        directory: of the run.
        run, epoch, started: of the hub.
        writer: launched before; None to launch one in ``start``.
        retry_s: as ``RETRY_S``.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        epoch: str,
        started: float,
        writer: LaunchedWriter | None = None,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self.path = directory.absolute() / NAME
        self._config = WriterConfig(str(self.path), run, epoch, started, retry_s)
        self._launched = writer
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._retry_at = 0.0
        self._waiting: deque[tuple[int, bytes]] = deque()  # number and message of each frame that is not committed
        self._sent = 0  # of these, how many the writer has
        self._sent_bytes = 0  # of the next
        self._received = b""  # the beginning of a report
        self._events: list[tuple[str, str, str]] = []
        self._error = ""
        self._is_late = False
        self._dropped = 0

    # --- before ``start`` -------------------------------------------------------------------------------------------

    def past(self) -> api.Snapshot | None:
        """Return the stored snapshot of the run; None if there is none, or it can't be read."""
        if self._launched is None:
            wait_for_writer(self.path.parent)
        try:
            with evaluating(self.path), Reader(self.path) as reader:
                past = reader.snapshot()
        except (schema.StoreError, OSError):
            return None  # the writer meets the same error, and reports it
        behind = past.time - self._config.started
        if behind > CLOCK_TOLERANCE_S:
            self._emit(
                "warn", f"the clock is {behind:.0f} s behind the last stored frame; new frames are stored after it"
            )
        return past

    def aggregates(self) -> StoredAggregates:
        """Return the stored sums from which effects, attribution and diagnoses are computed."""
        try:
            with evaluating(self.path), Reader(self.path) as reader:
                return aggregates.load(reader)
        except (schema.StoreError, OSError):
            return StoredAggregates()  # as above; the sums then begin with this hub

    # --- worker thread ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have the writer open the file."""
        launched, self._launched = self._launched, None
        if launched is not None:
            self._connect(launched)
        self._exchange()

    def put(self, frame: api.Frame, sums: FrameAggregates = NOTHING) -> bool:
        """Hand over the next frame, and the aggregates to store with it.

        Returns:
            Whether the aggregates are accepted too: not while the disk accepts nothing.
        """
        is_complete = not self._error
        try:
            frame, sums = (frame, sums) if is_complete else (_records_of(frame), sums.provenance_only())
            message = pack(Message(frame, list(aggregate_rows(sums))))
        except Exception as error:  # noqa: BLE001 - whatever it is, only the history suffers
            self._dropped += 1
            self._pause(repr(error))
            return False
        self._waiting.append((frame.seq, message))
        while len(self._waiting) > max(MAX_WAITING, oldest := self._sent + bool(self._sent_bytes)):
            del self._waiting[oldest]
            self._dropped += 1
        self._exchange(receive=False)
        return is_complete

    @property
    def unstored(self) -> int:
        """How many frames are not on disk, as far as the writer has reported by now."""
        self._exchange()
        return len(self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether everything that was handed over is on disk, as of the last call of ``unstored``."""
        return not self._waiting and not self._error

    def settle(self, timeout_s: float = COMMIT_TIMEOUT_S) -> int:
        """Wait for the disk, unless it is known to be behind. Return how many frames are not on disk."""
        until = time.monotonic() + timeout_s
        left = 0.0 if self._is_late and len(self._waiting) > 1 else timeout_s
        while self._waiting and not self._error and left > 0:
            self._exchange(left)
            left = until - time.monotonic()
        self._is_late = bool(self._waiting) and bool(self.unstored)
        return len(self._waiting)

    def take_events(self) -> list[tuple[str, str, str]]:
        """Return new events for the run: severity, kind and text."""
        events, self._events = self._events, []
        return events

    def end(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until all frames are committed and the file is closed. Idempotent."""
        until = time.monotonic() + timeout_s
        self._is_late = False
        self.settle(timeout_s)
        self._retry_at = float("inf")
        if self._process is None:
            return
        self._socket.close()
        try:
            self._process.wait(max(until - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # detached: it outlives the hub, and commits what it has
        self._process = None

    # --- the writer -------------------------------------------------------------------------------------------------

    def _exchange(self, wait_s: float = 0.0, *, receive: bool = True) -> None:
        """Send waiting frames and process reports, waiting for either at most ``wait_s`` seconds."""
        if self._process is None and time.monotonic() >= self._retry_at:
            self._launch()
        if self._process is None:
            return
        try:
            self._send(wait_s)
            if receive:
                self._receive(wait_s)
        except BlockingIOError:
            pass  # not yet
        except OSError:
            self._writer_died(self._process)

    def _send(self, wait_s: float) -> None:
        flags = self._flags(socket.SO_SNDTIMEO, wait_s)
        while not self._error and self._sent < len(self._waiting):
            _, message = self._waiting[self._sent]
            self._sent_bytes += self._socket.send(memoryview(message)[self._sent_bytes :], flags)
            if self._sent_bytes == len(message):
                self._sent, self._sent_bytes = self._sent + 1, 0

    def _receive(self, wait_s: float) -> None:
        received = self._socket.recv(_READ_BYTES, self._flags(socket.SO_RCVTIMEO, wait_s))
        if not received:
            raise ConnectionResetError
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            self._process_report(_decode_report(line))

    def _flags(self, option: int, wait_s: float) -> int:
        """Flags of a call that waits ``wait_s`` in the kernel: ``settimeout`` would poll first, one more call."""
        if wait_s <= 0:
            return socket.MSG_DONTWAIT
        microseconds = max(int(wait_s * 1e6), 1000)
        self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(microseconds, 1_000_000)))
        return 0

    def _process_report(self, report: WriterReport) -> None:
        waiting = len(self._waiting)
        while self._waiting and self._waiting[0][0] <= report.seq:
            self._waiting.popleft()
            self._sent -= 1
        self._dropped += report.dropped
        self._events += [(severity, "store", text) for severity, text in report.events]
        if report.error:
            self._pause(report.error)
        elif self._error and not report.events:
            lost = f"; {self._dropped} earlier frames were dropped" if self._dropped else ""
            self._emit("info", f"history is being stored again: {waiting} frames had waited{lost}")
            self._error, self._dropped = "", 0

    def _launch(self) -> None:
        try:
            self._connect(launch_writer(self.path.parent))
        except OSError as error:
            self._pause(str(error))

    def _connect(self, writer: LaunchedWriter) -> None:
        self._process, self._socket = writer.process, writer.socket
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _READ_BYTES)
        try:
            self._socket.sendall(pack(self._config))
        except OSError:
            self._writer_died(writer.process)

    def _writer_died(self, process: subprocess.Popen[bytes]) -> None:
        """The writer ended without being asked to: the next one gets all frames that were not committed."""
        self._socket.close()
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the disk; it keeps the lock
            process.wait(1.0)
        self._process = None
        self._sent, self._sent_bytes, self._received = 0, 0, b""
        self._pause(f"the writer ended with exit code {process.returncode}")

    def _pause(self, error: str) -> None:
        """Pause after an error, and report it unless it was reported already."""
        self._retry_at = time.monotonic() + self._config.retry_s
        if error != self._error:
            self._error = error
            self._emit("error", f"history is not stored: {error} ({self.path}); the live view continues")

    def _emit(self, severity: str, text: str) -> None:
        self._events.append((severity, "store", text))


def _records_of(frame: api.Frame) -> api.Frame:
    """The frame without engines, trainer and counters, which later frames repeat."""
    return api.Frame(
        frame.epoch, frame.seq, frame.time, steps=frame.steps, events=frame.events, changes=frame.changes,
        alarms=frame.alarms,
    )  # fmt: skip


def move_aside(directory: Path) -> Path:
    """Move the store and the audit log of the run in ``directory`` to a run of its own beside it, ``<name>-<number>``.

    No hub may be running. Returns the new directory.

    Raises:
        OSError: the directory can't be created, or the files can't be moved.
    """
    wait_for_writer(directory)
    for number in itertools.count(1):
        moved = directory.with_name(f"{directory.name}-{number}")
        with contextlib.suppress(FileExistsError):
            moved.mkdir(mode=0o700)
            break
    for path in [*directory.glob(f"{NAME}*"), RunDir(directory).audit]:
        if path.exists():
            path.rename(moved / path.name)
    return moved


def set_aside(directory: Path) -> Path | None:
    """Let the run in ``directory`` begin without history: rename its store. No hub may be running.

    Returns:
        The renamed file; None if there was no store.
    """
    if not (directory / NAME).exists():
        return None
    wait_for_writer(directory)
    return files.set_aside(directory / NAME, "earlier")
