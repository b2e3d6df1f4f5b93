"""Sends a collector's records to the hub: a bounded queue, one daemon thread, two sockets. Offering never blocks.

The host's thread leaves a reference and returns. The sender's thread wakes every ``tick_s``, turns queued items into
messages with the collector's own ``encode``, one at a time, and sends without waiting. Order is kept. While the hub is
away or slow, the queue fills to its bound and sheds. ``sent`` means that ZeroMQ accepted the message. Messages are
retained until a hub acknowledges them, as long as the queue does not need the room: so messages that ZeroMQ loses, or
that a hub received and did not store before it died, are resent on request (``docs/protocols/resend.md``).

Beside a host that computes in Python, the thread waits up to 5 ms for the GIL each time it has released it. So it
releases it once to wait and once per message, and asks sockets whether they are ready instead of trying them.
"""

from __future__ import annotations

import atexit
import importlib
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.error_boundary import Guard
from rltop.collectors.transport.resend_buffer import Frame, ResendBuffer
from rltop.collectors.transport.send_queue import QueuedBatch, SendQueue

TICK_S = 0.01
"""Default period of the thread."""

ANSWER_S = 1.0
"""For this long after a command the period is ``TICK_S`` at most, because a viewer waits for the answer."""

BURST = 64
"""Messages sent in a row before control messages are read."""

HEALTH_PERIOD_S = 1.0
"""How often a health message is sent, and ``periodic`` is called."""

REGISTER_PERIOD_S = 3.0
"""How often ``Register`` is repeated: a new hub on the same path must learn which source a connection belongs to."""

SEND_HWM = 64
"""Messages that may wait inside ZeroMQ, in addition to the bound of the queue."""

RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

MAX_REPLIES = 1024
"""Control messages that may wait for a hub; the oldest are dropped (``EngineState`` repeats their content)."""

BYE_TIMEOUT_S = 2.0
"""How long ``close`` continues without progress. The hub confirms the last message, since LINGER loses some on ipc."""

EXIT_TIMEOUT_S = 2.0
"""How long interpreter shutdown waits for a sender that was not closed."""

Message = tuple[wire.DataBody, wire.Arrays]


class Encode(Protocol):
    """Turns queued items of one kind into messages; runs on the sender's thread, and may be a generator."""

    def __call__(self, kind: str, items: list[Any], /) -> Iterable[Message]:
        """Return the messages for ``items``, which are all of one kind and in the order they were offered."""


