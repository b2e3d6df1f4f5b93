"""The hub process: ``python -m rltop.backend.hub RUNDIR``. Owns the lock, the sockets and the life of one run's hub.

This thread only moves messages between sockets and the worker thread (``rltop.backend.hub.worker_thread``). It serves
ipc in the run's 0700 directory and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO

import zmq

from rltop.backend.commands import audit
from rltop.backend.hub import worker_thread as hub_core
from rltop.backend.hub.handover import Handover
from rltop.backend.hub.state import Effect, HubState
from rltop.backend.hub.warmup import Warmup
from rltop.backend.hub.worker_thread import WorkerThread
from rltop.backend.store.store import Store
from rltop.backend.util.clock import SteadyClock
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir, RunDirError

POLL_MS = 100
"""Longest wait for a message; bounds how long a signal goes unnoticed."""

LOCK_TRIES = 5
"""Attempts at the lock, ``POLL_MS`` apart."""

DRAIN = 16
"""Messages taken from one socket before the others get their turn; a data message may have megabytes."""

INGEST_HWM = 64
"""Data messages that may wait in ZeroMQ for one collector, at about 1 MiB each; the bound is per connection."""

MAX_CONTROL_BYTES = 1 << 20
VIEW_HWM = 64
"""Frames that may wait for one viewer (13 s); a viewer that is slower misses some and asks for a snapshot."""

log = logging.getLogger("rltop.hub")


class Hub:
    """The sockets and the two threads of a hub; the lock of ``rundir`` must be held."""

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._context = zmq.Context()
        self._stopping = False
        clock = SteadyClock()
        self.epoch = uuid.uuid4().hex[:16]
        self.started = clock()
        self._outbox = Handover(self._context)
        store = Store(rundir.path, rundir.run, self.epoch, self.started)
        past, recalled = store.past(), store.recall()
        store.start()
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex[:12]  # noqa: E731
        state = HubState(rundir.run, self.epoch, self.started, new_id, Warmup().ready, past, recalled)
        news: Callable[[], list[tuple[str, str, str]]] = lambda: [*store.take_news(), *clock.take_news()]  # noqa: E731
        self._core = WorkerThread(state, clock, self._outbox, audit.AuditFile(rundir.audit), store, news)
        self._core.put(lambda now: _restore(state, rundir.audit, now))  # before anybody is heard

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End ``run`` in good order. Safe in a signal handler."""
        self._stopping = True

    def run(self, ready: Callable[[], None]) -> bool:
        """Serve until told to stop. False if the core died of a fault. ``ready``: called once the sockets are bound."""
        self._bind()
        self._core.start()
        ready()
        try:
            while not self._stopping and self._core.is_alive():
                self._turn()
        finally:
            self._end()
        return not self._core.failed

    def _bind(self) -> None:
        # An old hub's socket files are replaced by bind; the lock says that no living hub owns them.
        self._ingest = self._socket(zmq.PULL, self._rundir.ingest, wire.MAX_FRAME_BYTES)
        self._control = self._socket(zmq.ROUTER, self._rundir.control, MAX_CONTROL_BYTES)
        self._query = self._socket(zmq.ROUTER, self._rundir.query, MAX_CONTROL_BYTES)
        self._view = self._socket(zmq.XPUB, self._rundir.view, MAX_CONTROL_BYTES)
        self._poller = zmq.Poller()
        for polled in (self._outbox.bell, self._control, self._query, self._view, self._ingest):
            self._poller.register(polled, zmq.POLLIN)
        self._reading = True

    def _socket(self, kind: int, endpoint: str, max_bytes: int) -> zmq.Socket[bytes]:
        made = self._context.socket(kind)
        made.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        made.linger = 0
        if kind == zmq.ROUTER:
            made.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if endpoint == self._rundir.control:
            made.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if kind == zmq.PULL:
            made.rcvhwm = INGEST_HWM
        if kind == zmq.XPUB:
            made.sndhwm = VIEW_HWM
            made.setsockopt(zmq.XPUB_VERBOSE, 1)
        made.bind(endpoint)
        return made

    def _turn(self) -> None:
        ready = dict(self._poller.poll(POLL_MS))
        if self._outbox.bell in ready:
            self._forward()
        if self._control in ready:
            self._drain(self._control, self._take_control)
        if self._query in ready:
            self._drain(self._query, self._take_question)
        if self._view in ready:
            self._drain(self._view, self._take_subscription)
        if self._ingest in ready:
            self._drain(self._ingest, self._core.put_data, self._core.has_room)
        self._set_reading(self._core.has_room())

    def _set_reading(self, reading: bool) -> None:
        """Stop polling ingest while the core has no room: what waits is then for ZeroMQ and the collectors to bound."""
        if reading != self._reading:
            self._reading = reading
            self._poller.modify(self._ingest, zmq.POLLIN if reading else 0)
            if not reading:
                self._core.put_counter("ingest_stalls")

    def _drain(
        self, source: zmq.Socket[bytes], take: Callable[[list[bytes]], None], more: Callable[[], bool] = lambda: True
    ) -> None:
        for _ in range(DRAIN):
            # Ask first: a receive that finds nothing releases the GIL too, and a busy core keeps it for 5 ms.
            if not more() or not int(source.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            try:
                frames = source.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            take(frames)

    def _take_control(self, frames: list[bytes]) -> None:
        if len(frames) == 2:
            self._core.put_control(frames[0].decode(errors="replace"), frames[1])
        else:
            self._core.put_counter("invalid")

    def _take_question(self, frames: list[bytes]) -> None:
        if len(frames) == 2:
            self._core.put_question(frames[0], frames[1])
        else:
            self._core.put_counter("invalid")

    def _take_subscription(self, frames: list[bytes]) -> None:
        if frames[0][:1] == b"\x01":
            self._core.put_viewer()

    def _forward(self) -> None:
        for where, *frames in self._outbox.take():
            if where == hub_core.VIEW:
                self._view.send_multipart(frames, zmq.NOBLOCK)  # drops for a slow viewer, never waits
            elif where == hub_core.QUERY:
                self._query.send_multipart(frames, zmq.NOBLOCK)  # drops where the viewer has gone
            elif where == hub_core.CONTROL:
                self._send_control(frames)
            else:
                self._stopping = True

    def _send_control(self, frames: list[bytes]) -> None:
        try:
            self._control.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:  # no such peer, or its queue is full
            log.info("control message to %s: %s", frames[0], error)
            self._core.put_undelivered(frames[0].decode(errors="replace"), frames[1])

    def _end(self) -> None:
        if self._core.is_alive():
            self._core.end()
        self._core.join(10)
        self._forward()
        for ended in (self._outbox.bell, self._control, self._query, self._view, self._ingest):
            ended.close(500)
        self._context.term()


def _restore(state: HubState, log_file: Path, now: float) -> list[Effect]:
    """Let ``state`` know what earlier hubs of this run wrote to the audit log."""
    try:
        lines, bad = audit.read(log_file)
    except OSError as error:
        state.audit_written(f"{log_file}: {error.strerror or error}", 0, now)
        return []
    return state.restore(lines, bad, now)


def _write_info(rundir: RunDir, hub: Hub) -> None:
    info = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": hub.started,
        "epoch": hub.epoch,
        "proto": wire.PROTO,
    }
    partial = rundir.info.with_suffix(".partial")
    partial.write_text(json.dumps(info))
    partial.replace(rundir.info)


