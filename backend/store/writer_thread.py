"""The store's thread: commits what viewers are about to see, and goes on without the disk when it must.

The core hands over each frame and waits a moment for its commit before it is sent, so that what a viewer has seen
survives a kill of the hub. A disk that is full, slow, read-only or gone costs the history, never the live view: frames
wait in memory within a bound, the trouble is told once, and writing resumes by itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.store import aggregates, schema
from rltop.backend.store.aggregates import NOTHING, FrameAggregates, StoredAggregates, rows_beside
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.write import Writer
from rltop.backend.util.filesystems import is_network, kind_of

PATIENCE_S = 0.25
"""How long a frame is held back for its commit. The disk usually takes a millisecond; after this it is behind."""

RETRY_S = 2.0
"""How long the store rests after a fault before it tries again."""

MAX_WAITING = 20_000
"""Frames with news that may wait while the disk does not take them, over an hour's at 5 Hz; then the oldest go."""

BATCH = 500
"""Frames per transaction when catching up."""

TIDY_S = 1.0
"""How often what is old is thinned a little, and the file is seen to still be there."""

CLOSE_S = 5.0
"""How long the end of the hub waits for the disk."""

CLOCK_SLACK_S = 5.0
"""A clock that is behind the last record by more than this is told."""


_Item = tuple[api.Frame, FrameAggregates]


class Store(threading.Thread):
    """Keeps the history of the run in ``directory``.

    Args:
        directory: of the run.
        run, epoch, started: of the hub.
        retry_s: as ``RETRY_S``.
    """

    def __init__(self, directory: Path, run: str, epoch: str, started: float, *, retry_s: float = RETRY_S) -> None:
        super().__init__(name="rltop-store", daemon=True)
        self.path = directory / NAME
        self._life = (run, epoch, started)
        self._retry_s = retry_s
        self._writer: Writer | None = None
        self._wake = threading.Condition()
        self._waiting: deque[_Item] = deque()
        self._news: list[tuple[str, str, str]] = []
        self._trouble = ""
        self._late = False
        self._dropped = 0
        self._ended = False
        self._tidied = 0.0
        self._told_network = False

    # --- the core's thread ----------------------------------------------------------------------------------------

    def past(self) -> api.Snapshot | None:
        """What is stored of the run so far; None if nothing is, or it can't be read. Before ``start``."""
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
        """What is stored of what effects and attribution are reckoned from. Before ``start``."""
        try:
            with Reader(self.path) as reader:
                return aggregates.recall(reader)
        except (schema.StoreError, sqlite3.Error, zlib.error, msgspec.DecodeError, ValueError, OSError):
            return StoredAggregates()  # as above; effects are then told from here on

    def put(self, frame: api.Frame, beside: FrameAggregates = NOTHING) -> bool:
        """Hand over the next frame, and what is kept beside it, which nobody changes any more.

        Returns:
            Whether what is beside it is taken too: not while the disk takes nothing.
        """
        with self._wake:
            whole = not self._trouble
            self._waiting.append((frame, beside) if whole else (_news_of(frame), beside.bare()))
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            self._wake.notify_all()
        return whole

    @property
    def is_settled(self) -> bool:
        """Whether all that was handed over is on the disk."""
        with self._wake:
            return not self._waiting and not self._trouble

    def settle(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the disk, unless it is known to be behind. How many frames it has not taken: 0 is all safe."""
        with self._wake:
            if not self._late or len(self._waiting) <= 1:
                self._wake.wait_for(lambda: not self._waiting or bool(self._trouble), timeout_s)
            self._late = bool(self._waiting)
            return len(self._waiting)

    def take_news(self) -> list[tuple[str, str, str]]:
        """What the run should be told, as severity, kind and text."""
        with self._wake:
            news, self._news = self._news, []
        return news

    def end(self, timeout_s: float = CLOSE_S) -> None:
        """Commit what waits, and close the file."""
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self.join(timeout_s)

    # --- the store's thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """See ``threading.Thread``."""
        while not self._done():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs the history alone
                self._fault(error)
        with contextlib.suppress(sqlite3.Error):
            if self._writer is not None:
                self._writer.close()

    def _done(self) -> bool:
        with self._wake:
            return self._ended and (not self._waiting or bool(self._trouble))

    def _turn(self) -> None:
        if self._writer is None:
            self._writer = self._open()
        with self._wake:
            self._wake.wait_for(lambda: bool(self._waiting) or self._ended, TIDY_S)
            batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
        if self._writer.moved:
            raise OSError(f"{self.path} was removed or replaced")
        if batch:
            self._writer.write([frame for frame, _ in batch], [list(rows_beside(beside)) for _, beside in batch])
            self._written(batch[-1][0])
        if time.monotonic() - self._tidied > TIDY_S:
            self._tidied = time.monotonic()
            self._writer.tidy()

    def _open(self) -> Writer:
        network = is_network(self.path.parent)
        writer = Writer(self.path, *self._life, wal=not network)
        if network and not self._told_network:
            self._told_network = True
            kind = kind_of(self.path.parent)
            self._tell(
                "warn",
                f"the run directory is on a network file system ({kind}): history is stored without a write-ahead log, "
                "slower, and only this machine may read it meanwhile; set RLTOP_HOME to a local disk",
            )
        return writer

    def _written(self, last: api.Frame) -> None:
        with self._wake:
            count = 0
            while self._waiting and self._waiting[0][0].seq <= last.seq:  # some may have been let go meanwhile
                self._waiting.popleft()
                count += 1
            if self._trouble:
                lost = f"; {self._dropped} before them were let go" if self._dropped else ""
                self._news.append(("info", "store", f"history is being stored again: {count} frames had waited{lost}"))
                self._trouble, self._dropped = "", 0
            self._wake.notify_all()

    def _fault(self, error: Exception) -> None:
        """Let go of the file, say what is wrong unless it was said, and rest; the next turn opens the file anew."""
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.abandon()
            self._writer = None
        if type(error) is sqlite3.DatabaseError and self.path.is_file():  # not its subclasses: those pass
            aside = _set_aside(self.path, "damaged")
            self._tell("error", f"the store was damaged ({error}): it is {aside.name} now, and a new one begins")
            return
        with self._wake:
            if not isinstance(error, sqlite3.OperationalError | schema.StoreError | OSError):
                self._dropped += len(self._waiting)  # ours, not the disk's: it would stand in the way for ever
                self._waiting.clear()
            if (text := str(error)) != self._trouble:
                self._trouble = text
                self._news.append(
                    ("error", "store", f"history is not stored: {text} ({self.path}); the live view goes on")
                )
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._ended, self._retry_s)

    def _tell(self, severity: str, text: str) -> None:
        with self._wake:
            self._news.append((severity, "store", text))


def _news_of(frame: api.Frame) -> api.Frame:
    """The frame without what repeats itself: engines, trainer and counters say the same again later."""
    return api.Frame(
        frame.epoch, frame.seq, frame.time, steps=frame.steps, events=frame.events, changes=frame.changes,
        alarms=frame.alarms,
    )  # fmt: skip


def _set_aside(path: Path, why: str) -> Path:
    """Give the file another name, with its log."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}-{why}-{stamp}{path.suffix}")
    for end in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")  # noqa: PTH105 - names with ends, not paths
    return aside


def set_aside(directory: Path) -> Path | None:
    """Let the run in ``directory`` begin without a past; its store keeps under another name. No hub may live there.

    Returns:
        Where the past is now; None if there was none.
    """
    return _set_aside(directory / NAME, "earlier") if (directory / NAME).exists() else None
