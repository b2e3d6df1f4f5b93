"""The hub's end of the collectors' sockets: real sockets in a separate run directory, and the received messages."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from rltop.backend.store.writer_launch import wait_for_writer
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import wait_for


@contextlib.contextmanager
def run_directory() -> Iterator[RunDir]:
    """A short path: the system allows 107 bytes for a socket. It may be a run's, or that of a home with runs."""
    path = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    try:
        yield RunDir(path)
    finally:
        for directory in (path, *path.iterdir()):
            if directory.is_dir():
                wait_for_writer(directory)
        wait_until(lambda: _removed(path))


def _removed(path: Path) -> bool:
    """Remove the directory; False if a process that is ending removed a file at the same time."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
    return not path.exists()


def wait_until(condition: Callable[[], object]) -> None:
    wait_for(lambda: bool(condition()), "the condition", poll_s=0.002)


class Receiver:
    """Reads everything in a thread, answers ``Register`` and ``Bye``, until ``stop`` or the end of the context.

    Args:
        rundir: where it binds.
        reading: data is read from the start; else from ``read()`` on, with room for two messages until then.
        acknowledging: ``Bye`` is answered, once all messages up to it are here.
    """

    def __init__(self, rundir: RunDir, *, reading: bool = True, acknowledging: bool = True) -> None:
        self.messages: list[tuple[wire.Envelope, wire.DataBody, wire.Arrays]] = []
        self.control: list[wire.ControlToHub] = []
        self.to_send: list[wire.ControlToCollector] = []
        self._acknowledging = acknowledging
        self._reading = threading.Event()
        if reading:
            self._reading.set()
        self._stopping = threading.Event()
        self._context = zmq.Context()
        self._data = self._context.socket(zmq.PULL)
        self._control = self._context.socket(zmq.ROUTER)
        self._data.rcvhwm = 1000 if reading else 2
        self._data.linger = self._control.linger = 0
        self._data.bind(rundir.ingest)
        self._control.bind(rundir.control)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def read(self) -> None:
        self._reading.set()

    def stop(self) -> None:
        """As a hub that dies: what is in flight is lost."""
        self._stopping.set()
        self._thread.join()
        self._data.close()
        self._control.close()
        self._context.term()

    def bodies(self, kind: type[Any]) -> list[Any]:
        return [body for _, body, _ in list(self.messages) if isinstance(body, kind)]

    def sequence_numbers(self) -> list[int]:
        return [envelope.seq for envelope, _, _ in list(self.messages)]

    def _serve(self) -> None:
        byes: list[tuple[bytes, wire.Bye]] = []
        known: bytes | None = None
        while not self._stopping.is_set():
            if self._reading.is_set():
                while self._data.poll(0):
                    self.messages.append(wire.decode_data(self._data.recv_multipart()))
            if self._control.poll(2):
                identity, frame = self._control.recv_multipart()
                known = identity
                message = wire.decode_to_hub(frame)
                self.control.append(message)
                if isinstance(message, wire.Register):
                    self._control.send_multipart([identity, wire.encode(wire.Welcome("hub"))])
                elif isinstance(message, wire.Bye):
                    byes.append((identity, message))
            while self.to_send and known is not None:
                self._control.send_multipart([known, wire.encode(self.to_send.pop(0))])
            if self._acknowledging:
                byes = [bye for bye in byes if not self._answered(*bye)]

    def _answered(self, identity: bytes, bye: wire.Bye) -> bool:
        last = max((e.seq for e, _, _ in self.messages if e.epoch == bye.epoch), default=-1)
        if last + 1 < bye.sent:
            return False
        self._control.send_multipart([identity, wire.encode(wire.ByeAck(bye.epoch))])
        return True