def _own(lock: IO[str]) -> bool:
    """Take the lock for life; False if another hub has it. Who only looks, shares it for a moment (``find_hub``)."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(POLL_MS / 1000)
    return False


def main(rundir: RunDir) -> int:
    """Run the hub of ``rundir`` until it is told to stop. Returns the exit code: 0 also when another hub has the run.

    Raises:
        RunDirError: the directory can't be used.
    """
    rundir.create()
    with rundir.lock.open("w") as lock:
        if not _own(lock):
            log.info("run %s has a hub already", rundir.run)
            return 0
        rundir.info.unlink(missing_ok=True)  # of a hub that was killed: beside a held lock it would be taken for ours
        hub = Hub(rundir)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, hub.stop)
        try:
            return 0 if hub.run(lambda: _write_info(rundir, hub)) else 1
        finally:
            rundir.info.unlink(missing_ok=True)


def run_command(arguments: list[str]) -> int:
    """Runs the hub for the command line ``arguments``; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(arguments) != 1 or "://" in arguments[0]:
        log.error("usage: python -m rltop.backend.hub RUNDIR (a local directory; network addresses are refused)")
        return 2
    try:
        return main(RunDir(Path(arguments[0]).absolute()))
    except RunDirError as error:
        log.error("%s", error)
        return 2
    except OSError as error:
        log.error("%s: can't be used as a run directory: %s", arguments[0], error)
        return 2