class Sender:
    """Sends one collector's records to the hub of ``rundir``, and receives commands from it.

    Args:
        rundir: of the run. The hub need not be running: records that can't be sent are dropped and counted.
        source: name of this collector in every message: an engine id, or ``trainer/<rank>``.
        role: ``engine`` or ``trainer``.
        encode: see ``Encode``. If it raises, its items are dropped and counted.
        on_message: called on the sender's thread for every ``wire.Command`` (and ``Welcome``) from the hub.
        periodic: called on the sender's thread once a second; may call ``offer`` and ``reply``.
        tick: called on the sender's thread about every ``tick_s``, and once more when closing; may call ``offer`` and
            ``reply``.
        tick_s: seconds that an offered item may wait. Every tick takes the GIL from the host: the longer the cheaper.
        vital: kinds that are shed last.
        limit_bytes: bound on queued items and retained messages together (items offered since the last tick may
            exceed it).
        guard: contains exceptions of ``encode``, ``on_message``, ``periodic`` and ``tick``.
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
        tick_s: float = TICK_S,
        vital: frozenset[str] = frozenset(),
        limit_bytes: int = 64 << 20,
        guard: Guard | None = None,
    ) -> None:
        self.rundir = rundir
        self.source = source
        self.role = role
        self.guard = guard or Guard()
        self._encode = encode
        self._on_message = on_message
        self._periodic = periodic
        self._tick = tick
        self._tick_s = tick_s
        self._vital = vital
        self._limit_bytes = limit_bytes
        self._reset()
        _senders.add(self)

    def _reset(self) -> None:
        """Begin a new epoch: in a new sender, and in a forked child, whose inherited records belong to the parent."""
        self.epoch = uuid.uuid4().hex[:16]
        self.loop_count = 0
        self._loop_seen = (0, time.monotonic())
        self._queue = SendQueue(self._limit_bytes, self._vital)
        self._replies: deque[wire.ControlToHub] = deque(maxlen=MAX_REPLIES)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = threading.Event()
        self._answer_until = 0.0  # a viewer waits for the answer to a command
        self._close_deadline = 0.0  # time at which a closing thread ends in any case
        self._acknowledged = threading.Event()
        self._retained = ResendBuffer()
        self._batch: QueuedBatch | None = None
        self._messages: Iterator[Frames] = iter(())  # of the batch, encoded one at a time
        self._next: Frames = _NONE  # the next new message, without its envelope

    # --- any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once. The first ``offer`` calls it too, so that a collector created before a fork works."""
        with self._start_lock:
            if self._thread is None and not self._closing.is_set():
                # Not in the thread: a fork during the import would leave the child with half a module.
                self.guard.run("sender", importlib.import_module, "zmq")
                self._thread = threading.Thread(target=self._run, name=f"rltop-{self.source}", daemon=True)
                self._thread.start()

    def offer(self, kind: str, nbytes: int, item: Any) -> bool:
        """Queue ``item``, of about ``nbytes`` bytes, or drop and count it. Return whether it was queued.

        Never blocks on I/O, never raises.
        """
        if self._thread is None:
            self.start()
        return self._queue.offer(kind, nbytes, item)

    def has_room(self, kind: str, nbytes: int) -> bool:
        """Whether an item of that size would be queued now: to be checked before a large copy is made."""
        return self._queue.has_room(kind, nbytes)

    def count_lost(self, kind: str, count: int) -> None:
        """Count records that were lost before they could be offered."""
        self._queue.count_lost(kind, count)

    def reply(self, message: wire.ControlToHub) -> None:
        """Queue a message for the control socket."""
        self._replies.append(message)

    def health(self) -> wire.Health:
        """Return the counts of all records so far, and the state of the host's loop."""
        age = time.monotonic() - self._loop_seen[1]
        queue, faults = self._queue, dict(self.guard.faults)
        return wire.Health(queue.counts(), queue.nbytes, queue.limit_bytes, self.loop_count, age, faults)

    def close(self, timeout: float = 5.0) -> bool:
        """Send queued items, disconnect, and end the thread. Return whether the hub confirmed the last message.

        Bounded by ``timeout`` seconds, and by ``BYE_TIMEOUT_S`` without progress; items that could not be
        sent by then are counted as dropped. Idempotent.
        """
        with self._start_lock:  # no thread starts meanwhile
            if not self._closing.is_set():
                self._close_deadline = time.monotonic() + timeout
                self._closing.set()
        if self._thread is None:
            self._queue.close()
        else:
            self._thread.join(timeout)
        return self._acknowledged.is_set()

    # --- the sender's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.guard.run("sender", self._serve)
        self._queue.close()
        while batch := self._batch or self._queue.take():  # these will not be sent
            self._queue.settle(batch, sent=False)
            self._batch = None
        self._messages, self._next, self._retained = iter(()), _NONE, ResendBuffer()

    def _serve(self) -> None:
        import zmq

        context = zmq.Context()
        data = context.socket(zmq.PUSH)
        control = context.socket(zmq.DEALER)
        try:
            for socket in (data, control):
                socket.linger = 0
                socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
                socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
                socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued while no hub is connected
            data.sndhwm = SEND_HWM
            control.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
            control.setsockopt(zmq.ROUTING_ID, f"{self.source}#{self.epoch}".encode())
            data.connect(self.rundir.ingest)
            control.connect(self.rundir.control)
            self._work(data, control)
            self._disconnect(data, control)
        finally:
            data.close()
            control.close()
            context.term()

    def _work(self, data: Any, control: Any) -> None:
        """Serve until ``close`` is called."""
        next_health = next_register = 0.0
        closing = health_due = False
        while not closing:
            closing = self._closing.is_set()  # then this is the last turn, including what ``tick`` offers in it
            now = time.monotonic()
            if self.loop_count != self._loop_seen[0]:
                self._loop_seen = (self.loop_count, now)
            if now >= next_register and _send_control(control, self._register()):
                next_register = now + REGISTER_PERIOD_S
            if now >= next_health:
                next_health = now + HEALTH_PERIOD_S
                if self._periodic is not None:
                    self.guard.run("periodic", self._periodic)
                health_due = True
            if health_due:  # a hub that returns learns first what was dropped meanwhile
                health_due = not self._send_health(data)
            if self._tick is not None:
                self.guard.run("tick", self._tick)
            self._turn(data, control)

    def _disconnect(self, data: Any, control: Any) -> None:
        """Send the remaining messages, then ``Bye``; return when the hub confirms, or without progress."""
        self._queue.close()
        buffer, bye_sent, position, progress = self._retained, False, (0, 0), time.monotonic()
        while not self._acknowledged.is_set():
            if not bye_sent and buffer.due is None and self._batch is None and not self._load_next():
                self._send_health(data)  # the final counts
                self.reply(wire.Bye(self.source, self.epoch, buffer.next_seq, buffer.oldest))
                bye_sent = True
            self._turn(data, control)
            now = time.monotonic()
            current = buffer.next_seq, buffer.due.seq if buffer.due else buffer.next_seq
            if current != position:
                position, progress = current, now
            if now >= min(progress + BYE_TIMEOUT_S, self._close_deadline):
                return

    def _turn(self, data: Any, control: Any) -> None:
        import zmq

        self._retained.fit(self._limit_bytes - self._queue.nbytes)
        idle = self._send_some(data)
        while self._replies and _send_control(control, self._replies[0]):
            self._replies.popleft()
        tick_s = self._tick_s if time.monotonic() > self._answer_until else min(TICK_S, self._tick_s)
        if idle:
            control.poll(tick_s * 1000, zmq.POLLIN)
        while _ready(control) & zmq.POLLIN:
            self.guard.run("control", self._handle_control, control.recv(zmq.NOBLOCK))

    def _send_some(self, data: Any) -> bool:
        """Send up to a burst of messages. Return whether nothing can be sent before the next tick."""
        for _ in range(BURST):
            if due := self._retained.due:
                if not self._send(data, due.seq, due.time, due.frames):
                    return True
                self._retained.resent()
                continue
            if self._next is _NONE and not self._load_next():
                return True
            if not self._send_new(data, self._next):
                return True  # the hub is away or behind; the queue behind this message fills and sheds
            self._next = _NONE
        return False

    def _load_next(self) -> bool:
        """Encode the next new message; False if the queue is empty."""
        while True:
            if self._batch is None:
                self._batch = self._queue.take()
                if self._batch is None:
                    return False
                self._messages = self._encoded(self._batch)
            message = self.guard.run("encode", next, self._messages, _NONE)
            if message is not None and message is not _NONE:
                self._next = message
                return True
            self._queue.settle(self._batch, sent=message is _NONE)  # all its messages are sent, or one can't be encoded
            self._batch = None

    def _encoded(self, batch: QueuedBatch) -> Iterator[Frames]:
        for body, arrays in self._encode(batch.kind, batch.items):
            yield Frames(wire.encode_body(body, arrays), transient=isinstance(body, wire.TRANSIENT))

    def _send_new(self, data: Any, message: Frames) -> bool:
        """Send a new message; False if ZeroMQ does not accept it now. Only accepted ones use a sequence number."""
        now = time.time()
        if not self._send(data, self._retained.next_seq, now, message.frames):
            return False
        self._retained.retain(now, message.frames, transient=message.transient)
        self._retained.fit(self._limit_bytes - self._queue.nbytes)
        return True

    def _send(self, data: Any, seq: int, sent: float, frames: list[Frame]) -> bool:
        import zmq

        if not _ready(data) & zmq.POLLOUT:  # else the message would be packed again at every tick
            return False
        envelope = wire.Envelope(wire.PROTO, self.source, self.epoch, seq, sent, self._retained.oldest)
        try:
            data.send_multipart(wire.pack([wire.encode_envelope(envelope), *frames]), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _send_health(self, data: Any) -> bool:
        """Send the current health; False if that is not possible now, or messages are due to be resent first."""
        return self._retained.due is None and self._send_new(
            data, Frames(wire.encode_body(self.health(), {}), transient=True)
        )

    def _register(self) -> wire.Register:
        return wire.Register(wire.PROTO, self.source, self.epoch, self.role)

    def _handle_control(self, frame: bytes) -> None:
        message = wire.decode_to_collector(frame)
        if isinstance(message, wire.ByeAck):
            if message.epoch == self.epoch:
                self._acknowledged.set()
            return
        if isinstance(message, wire.Acknowledged | wire.Resend):
            if message.epoch == self.epoch and isinstance(message, wire.Resend):
                self._retained.rewind(message.seq)
            elif message.epoch == self.epoch:
                self._retained.release(message.seq)
            return
        if isinstance(message, wire.Command):
            self._answer_until = time.monotonic() + ANSWER_S
        if self._on_message is not None:  # as a place of its own: if it is off, the hub's confirmation still arrives
            self.guard.run("on_message", self._on_message, message)


def _ready(socket: Any) -> int:
    """Return the events that a socket is ready for. Unlike a poll or a failing receive, this keeps the GIL."""
    import zmq

    return int(socket.getsockopt(zmq.EVENTS))


def _send_control(control: Any, message: wire.ControlToHub) -> bool:
    """Send a control message; False if no hub is connected now."""
    import zmq

    try:
        control.send(wire.encode(message), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Frames:
    """A new message without its envelope; ``transient``: one of ``wire.TRANSIENT``."""

    frames: list[Frame]
    transient: bool


_NONE = Frames([], transient=False)
"""No message is due; a batch has no further message."""

_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _after_fork() -> None:
    for sender in list(_senders):
        sender._reset()  # threads and sockets do not survive a fork; messages sent on these vanish silently
        sender.guard.reset()


def _at_exit() -> None:
    # They were not closed. A daemon thread that outlives the interpreter may be cut off inside C++ code and abort.
    for sender in list(_senders):
        sender.close(EXIT_TIMEOUT_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
