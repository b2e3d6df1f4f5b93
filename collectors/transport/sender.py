"""The sender: a bounded queue, one daemon thread and two sockets. Offering an item never blocks and never raises.

The host's thread queues a reference and returns. The sender's thread wakes every ``tick_s``, encodes queued items with
the collector's ``encode``, one message at a time, and sends them in order without waiting. While the hub is away or
slow, the queue fills to its bound and drops new items. ``sent`` means accepted by ZeroMQ. Messages stay in the resend
buffer until a hub acknowledges them, as long as the queue does not need the memory, and are resent when a hub asks.

If the host computes in Python, the thread waits up to 5 ms for the GIL each time after it has released it. So it
releases it once to wait and once per message, and asks sockets whether they are ready instead of trying.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import secrets
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rltop.collectors.contract import wire
from rltop.collectors.contract.keys import RunKeyError
from rltop.collectors.contract.rundir import RunDir, RunDirError
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.transport.hub_check import HubCheck, UnprovenError
from rltop.collectors.transport.redaction import Redaction, redaction_of
from rltop.collectors.transport.resend_buffer import Frame, ResendBuffer
from rltop.collectors.transport.send_queue import QueuedBatch, SendQueue
from rltop.collectors.transport.software import software

TICK_S = 0.01
"""Default interval at which the thread checks the queue."""

ANSWER_S = 1.0
"""How long after a command the queue is checked every ``TICK_S``, so that the answer is sent quickly."""

BURST = 64
"""Messages sent in a row before commands are received."""

HEALTH_PERIOD_S = 1.0
"""Interval of health messages and of calls of ``periodic``."""

START_PERIOD_S = 1.0
"""Pause between attempts to start the thread."""

CHECK_PERIOD_S = 1.0
"""How often the run directory is checked: a cleaner of /tmp may remove it, and another user make one in its place."""

REGISTER_PERIOD_S = 3.0
"""Interval of ``Register``, by which a new hub on the same path identifies this connection."""

SEND_HWM = 64
"""Messages that may wait inside ZeroMQ, in addition to the bound of the queue."""

MAX_UNANSWERED = 4
"""Registrations without an answer after which the control connection is made again."""

RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

MAX_REPLIES = 1024
"""Control messages that may wait for a hub; beyond it the oldest are dropped (the state contains the same updates)."""

BYE_TIMEOUT_S = 2.0
"""How long ``close`` continues without progress if no hub is connected. A hub confirms the last message: LINGER loses
messages on ipc."""

EXIT_TIMEOUT_S = 2.0
"""How long interpreter exit waits for a sender that was not closed."""

Message = tuple[wire.DataBody, wire.Arrays]

log = logging.getLogger("rltop")


T = TypeVar("T")

Encode = Callable[[str, list[T]], Iterable[Message]]
"""``encode(kind, items)`` makes the messages for consecutive items of one kind; it may be a generator. Called on the
sender's thread. If it raises, the items are dropped and counted."""


