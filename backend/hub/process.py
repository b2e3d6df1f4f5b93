"""The hub of one run: its sockets, and the two threads that serve them.

The I/O thread only moves messages between sockets and the worker thread (``worker_thread.py``). The sockets are ipc, in
the run's 0700 directory.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

import zmq

from rltop.backend.commands import audit
from rltop.backend.hub import worker_thread
from rltop.backend.hub.access import Access, HubSeal
from rltop.backend.hub.handover import Handover
from rltop.backend.hub.log_file import bound_log
from rltop.backend.hub.outputs import Effect
from rltop.backend.hub.peers import peer_of
from rltop.backend.hub.state import HubState
from rltop.backend.hub.warmup import Warmup
from rltop.backend.hub.worker_thread import WorkerThread
from rltop.backend.store.store import Store
from rltop.backend.store.writer_launch import LaunchedWriter
from rltop.backend.util.clock import SteadyClock
from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import control_key, hub_key
from rltop.collectors.contract.rundir import RunDir

POLL_MS = 100
"""Longest wait for a message; bounds how long a signal goes unnoticed."""

DRAIN = 16
"""Messages taken from one socket before the others get their turn; a data message may have megabytes."""

INGEST_HWM = 64
"""Data messages that may wait in ZeroMQ for one collector, at about 1 MiB each; the bound is per connection."""

MAX_CONTROL_BYTES = 1 << 20

CHECK_PERIOD_S = 1.0
"""How often the hub checks that its files are in place: a cleaner of /tmp may remove them."""

VIEW_HWM = 64
"""Frames that may wait for one viewer (13 s); a slower viewer misses frames and requests a snapshot."""

Take = Callable[[list[zmq.Frame]], None]
"""Handles the frames of a message."""

log = logging.getLogger("rltop.hub")


class Hub:
    """The sockets and the two threads of a hub; the lock of ``rundir`` must be held.

    Args:
        rundir: of the run.
        writer: of the store, if it was launched before.
        note: an event to begin with.
        carried: messages to begin with.

    Attributes:
        renewal: once it has ended: why another run begins in this directory; empty if none does.
        displaced: it ended because its lock or sockets were removed from the run directory.
    """

    def __init__(
        self, rundir: RunDir, writer: LaunchedWriter | None = None, note: str = "", carried: Iterable[list[bytes]] = ()
    ) -> None:
        self.renewal = ""
        self._rundir = rundir
        self._context = zmq.Context()
        self._stopping = False
        self.displaced = False
        self._files: tuple[int, ...] | None = None
        self._next_check = 0.0
        clock = SteadyClock()
        self.epoch = uuid.uuid4().hex[:16]
        self.started = clock()
        self._outbox = Handover(self._context)
        store = Store(rundir.path, rundir.run, self.epoch, self.started, writer)
        past, stored = store.past(), store.aggregates()
        store.start()
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex[:12]  # noqa: E731
        access = Access(control_key(rundir))
        state = HubState(rundir.run, self.epoch, self.started, new_id, Warmup().ready, past, stored, access)
        events: Callable[[], list[tuple[str, str, str]]] = lambda: [*store.take_events(), *clock.take_jumps()]  # noqa: E731
        seal = HubSeal(hub_key(rundir), self.epoch, state.session)
        self._worker = WorkerThread(state, clock, self._outbox, audit.AuditFile(rundir.audit), store, events, seal)
        self._worker.put(lambda now: _restore(state, rundir.audit, now))  # before any message
        if note:
            self._worker.put(lambda now: state.note(now, "warn", "run", note))
        for frames in carried:
            self._worker.put_data(frames)

    @property
    def carried(self) -> list[list[bytes]]:
        """Messages for the hub of the other run that begins."""
        return self._worker.carried

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Make ``run`` end in good order. Safe in a signal handler."""
        self._stopping = True

    def run(self, ready: Callable[[], None]) -> bool:
        """Serve until stopped. False if the worker thread failed. ``ready`` is called once the sockets are bound."""
        self._bind()
        self._files = self._rundir.hub_files()
        self._worker.start()
        ready()
        try:
            while not self._stopping and self._worker.is_alive() and not self._check_displaced():
                self._turn()
        finally:
            self._end()
        return not self._worker.failed

    def _check_displaced(self) -> bool:
        """Once a second: whether the lock or a socket is gone from the run directory, so that nobody can connect."""
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_PERIOD_S
            self.displaced = self._rundir.hub_files() != self._files
            bound_log(self._rundir.log)
        return self.displaced

    def _bind(self) -> None:
        # Bind replaces the socket files of a previous hub; the lock excludes that one is running.
        self._ingest = self._socket(zmq.PULL, self._rundir.ingest, wire.MAX_FRAME_BYTES)
        self._control = self._socket(zmq.ROUTER, self._rundir.control, MAX_CONTROL_BYTES)
        self._query = self._socket(zmq.ROUTER, self._rundir.query, MAX_CONTROL_BYTES)
        self._view = self._socket(zmq.XPUB, self._rundir.view, MAX_CONTROL_BYTES)
        self._poller = zmq.Poller()
        for polled in (self._outbox.bell, self._control, self._query, self._view, self._ingest):
            self._poller.register(polled, zmq.POLLIN)
        self._reading = True

    def _socket(self, kind: int, endpoint: str, max_bytes: int) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        opened.setsockopt(zmq.IPC_FILTER_UID, os.getuid())  # connections of other users are closed unread
        opened.linger = 0
        if endpoint == self._rundir.control:
            opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if kind == zmq.PULL:
            opened.rcvhwm = INGEST_HWM
        if kind == zmq.XPUB:
            opened.sndhwm = VIEW_HWM
            opened.setsockopt(zmq.XPUB_VERBOSE, 1)
        opened.bind(endpoint)
        return opened

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
            self._drain(self._ingest, self._take_data, self._worker.has_room)
        self._set_reading(self._worker.has_room())

    def _set_reading(self, reading: bool) -> None:
        """Stop polling ingest while the worker has no room; ZeroMQ and the collectors then bound what waits."""
        if reading != self._reading:
            self._reading = reading
            self._poller.modify(self._ingest, zmq.POLLIN if reading else 0)
            if not reading:
                self._worker.put_counter("ingest_stalls")

    def _drain(self, source: zmq.Socket[bytes], take: Take, more: Callable[[], bool] = lambda: True) -> None:
        for _ in range(DRAIN):
            # Check first: a receive that finds nothing also releases the GIL, and a busy worker keeps it for 5 ms.
            if not more() or not int(source.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            try:
                frames = source.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            take(frames)

    def _take_control(self, frames: list[zmq.Frame]) -> None:
        if len(frames) == 2:
            self._worker.put_control(frames[0].bytes.decode(errors="replace"), frames[1].bytes, peer_of(frames[1]))
        else:
            self._worker.put_counter("invalid")

    def _take_question(self, frames: list[zmq.Frame]) -> None:
        if len(frames) in (2, 3):  # with a proof of the control key
            viewer, question, *proof = [frame.bytes for frame in frames]
            self._worker.put_question(viewer, question, peer_of(frames[1]), *proof)
        else:
            self._worker.put_counter("invalid")

    def _take_data(self, frames: list[zmq.Frame]) -> None:
        self._worker.put_data([frame.bytes for frame in frames], peer_of(frames[0]))

    def _take_subscription(self, frames: list[zmq.Frame]) -> None:
        if frames[0].bytes[:1] == b"\x01":
            self._worker.put_viewer()

    def _forward(self) -> None:
        for target, *frames in self._outbox.take():
            if target == worker_thread.VIEW:
                self._view.send_multipart(frames, zmq.NOBLOCK)  # drops for a slow viewer, never waits
            elif target == worker_thread.QUERY:
                self._query.send_multipart(frames, zmq.NOBLOCK)  # drops if the viewer has gone
            elif target == worker_thread.CONTROL:
                self._send_control(frames)
            elif target == worker_thread.RENEW:
                self.renewal, self._stopping = frames[0].decode(), True
            else:
                self._stopping = True

    def _send_control(self, frames: list[bytes]) -> None:
        try:
            self._control.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:  # no such peer, or its queue is full
            log.info("control message to %s: %s", frames[0], error)
            self._worker.put_undelivered(frames[0].decode(errors="replace"), frames[1])

    def _end(self) -> None:
        if self._worker.is_alive():
            self._worker.end()
        self._worker.join(10)
        self._forward()
        for ended in (self._outbox.bell, self._control, self._query, self._view, self._ingest):
            ended.close(500)
        self._context.term()


def _restore(state: HubState, log_file: Path, now: float) -> list[Effect]:
    """Load into ``state`` what earlier hubs of this run wrote to the audit log."""
    try:
        lines, bad = audit.read(log_file)
    except OSError as error:
        state.log.audit_written(f"{log_file}: {error.strerror or error}", 0, now)
        return []
    return state.restore(lines, bad, now)
