"""The store's writer, a process of its own: ``python -m rltop.backend.store.writer_process ABOUT``.

SQLite gives the interpreter's lock away at every statement, and gets it back from a thread that computes up to 5 ms
later. Here no thread computes. The hub (``store.py``) hands frames over through a socket and keeps each until a report
says that it is committed. If the hub is gone, what it had handed over is committed still; then this process ends.
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

TIDY_S = 1.0
"""How often what is old is thinned a little, and the file is seen to still be there."""

READ_BYTES = 1 << 20
"""Read from the hub at once: what is committed in one transaction when it catches up."""

SIZE_BYTES = 8
"""Before every message of the hub: its size."""


class About(msgspec.Struct, frozen=True):
    """What a writer is started with, as JSON.

    Attributes:
        hub: descriptor of a socket that is connected to it.
        lock: descriptor of the store's lock, which is held for as long as it is open.
        path: the store's file.
        run, epoch, started: of the hub.
        retry_s: how long the writer rests after a fault.
    """

    hub: int
    lock: int
    path: str
    run: str
    epoch: str
    started: float
    retry_s: float


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What the hub hands over, as msgpack after its size: a frame as viewers get it, and the rows beside it."""

    frame: api.Frame
    beside: list[tuple[str, Row]]


class Report(msgspec.Struct, frozen=True):
    """What the writer says to the hub, as a line of JSON.

    Attributes:
        seq: no frame up to this one is needed any more; -1 for none.
        trouble: why nothing is stored now; empty if it is.
        dropped: frames since the last report that can't be stored at all.
        news: what the run is to be told, as severity and text.
    """

    seq: int = -1
    trouble: str = ""
    dropped: int = 0
    news: list[tuple[str, str]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def pack(message: Message) -> bytes:
    """The message with its size before it."""
    body = _encode(message)
    return len(body).to_bytes(SIZE_BYTES, "little") + body


class WriterProcess:
    """Commits what comes from the hub, in order, until the hub is gone and nothing waits.

    Args:
        about: what it is to do.
        hub: the socket in ``about``.
    """

    def __init__(self, about: About, hub: socket.socket) -> None:
        self._hub = hub
        self._path = Path(about.path)
        self._life = about.run, about.epoch, about.started
        self._retry_s = about.retry_s
        self._writer: Writer | None = None
        self._received = bytearray()
        self._waiting: list[Message] = []
        self._stored_until = float("-inf")
        self._trouble = ""
        self._hub_gone = False
        self._tidied = 0.0
        self._told_network = False

    def run(self) -> None:
        """See the class."""
        while not self._hub_gone or (self._waiting and not self._trouble):
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, it costs the history alone
                self._fault(error)
        if self._writer is not None and not self._writer.moved:
            self._writer.close()

    def _turn(self) -> None:
        writer = self._writer = self._writer or self._open()
        if not self._waiting:
            self._receive(TIDY_S)
        if writer.moved:
            raise OSError(f"{self._path} was removed or replaced")
        if self._waiting:
            new = [message for message in self._waiting if message.frame.time > self._stored_until]
            writer.write([message.frame for message in new], [message.beside for message in new])
            self._report(Report(self._waiting[-1].frame.seq))
            self._waiting.clear()
        self._trouble = ""
        if time.monotonic() - self._tidied > TIDY_S:
            self._tidied = time.monotonic()
            writer.tidy()

    def _open(self) -> Writer:
        network = is_network(self._path.parent)
        writer = Writer(self._path, *self._life, wal=not network)
        self._stored_until = writer.stored_until()
        if network and not self._told_network:
            self._told_network = True
            self._tell(
                "warn",
                f"the run directory is on a network file system ({kind_of(self._path.parent)}): history is stored "
                "without a write-ahead log, slower, and only this machine may read it meanwhile; set RLTOP_HOME to a "
                "local disk",
            )
        if not self._waiting:
            self._report(Report())
        return writer

    # --- the hub ----------------------------------------------------------------------------------------------------

    def _receive(self, timeout_s: float) -> None:
        """Take what the hub has sent, once something is there."""
        if self._hub_gone or not select.select([self._hub], [], [], timeout_s)[0]:
            return
        try:
            received = self._hub.recv(READ_BYTES)
        except ConnectionResetError:  # it left reports unread
            received = b""
        self._hub_gone = not received
        self._received += received
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
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # nobody is left to know
            self._hub.sendall(msgspec.json.encode(report) + b"\n")

    def _tell(self, severity: str, text: str) -> None:
        self._report(Report(news=[(severity, text)]))

    # --- faults -----------------------------------------------------------------------------------------------------

    def _fault(self, error: Exception) -> None:
        """Let go of the file, report what is wrong, and rest; the next turn opens the file again."""
        if self._writer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._writer.abandon()
            self._writer = None
        if type(error) is sqlite3.DatabaseError and self._path.is_file():  # not its subclasses: those pass
            aside = set_aside(self._path, "damaged")
            self._tell("error", f"the store was damaged ({error}): it is {aside.name} now, and a new one begins")
            return
        report = Report(trouble=str(error) or repr(error))
        if not isinstance(error, sqlite3.OperationalError | schema.StoreError | OSError) and self._waiting:
            # Ours, not the disk's: it would fail every time.
            report = Report(self._waiting[-1].frame.seq, report.trouble, len(self._waiting))
            self._waiting.clear()
        self._trouble = report.trouble
        self._report(report)
        until = time.monotonic() + self._retry_s
        while not self._hub_gone and (left := until - time.monotonic()) > 0:
            self._receive(left)


def main(arguments: list[str]) -> None:
    """Write for a hub; the one argument is ``About``."""
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the hub: this ends after it
        signal.signal(number, signal.SIG_IGN)
    about = msgspec.json.decode(arguments[0], type=About)
    with socket.socket(fileno=about.hub) as hub:
        WriterProcess(about, hub).run()


if __name__ == "__main__":
    main(sys.argv[1:])
