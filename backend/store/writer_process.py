"""The store's writer process: ``python -m rltop.backend.store.writer_process DESCRIPTOR``.

SQLite releases the GIL at every statement, and beside a thread that computes gets it back up to 5 ms later. In this
process no other thread computes. The hub (``store.py``) sends frames through a socket and keeps each until a report
confirms its commit. When the hub is gone, this process commits what it has received, then exits.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.store import schema
from rltop.backend.store.row_mapping import Row
from rltop.backend.store.write import Writer, set_aside
from rltop.backend.util.filesystems import is_network, kind_of

MAINTENANCE_PERIOD_S = 1.0
"""How often retention is applied, a little at a time, and the file is checked to still exist."""

READ_BYTES = 1 << 20
"""Bytes read from the hub at once: when the writer catches up, these are committed in one transaction."""

SIZE_BYTES = 8
"""Length of the size before every message of the hub."""


class WriterConfig(msgspec.Struct, frozen=True):
    """The hub's first message to a writer, on which it opens the store.

    Attributes:
        path: the store's file.
        run, epoch, started: of the hub.
        retry_s: pause after a fault.
    """

    path: str
    run: str
    epoch: str
    started: float
    retry_s: float


class Message(msgspec.Struct, frozen=True, array_like=True):
    """A frame as viewers get it, and the rows that are stored with it (table, row)."""

    frame: api.Frame
    rows: list[tuple[str, Row]]


class Report(msgspec.Struct, frozen=True):
    """The writer's report to the hub, as a line of JSON.

    Attributes:
        seq: frames up to this one are done with; -1 for none.
        error: why nothing can be stored at the moment; empty if frames are stored.
        dropped: frames since the last report that can't be stored at all.
        events: severity and text of events for the run.
    """

    seq: int = -1
    error: str = ""
    dropped: int = 0
    events: list[tuple[str, str]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_decode_config = msgspec.msgpack.Decoder(WriterConfig).decode


def pack(message: WriterConfig | Message) -> bytes:
    """Encode a message, preceded by its size."""
    body = _encode(message)
    return len(body).to_bytes(SIZE_BYTES, "little") + body


class WriterProcess:
    """Commits the frames of the hub in order, until the hub is gone and none waits.

    Args:
        hub: connected socket.
    """

    def __init__(self, hub: socket.socket) -> None:
        self._hub = hub
        self._config: WriterConfig
        self._path: Path
        self._writer: Writer | None = None
        self._received = bytearray()
        self._waiting: list[Message] = []
        self._stored_until = float("-inf")
        self._error = ""
        self._hub_gone = False
        self._maintained = 0.0
        self._network_reported = False

    def run(self) -> None:
        """See the class."""
        if not self._receive_config():
            return
        while not self._hub_gone or (self._waiting and not self._error):
            try:
                self._commit_waiting()
            except Exception as error:  # noqa: BLE001 - whatever it is, only the history suffers
                self._handle_error(error)
        if self._writer is not None and not self._writer.was_replaced:
            self._writer.close()

    def _receive_config(self) -> bool:
        """Wait for the first message; False if the hub ended before it."""
        while not self._hub_gone:
            self._read(None)
            if (first := self._next_message()) is not None:
                self._config = _decode_config(first)
                self._path = Path(self._config.path)
                self._decode_received()
                return True
        return False

    def _commit_waiting(self) -> None:
        """Open the file if need be, wait for frames and commit them, and do a little maintenance."""
        writer = self._writer = self._writer or self._open()
        if not self._waiting:
            self._receive(MAINTENANCE_PERIOD_S)
        if writer.was_replaced:
            raise OSError(f"{self._path} was removed or replaced")
        if self._waiting:
            new = [message for message in self._waiting if message.frame.time > self._stored_until]
            writer.write([message.frame for message in new], [message.rows for message in new])
            self._report(Report(self._waiting[-1].frame.seq))
            self._waiting.clear()
        self._error = ""
        if time.monotonic() - self._maintained > MAINTENANCE_PERIOD_S:
            self._maintained = time.monotonic()
            writer.maintain()

    def _open(self) -> Writer:
        network = is_network(self._path.parent)
        config = self._config
        writer = Writer(self._path, config.run, config.epoch, config.started, wal=not network)
        self._stored_until = writer.stored_until()
        if network and not self._network_reported:
            self._network_reported = True
            self._emit(
                "warn",
                f"the run directory is on a network file system ({kind_of(self._path.parent)}): history is stored "
                "without a write-ahead log, which is slower, and only this machine may read it during the run; set "
                "RLTOP_HOME to a local disk",
            )
        if not self._waiting:
            self._report(Report())
        return writer

    # --- the hub ----------------------------------------------------------------------------------------------------

    def _receive(self, timeout_s: float) -> None:
        """Receive frames, waiting at most ``timeout_s`` seconds for the first."""
        self._read(timeout_s)
        self._decode_received()

    def _read(self, timeout_s: float | None) -> None:
        if self._hub_gone or not select.select([self._hub], [], [], timeout_s)[0]:
            return
        try:
            received = self._hub.recv(READ_BYTES)
        except ConnectionResetError:  # the hub left reports unread
            received = b""
        self._hub_gone = not received
        self._received += received

    def _decode_received(self) -> None:
        while (message := self._next_message()) is not None:
            self._waiting.append(_decode(message))

    def _next_message(self) -> bytes | None:
        end = SIZE_BYTES + int.from_bytes(self._received[:SIZE_BYTES], "little")
        if len(self._received) < max(end, SIZE_BYTES + 1):
            return None
        message = bytes(self._received[SIZE_BYTES:end])
        del self._received[:end]
        return message

    def _report(self, report: Report) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the hub is gone
            self._hub.sendall(msgspec.json.encode(report) + b"\n")

    def _emit(self, severity: str, text: str) -> None:
        self._report(Report(events=[(severity, text)]))

    # --- errors -----------------------------------------------------------------------------------------------------

    def _handle_error(self, error: Exception) -> None:
        """Close the file, report the error, and pause; the next attempt opens the file again."""
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.abandon()
            self._writer = None
        if type(error) is sqlite3.DatabaseError and self._path.is_file():  # its subclasses are temporary errors
            aside = set_aside(self._path, "damaged")
            self._emit("error", f"the store was damaged ({error}): it was renamed to {aside.name}, a new one begins")
            return
        self._error = str(error) or repr(error)
        report = Report(error=self._error)
        if not isinstance(error, sqlite3.OperationalError | schema.StoreError | OSError) and self._waiting:
            # A defect of ours, not of the disk: these frames would fail every time.
            report = Report(self._waiting[-1].frame.seq, self._error, len(self._waiting))
            self._waiting.clear()
        self._report(report)
        until = time.monotonic() + self._config.retry_s
        while not self._hub_gone and (left := until - time.monotonic()) > 0:
            self._receive(left)


def main(arguments: list[str]) -> None:
    """Write for a hub; the one argument is the descriptor of a connected socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the hub: this process ends after it
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(arguments[0])) as hub:
        WriterProcess(hub).run()


if __name__ == "__main__":
    main(sys.argv[1:])
