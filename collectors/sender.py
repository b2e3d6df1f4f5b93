"""The way out of a host: a bounded queue, one daemon thread, two sockets. Offering never blocks and never raises.

The host's thread appends a reference and returns. The thread wakes every ``TICK_S``, turns what is queued into
messages with the collector's own ``encode``, and sends without waiting. When the hub is away or slow the queue fills
to its bound and new bulk records are dropped whole and counted; vital kinds have room of their own. For every kind
``offered == sent + dropped + queued`` at all times.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from rltop.collectors import wire
from rltop.collectors.guard import Guard
from rltop.collectors.rundir import RunDir

TICK_S = 0.01
"""How often the thread looks at the queue."""

HEALTH_PERIOD_S = 1.0
"""How often a health record leaves, and ``periodic`` is called."""

SEND_HWM = 256
"""Messages that may wait inside ZeroMQ, so that memory stays within the queue's bound plus this many messages."""

RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

VITAL_SHARE = 0.1
"""Share of the byte limit that only vital kinds may use: scalars and state survive when bulk is shed."""

BYE_TIMEOUT_S = 2.0
"""How long ``close`` waits for the hub to confirm the last message (LINGER loses messages on ipc)."""

log = logging.getLogger("rltop")


class Encode(Protocol):
    """Turns queued items of one kind into messages; runs on the sender's thread."""

    def __call__(self, kind: str, items: list[Any], /) -> Iterable[tuple[wire.DataBody, wire.Arrays]]:
        """The messages that carry ``items``, which are all of one kind and in the order they were offered."""


@dataclass
class _Kind:
    offered: int = 0
    sent: int = 0
    dropped: int = 0