class Sender(Generic[T]):
    """Sends one collector's items, of type ``T``, to the hub of ``rundir``, and receives commands from it.

    Args:
        rundir: the run directory with the hub's sockets. The hub need not exist: what can't be sent is dropped and
            counted.
        source: name of this collector in every message: an engine id, or ``trainer/<rank>``.
        role: ``engine`` or ``trainer``.
        encode: makes messages of items; see ``Encode``.
        on_message: called on the sender's thread for every ``wire.Command`` and ``wire.Welcome`` from the hub.
        periodic: called on the sender's thread once a second; may call ``offer`` and ``reply``.
        tick: called on the sender's thread about every ``tick_s``, and once more when closing; may call ``offer`` and
            ``reply``.
        tick_s: seconds that an item may wait. Every tick takes the GIL from the host, so longer ticks cost less.
        vital: kinds that are dropped last.
        limit_bytes: bound on the bytes of the queue and the resend buffer together, except for items offered since the
            last tick.
        send_hwm: messages that may wait inside ZeroMQ, beside ``limit_bytes``; fewer if they are large.
        guard: contains faults of ``encode``, ``on_message``, ``periodic`` and ``tick``.
    """

    def __init__(
        self,
        rundir: RunDir,
        source: str,
        role: str,
        encode: Encode[T],
        *,
        on_message: Callable[[wire.ControlToCollector], None] | None = None,
        periodic: Callable[[], None] | None = None,
        tick: Callable[[], None] | None = None,
        tick_s: float = TICK_S,
        vital: frozenset[str] = frozenset(),
        limit_bytes: int = 64 << 20,
        send_hwm: int = SEND_HWM,
        guard: ErrorBoundary | None = None,
    ) -> None:
        self.rundir = rundir
        self.source = source
        self.role = role
        self.guard = guard or ErrorBoundary()
        self._encode = encode
        self._on_message = on_message
        self._periodic = periodic
        self._tick = tick
        self._tick_s = tick_s
        self._vital = vital
        self._limit_bytes = limit_bytes
        self._send_hwm = send_hwm
        self._reset()
        _senders.add(self)

    def _reset(self) -> None:
        """Initialise the state: of a new sender, and in a forked child, where the inherited items are the parent's."""
        self.epoch = uuid.uuid4().hex[:16]
        self._session = secrets.token_hex(16)
        self._hub_check = HubCheck(self.rundir, self._session)
        self._redaction: Redaction | None = None
        self._awaits_key = False  # the run has a redaction key that can't be used
        self._unproven = 0
        self._has_registered = False
        self._unanswered = 0  # registrations since the last answer
        self.loop_count = 0
        self._loop_seen = (0, time.monotonic())
        self._queue: SendQueue[T] = SendQueue(self._limit_bytes, self._vital)
        self._replies: deque[wire.ControlToHub] = deque(maxlen=MAX_REPLIES)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.RLock()  # a signal handler may call during a call
        self._starting = False
        self._start_again = 0.0  # monotonic; when to try again to get a thread
        self._closing = threading.Event()
        self._fast_until = 0.0  # monotonic; until then an answer to a command is expected
        self._deadline = 0.0  # monotonic; when a closing thread ends in any case
        self._acknowledged = threading.Event()
        self._refused = False
        self._linked: tuple[int, int] | None = None  # device and inode of the directory
        self._unsafe = ""
        self._threadless = False
        self._resend_buffer = ResendBuffer()
        self._batch: QueuedBatch[T] | None = None
        self._messages: Iterator[Frames] = iter(())  # of the batch, encoded one at a time
        self._next: Frames = _NONE  # the next message to send

    # --- any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once. The first ``offer`` also does, so that a collector created before a fork works."""
        with self._start_lock:
            if self._thread is None and not (self._starting or self._closing.is_set()):
                self._starting = True
                if time.monotonic() >= self._start_again:
                    self.guard.run("sender", self._start)
                self._starting = False

    def _start(self) -> None:
        self._start_again = time.monotonic() + START_PERIOD_S
        # Not in the thread: a fork during the import would leave the child with an incomplete module.
        importlib.import_module("zmq")
        thread = threading.Thread(target=self._run, name=f"rltop-{self.source}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has none; items wait, and are dropped when the queue is full
            if not self._threadless:
                self._threadless = True
                log.warning("rltop: no thread could be started, trying again: %s", error)
            return
        self._thread = thread

    def offer(self, kind: str, nbytes: int, item: T) -> bool:
        """Queue ``item`` of about ``nbytes`` bytes, or drop and count it. Returns whether it was queued.

        Never blocks on I/O, never raises.
        """
        if self._thread is None:
            self.start()
        return self._queue.offer(kind, nbytes, item)

    def has_room(self, kind: str, nbytes: int) -> bool:
        """Whether an item of that size would be queued now. Check it before making a large copy."""
        return self._queue.has_room(kind, nbytes)

    def count_dropped(self, kind: str, count: int) -> None:
        """Count records that were dropped before they could be offered."""
        self._queue.count_dropped(kind, count)

    def reply(self, message: wire.ControlToHub) -> None:
        """Queue a message for the control socket."""
        self._replies.append(message)

    def health(self) -> wire.Health:
        """The counts of every kind, the size of the queue, and the progress of the host's loop."""
        age = time.monotonic() - self._loop_seen[1]
        queue, faults = self._queue, dict(self.guard.faults)
        return wire.Health(
            queue.counts(), queue.nbytes, queue.limit_bytes, self.loop_count, age, faults, self._unproven
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued, disconnect, and end the thread. Returns whether the hub confirmed the last message.

        Takes at most ``timeout`` seconds, and at most ``BYE_TIMEOUT_S`` without progress if no hub is connected; items
        not sent by then are counted as dropped. Idempotent.
        """
        with self._start_lock:  # no thread starts meanwhile
            if not self._closing.is_set():
                self._deadline = time.monotonic() + timeout
                self._closing.set()
        if self._thread is not threading.current_thread():  # a garbage collection there may end an engine
            if self._thread is not None:
                self._thread.join(timeout)
            self._queue.close()
        return self._acknowledged.is_set()

    # --- the sender's own thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        self.guard.run("sender", self._serve)
        self._queue.close()
        while batch := self._batch or self._queue.pop_batch():  # the rest will not be sent
            self._queue.settle(batch, sent=False)
            self._batch = None
        self._messages, self._next, self._resend_buffer = iter(()), _NONE, ResendBuffer()

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
                socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued without a connection
            data.sndhwm = self._send_hwm
            control.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
            control.setsockopt(zmq.ROUTING_ID, f"{self.source}#{self.epoch}".encode())
            self._loop(data, control)
            if not self._refused:
                self._disconnect(data, control)
        finally:
            data.close()
            control.close()
            context.term()

    def _loop(self, data: Any, control: Any) -> None:
        """Run until ``close`` is called."""
        next_health = next_register = next_check = 0.0
        closing = health_due = False
        while not closing:
            closing = self._closing.is_set()  # then this is the last iteration; items that ``tick`` offers are sent
            now = time.monotonic()
            if self.loop_count != self._loop_seen[0]:
                self._loop_seen = (self.loop_count, now)
            if now >= next_check:
                next_check = now + (CHECK_PERIOD_S if self._relink(data, control) else TICK_S)
            if now >= next_register and _send_control(control, self._register()):
                next_register, self._has_registered = now + REGISTER_PERIOD_S, True
                self._count_unanswered(control)
            if now >= next_health:
                next_health = now + HEALTH_PERIOD_S
                if self._periodic is not None:
                    self.guard.run("periodic", self._periodic)
                health_due = True
            if health_due:  # first: it tells a hub that comes back how many records were dropped
                health_due = not self._send_health(data)
            if self._tick is not None:
                self.guard.run("tick", self._tick)
            self._run_once(data, control)

    def _relink(self, data: Any, control: Any) -> bool:
        """Connect to the hub while the run directory is safe, and leave one that was removed or replaced.

        Returns:
            Whether there is a directory to connect to.
        """
        directory = self._safe_directory()
        if directory != self._linked:
            for socket, endpoint in ((data, self.rundir.ingest), (control, self.rundir.control)):
                if self._linked is not None:
                    socket.disconnect(endpoint)
                if directory is not None:
                    socket.connect(endpoint)
            self._linked = directory
        return directory is not None

    def _count_unanswered(self, control: Any) -> None:
        """Connect again if the hub does not answer: it ignores a connection whose id an earlier one still has."""
        self._unanswered += 1
        if self._unanswered > MAX_UNANSWERED and self._linked is not None:
            self._unanswered = 0
            control.disconnect(self.rundir.control)
            control.connect(self.rundir.control)

    def _safe_directory(self) -> tuple[int, int] | None:
        """Device and inode of the run directory; None if it does not exist, or another user could act as the hub."""
        try:
            self.rundir.check()
            self._redaction = redaction_of(self.rundir, self._redaction, awaited=self._awaits_key)
            found = self.rundir.path.lstat()
        except (RunDirError, RunKeyError) as error:
            self._awaits_key |= isinstance(error, RunKeyError)
            if str(error) != self._unsafe:
                self._unsafe = str(error)
                log.warning("rltop: not connected to a hub: %s", error)
            return None
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _disconnect(self, data: Any, control: Any) -> None:
        """Send the remaining items, then ``Bye``; return when the hub confirms it, or when it is too late.

        A hub that is connected may be busy, so it has until the deadline.
        """
        import zmq

        self._queue.close()
        if not self._has_registered:  # closed at once: the hub should know what it was
            self._replies.appendleft(self._register())
        buffer, bye_sent, position, last_progress = self._resend_buffer, False, (0, 0), time.monotonic()
        while not self._acknowledged.is_set():
            if not bye_sent and buffer.next_resend is None and self._batch is None and not self._prepare_next():
                self._send_health(data)  # the final counts
                self.reply(wire.Bye(self.source, self.epoch, buffer.next_seq, buffer.oldest))
                bye_sent = True
            self._run_once(data, control)
            now = time.monotonic()
            resend = buffer.next_resend
            reached = buffer.next_seq, resend.seq if resend else buffer.next_seq
            if reached != position or _ready(control) & zmq.POLLOUT:
                position, last_progress = reached, now
            if now >= min(last_progress + BYE_TIMEOUT_S, self._deadline):
                return

    def _run_once(self, data: Any, control: Any) -> None:
        """Send what can be sent, then receive control messages; waits up to a tick if there is nothing to send."""
        import zmq

        self._resend_buffer.shrink(self._limit_bytes - self._queue.nbytes)
        idle = self._send_burst(data)
        while self._replies and _send_control(control, self._replies[0]):
            self._replies.popleft()
        tick_s = self._tick_s if time.monotonic() > self._fast_until else min(TICK_S, self._tick_s)
        if idle:
            control.poll(tick_s * 1000, zmq.POLLIN)
        while _ready(control) & zmq.POLLIN:
            self.guard.run("control", self._receive, control.recv(zmq.NOBLOCK))

    def _send_burst(self, data: Any) -> bool:
        """Send up to ``BURST`` messages, resends first. Returns whether there is nothing to do before the next tick."""
        for _ in range(BURST):
            if resend := self._resend_buffer.next_resend:
                if not self._send_frames(data, resend.seq, resend.time, resend.frames):
                    return True
                self._resend_buffer.mark_resent()
                continue
            if self._next is _NONE and not self._prepare_next():
                return True
            if not self._send_new(data, self._next):
                return True  # the hub is away or slow; meanwhile the queue fills and drops
            self._next = _NONE
        return False

    def _prepare_next(self) -> bool:
        """Encode the next message; False if nothing is queued, or if the run is unknown: it says what to redact."""
        while self._linked is not None:
            if self._batch is None:
                self._batch = self._queue.pop_batch()
                if self._batch is None:
                    return False
                self._messages = self._encode_batch(self._batch)
            message = self.guard.run("encode", next, self._messages, _NONE)
            if message is not None and message is not _NONE:
                self._next = message
                return True
            self._queue.settle(self._batch, sent=message is _NONE)  # all its messages are sent, or encoding failed
            self._batch = None
        return False

    def _encode_batch(self, batch: QueuedBatch[T]) -> Iterator[Frames]:
        for body, arrays in self._encode(batch.kind, batch.items):
            if self._redaction is not None:
                arrays = self._redaction.arrays(arrays)
            yield Frames(wire.encode_body(body, arrays), transient=isinstance(body, wire.TRANSIENT))

    def _send_new(self, data: Any, message: Frames) -> bool:
        """Send a new message; False if ZeroMQ accepts none now. Only accepted messages use a sequence number."""
        now = time.time()
        if not self._send_frames(data, self._resend_buffer.next_seq, now, message.frames):
            return False
        self._resend_buffer.append(now, message.frames, transient=message.transient)
        self._resend_buffer.shrink(self._limit_bytes - self._queue.nbytes)
        return True

    def _send_frames(self, data: Any, seq: int, sent: float, frames: list[Frame]) -> bool:
        import zmq

        if not _ready(data) & zmq.POLLOUT:  # otherwise the message would be packed again in every iteration
            return False
        envelope = wire.Envelope(
            wire.PROTO, self.source, self.epoch, seq, sent, self._resend_buffer.oldest, self._session
        )
        try:
            data.send_multipart(wire.pack([wire.encode_envelope(envelope), *frames]), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _send_health(self, data: Any) -> bool:
        """Send a health message; False if it can't be sent now, or has to wait for resends."""
        if self._resend_buffer.next_resend is not None:
            return False
        return self._send_new(data, Frames(wire.encode_body(self.health(), {}), transient=True))

    def _register(self) -> wire.Register:
        return wire.Register(wire.PROTO, self.source, self.epoch, self.role, software(), self._session)

    def _receive(self, frame: bytes) -> None:
        try:
            message = self._hub_check.obeyed(wire.decode_to_collector(frame))
        except UnprovenError as error:
            self._refuse(error)
            return
        if isinstance(message, wire.ByeAck):
            if message.epoch == self.epoch:
                self._acknowledged.set()
            return
        if isinstance(message, wire.Refused):
            if message.epoch == self.epoch and not self._refused:
                self._refused = True
                self._closing.set()
                log.warning("rltop: %s", message.reason)
            return
        if isinstance(message, wire.Acknowledged | wire.Resend):
            if message.epoch == self.epoch and isinstance(message, wire.Resend):
                self._resend_buffer.rewind(message.seq)
            elif message.epoch == self.epoch:
                self._resend_buffer.acknowledge(message.seq)
            return
        if isinstance(message, wire.Welcome):
            self._unanswered = 0
        if isinstance(message, wire.Command):
            self._fast_until = time.monotonic() + ANSWER_S
            if self._redaction is not None:
                message = self._redaction.command(message)
        if self._on_message is not None:  # contained separately: a fault in it must not switch off "control"
            self.guard.run("on_message", self._on_message, message)

    def _refuse(self, error: UnprovenError) -> None:
        """Count a message that another process than the hub has sent; answer a command, so that its sender knows."""
        self._unproven += 1
        command = error.message
        kind = type(command).__name__.lower()
        if self._unproven & (self._unproven - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
            log.warning(
                "rltop: refused a %s that is not from the hub of this run (%d so far): %s", kind, self._unproven, error
            )
        if isinstance(command, wire.Command):
            reason = f"not from the hub that this engine is registered with: {error}"
            refused = wire.CommandUpdate(
                command.id, self.source, command.flag, "refused", reason, time=time.time(), verb=command.verb
            )
            self.reply(refused)


def _ready(socket: Any) -> int:
    """Events that a socket is ready for. Unlike ``poll``, or ``recv`` without a message, this keeps the GIL."""
    import zmq

    return int(socket.getsockopt(zmq.EVENTS))


def _send_control(control: Any, message: wire.ControlToHub) -> bool:
    """Send a control message; False if ZeroMQ can't accept it now."""
    import zmq

    try:
        control.send(wire.encode(message), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Frames:
    """A new message without its envelope. ``transient``: its type is in ``wire.TRANSIENT``."""

    frames: list[Frame]
    transient: bool


_NONE = Frames([], transient=False)
"""There is no message to send; a batch has no further one."""

_senders: weakref.WeakSet[Sender[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for sender in list(_senders):
        sender._reset()  # threads and sockets do not survive a fork; messages sent on them are lost silently
        sender.guard.reset()


def _at_exit() -> None:
    # Close those still open. A daemon thread stopped inside C++ code at interpreter exit may abort the process.
    for sender in list(_senders):
        sender.close(EXIT_TIMEOUT_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