class Sender:
    """Sends one collector's records to the hub of ``rundir``, and takes commands from it.

    Args:
        rundir: where the hub listens. The hub need not be there: what cannot be sent is dropped and counted.
        source: name of this collector in every message: an engine id, or ``trainer/<rank>``.
        role: ``engine`` or ``trainer``.
        encode: see ``Encode``.
        on_message: called on the sender's thread for every ``wire.Command`` (and ``Welcome``) from the hub.
        periodic: called on the sender's thread once a second; may call ``offer`` and ``reply``.
        tick: called on the sender's thread at every turn, about every ``TICK_S``; may call ``offer`` and ``reply``.
        vital: kinds that are shed last.
        limit_bytes: bound on what the queue refers to.
        guard: contains faults of ``encode``, ``on_message`` and ``periodic``.
    """

    def __init__(
        self,
        rundir: RunDir,
        source: str,
        role: str,
        encode: Encode,
        *,
        on_message: Callable[[wire.ControlToCollector], None] | None = None,
        periodic: Callable[[], None] | None = None,
        tick: Callable[[], None] | None = None,
        vital: frozenset[str] = frozenset(),
        limit_bytes: int = 64 << 20,
        guard: Guard | None = None,
    ) -> None:
        self.rundir = rundir
        self.source = source
        self.role = role
        self.guard = guard or Guard()
        self.loop_count = 0
        self._encode = encode
        self._on_message = on_message
        self._periodic = periodic
        self._tick = tick
        self._vital = vital
        self._limit = limit_bytes
        self._bulk_limit = int(limit_bytes * (1 - VITAL_SHARE))
        self._reset()
        _senders.add(self)

    def _reset(self) -> None:
        """A fresh life: in a new sender, and in a forked child, whose inherited records belong to the parent."""
        self.epoch = uuid.uuid4().hex[:16]
        self._queue: deque[tuple[str, int, Any]] = deque()
        self._replies: deque[wire.Body] = deque()
        self._bytes = 0
        self._kinds: dict[str, _Kind] = {}
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._closing = threading.Event()
        self._farewell = False
        self._acknowledged = threading.Event()
        self._seq = 0

    def start(self) -> None:
        """Start the thread, once. Called by the first ``offer`` too, so that a collector made before a fork works."""
        with self._start_lock:
            if self._thread is None and not self._closing.is_set():
                thread = threading.Thread(target=self._run, name=f"rltop-{self.source}", daemon=True)
                self._thread = thread
                thread.start()

    def offer(self, kind: str, nbytes: int, item: Any) -> bool:
        """Queue ``item``, of about ``nbytes`` bytes, or drop it and count. Returns whether it was queued.

        Takes one uncontended lock for the counters: the host's threads and the sender's may meet here, for
        microseconds at most. Never blocks on I/O, never raises.
        """
        if self._thread is None:
            self.start()
        with self._count_lock:
            counts = self._kinds.setdefault(kind, _Kind())
            counts.offered += 1
            limit = self._limit if kind in self._vital else self._bulk_limit
            if self._bytes + nbytes > limit or self._closing.is_set():
                counts.dropped += 1
                return False
            self._bytes += nbytes
            self._queue.append((kind, nbytes, item))
        return True

    def lost(self, kind: str, count: int) -> None:
        """Count records that were lost before they could be offered."""
        with self._count_lock:
            counts = self._kinds.setdefault(kind, _Kind())
            counts.offered += count
            counts.dropped += count

    def reply(self, message: wire.ControlToHub) -> None:
        """Queue a message for the control socket. From any thread."""
        if len(self._replies) < 1024:
            self._replies.append(message)

    def health(self) -> wire.Health:
        """What became of every record so far, and how the host's loop is."""
        with self._count_lock:
            counts = {
                name: wire.Counts(k.offered, k.sent, k.dropped, k.offered - k.sent - k.dropped)
                for name, k in self._kinds.items()
            }
            queued = self._bytes
        return wire.Health(counts, queued, self._limit, self.loop_count, self._loop_age(), dict(self.guard.faults))

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued, say goodbye, and end the thread. True if the hub confirmed the last message.

        Bounded by ``timeout`` seconds; what could not be sent by then is counted as dropped. Idempotent.
        """
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return self._acknowledged.is_set()

    # --- the sender's own thread --------------------------------------------------------------------------------

    def _loop_age(self) -> float:
        return time.monotonic() - self._loop_seen[1] if hasattr(self, "_loop_seen") else 0.0

    def _run(self) -> None:
        self.guard.run("sender", self._serve)
        with self._count_lock:  # nobody will send what is left
            while self._queue:
                kind, nbytes, _ = self._queue.popleft()
                self._bytes -= nbytes
                self._kinds[kind].dropped += 1

    def _serve(self) -> None:
        import zmq  # here, not above: a dormant collector never loads it

        context = zmq.Context()
        data = context.socket(zmq.PUSH)
        control = context.socket(zmq.DEALER)
        try:
            for socket in (data, control):
                socket.linger = 0
                socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
                socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
                socket.setsockopt(zmq.IMMEDIATE, 1)
            data.sndhwm = SEND_HWM
            control.setsockopt(zmq.MAXMSGSIZE, 1 << 20)
            control.setsockopt(zmq.ROUTING_ID, f"{self.source}#{self.epoch}".encode())
            data.connect(self.rundir.ingest)
            control.connect(self.rundir.control)
            self._turn(data, control)
        finally:
            data.close()
            control.close()
            context.term()

    def _turn(self, data: Any, control: Any) -> None:
        import zmq

        next_health = 0.0
        registered = 0.0
        pending: deque[tuple[str, int, list[Any]]] = deque()  # (kind, records, frames) not yet taken by ZeroMQ
        deadline = 0.0
        self._loop_seen = (self.loop_count, time.monotonic())
        while True:
            now = time.monotonic()
            if self.loop_count != self._loop_seen[0]:
                self._loop_seen = (self.loop_count, now)
            if now >= next_health:
                next_health = now + HEALTH_PERIOD_S
                if self._periodic is not None:
                    self.guard.run("periodic", self._periodic)
                if not pending:  # behind a backlog it would only be old news, and one more thing to hold
                    pending.append(("", 0, self._frames(self.health(), {})))
                # Again every few seconds: a new hub on the same path must learn which engine this connection is.
                if now - registered >= 3 * HEALTH_PERIOD_S:
                    registered = now
                    self.reply(wire.Register(wire.PROTO, self.source, self.epoch, self.role))
            if self._tick is not None:
                self.guard.run("tick", self._tick)
            self._take(pending)
            self._send(data, pending)
            self._converse(control)
            if self._closing.is_set():
                if not deadline:
                    deadline = now + BYE_TIMEOUT_S
                if not pending and not self._queue and not self._farewell:
                    self._farewell = True
                    self.reply(wire.Bye(self.source, self.epoch, self._seq))
                if self._acknowledged.is_set() or now >= deadline:
                    for kind, records, _ in pending:
                        self._settle(kind, records, sent=False)
                    return
            control.poll(TICK_S * 1000, zmq.POLLIN)

    def _take(self, pending: deque[tuple[str, int, list[Any]]]) -> None:
        """Encode what is queued, unless ZeroMQ still owes us the last lot (the queue is bounded, the lot is not)."""
        if len(pending) >= SEND_HWM or any(kind not in self._vital and kind for kind, _, _ in pending):
            return
        taken: dict[str, list[Any]] = {}
        freed = 0
        for _ in range(len(self._queue)):
            kind, nbytes, item = self._queue.popleft()
            taken.setdefault(kind, []).append(item)
            freed += nbytes
        with self._count_lock:
            self._bytes -= freed
        for kind, items in taken.items():
            messages = self.guard.run("encode", lambda k=kind, i=items: list(self._encode(k, i)))
            if not messages:  # nothing to say (state folded into later messages), or a contained fault
                self._settle(kind, len(items), sent=messages is not None)
                continue
            for body, arrays in messages[:-1]:
                pending.append((kind, 0, self._frames(body, arrays)))
            body, arrays = messages[-1]
            pending.append((kind, len(items), self._frames(body, arrays)))

    def _frames(self, body: wire.DataBody, arrays: wire.Arrays) -> list[Any]:
        envelope = wire.Envelope(wire.PROTO, self.source, self.epoch, self._seq, time.time())
        self._seq += 1
        return list(wire.encode_data(envelope, body, arrays))

    def _send(self, data: Any, pending: deque[tuple[str, int, list[Any]]]) -> None:
        import zmq

        while pending:
            kind, records, frames = pending[0]
            try:
                data.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                # The hub is away or behind. Bulk waits here (the queue behind it fills and sheds), news gets old.
                if not kind:
                    pending.popleft()
                    continue
                return
            pending.popleft()
            self._settle(kind, records, sent=True)

    def _settle(self, kind: str, records: int, *, sent: bool) -> None:
        if not records:
            return
        with self._count_lock:
            counts = self._kinds[kind]
            if sent:
                counts.sent += records
            else:
                counts.dropped += records

    def _converse(self, control: Any) -> None:
        import zmq

        while self._replies:
            try:
                control.send(wire.encode(self._replies[0]), zmq.NOBLOCK)
            except zmq.Again:
                break
            self._replies.popleft()
        while True:
            try:
                frame = control.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.guard.run("control", self._hear, frame)

    def _hear(self, frame: bytes) -> None:
        message = wire.decode_to_collector(frame)
        if isinstance(message, wire.ByeAck):
            if message.epoch == self.epoch:
                self._acknowledged.set()
        elif self._on_message is not None:
            self._on_message(message)


_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _after_fork() -> None:
    for sender in list(_senders):
        sender._reset()  # a thread and sockets do not survive a fork; messages sent on them vanish silently


os.register_at_fork(after_in_child=_after_fork)
