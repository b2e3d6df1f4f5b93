"""The way out of a host: a bounded outbox, one daemon thread, two sockets. Offering never blocks and never raises.

The host's thread leaves a reference and returns. The thread wakes every ``tick_s``, turns what is queued into messages
with the collector's own ``encode``, one at a time, and sends without waiting. Order is kept. While the hub is away or
slow the outbox fills to its bound and sheds. ``sent`` means taken by ZeroMQ. What that loses, and what a hub had taken
and not stored when it died, is sent again when a hub asks: messages are kept until they are acknowledged, as long as
the outbox does not need the room.

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
"""How often the thread looks at the queue, unless told otherwise."""

ANSWER_S = 1.0
"""For so long after a command the queue is looked at every ``TICK_S``, however long the ticks: somebody waits."""

BURST = 64
"""Messages sent in a row before commands get a hearing."""

HEALTH_PERIOD_S = 1.0
"""How often a health record leaves, and ``periodic`` is called."""

REGISTER_PERIOD_S = 3.0
"""How often ``Register`` is repeated: a new hub on the same path must learn whose connection this is."""

SEND_HWM = 64
"""Messages that may wait inside ZeroMQ. Memory stays within the outbox's bound plus as many messages."""

RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

MAX_REPLIES = 1024
"""Control messages that may wait for a hub; of more, the oldest are forgotten (state repeats what they said)."""

BYE_TIMEOUT_S = 2.0
"""How long ``close`` goes on without progress. The hub confirms the last message, since LINGER loses some on ipc."""

EXIT_TIMEOUT_S = 2.0
"""How long the end of the interpreter waits for a sender that nobody closed."""

Message = tuple[wire.DataBody, wire.Arrays]


class Encode(Protocol):
    """Turns queued items of one kind into messages; runs on the sender's thread, and may be a generator."""

    def __call__(self, kind: str, items: list[Any], /) -> Iterable[Message]:
        """The messages that carry ``items``, which are all of one kind and in the order they were offered."""


class Sender:
    """Sends one collector's records to the hub of ``rundir``, and takes commands from it.

    Args:
        rundir: where the hub listens. The hub need not be there: what cannot be sent is dropped and counted.
        source: name of this collector in every message: an engine id, or ``trainer/<rank>``.
        role: ``engine`` or ``trainer``.
        encode: see ``Encode``. A fault in it drops the items it was given, and counts them.
        on_message: called on the sender's thread for every ``wire.Command`` (and ``Welcome``) from the hub.
        periodic: called on the sender's thread once a second; may call ``offer`` and ``reply``.
        tick: called on the sender's thread at every turn, about every ``tick_s``, and once more when closing; may call
            ``offer`` and ``reply``.
        tick_s: seconds that what is offered may wait. Every turn takes the GIL from the host: the longer the cheaper.
        vital: kinds that are shed last.
        limit_bytes: bound on what the outbox refers to, until it is sent, and on what is kept to be sent again:
            together, but for what was offered since the thread last looked.
        guard: contains faults of ``encode``, ``on_message``, ``periodic`` and ``tick``.
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
        """A fresh life: in a new sender, and in a forked child, whose inherited records belong to the parent."""
        self.epoch = uuid.uuid4().hex[:16]
        self.loop_count = 0
        self._loop_seen = (0, time.monotonic())
        self._outbox = SendQueue(self._limit_bytes, self._vital)
        self._replies: deque[wire.ControlToHub] = deque(maxlen=MAX_REPLIES)
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self._closing = threading.Event()
        self._answering = 0.0  # until then somebody waits for what became of a command
        self._give_up = 0.0  # when a closing thread ends, whatever is left
        self._acknowledged = threading.Event()
        self._retained = ResendBuffer()
        self._lot: QueuedBatch | None = None
        self._messages: Iterator[Frames] = iter(())  # of the lot, made as they can be sent
        self._next: Frames = _NONE  # the message that is due, less the envelope

    # --- any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, once. Called by the first ``offer`` too, so that a collector made before a fork works."""
        with self._start_lock:
            if self._thread is None and not self._closing.is_set():
                # Not in the thread: a fork in the middle of an import would leave the child half a module for ever.
                self.guard.run("sender", importlib.import_module, "zmq")
                self._thread = threading.Thread(target=self._run, name=f"rltop-{self.source}", daemon=True)
                self._thread.start()

    def offer(self, kind: str, nbytes: int, item: Any) -> bool:
        """Queue ``item``, of about ``nbytes`` bytes, or drop it and count. Returns whether it was queued.

        Never blocks on I/O, never raises.
        """
        if self._thread is None:
            self.start()
        return self._outbox.offer(kind, nbytes, item)

    def has_room(self, kind: str, nbytes: int) -> bool:
        """Whether an offer of that size would be queued now: to ask before a large copy is made."""
        return self._outbox.has_room(kind, nbytes)

    def lost(self, kind: str, count: int) -> None:
        """Count records that were lost before they could be offered."""
        self._outbox.lost(kind, count)

    def reply(self, message: wire.ControlToHub) -> None:
        """Queue a message for the control socket."""
        self._replies.append(message)

    def health(self) -> wire.Health:
        """What became of every record so far, and how the host's loop is."""
        age = time.monotonic() - self._loop_seen[1]
        box, faults = self._outbox, dict(self.guard.faults)
        return wire.Health(box.counts(), box.nbytes, box.limit_bytes, self.loop_count, age, faults)

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued, say goodbye, and end the thread. True if the hub confirmed the last message.

        Bounded by ``timeout`` seconds, and by ``BYE_TIMEOUT_S`` without progress; what could not be sent by then is
        counted as dropped. Idempotent.
        """
        with self._start_lock:  # no thread starts behind our back
            if not self._closing.is_set():
                self._give_up = time.monotonic() + timeout
                self._closing.set()
        if self._thread is None:
            self._outbox.shut()
        else:
            self._thread.join(timeout)
        return self._acknowledged.is_set()

    # --- the sender's own thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        self.guard.run("sender", self._serve)
        self._outbox.shut()
        while lot := self._lot or self._outbox.take():  # nobody will send what is left
            self._outbox.settle(lot, sent=False)
            self._lot = None
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
                socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a hub that is not there
            data.sndhwm = SEND_HWM
            control.setsockopt(zmq.MAXMSGSIZE, wire.MAX_CONTROL_BYTES)
            control.setsockopt(zmq.ROUTING_ID, f"{self.source}#{self.epoch}".encode())
            data.connect(self.rundir.ingest)
            control.connect(self.rundir.control)
            self._work(data, control)
            self._say_goodbye(data, control)
        finally:
            data.close()
            control.close()
            context.term()

    def _work(self, data: Any, control: Any) -> None:
        """Turn until told to close."""
        next_health = next_register = 0.0
        closing = owing = False
        while not closing:
            closing = self._closing.is_set()  # then this is the last turn: what tick offers in it still counts
            now = time.monotonic()
            if self.loop_count != self._loop_seen[0]:
                self._loop_seen = (self.loop_count, now)
            if now >= next_register and _say(control, self._register()):
                next_register = now + REGISTER_PERIOD_S
            if now >= next_health:
                next_health = now + HEALTH_PERIOD_S
                if self._periodic is not None:
                    self.guard.run("periodic", self._periodic)
                owing = True
            if owing:  # a hub that comes back hears first of what was dropped meanwhile
                owing = not self._post_health(data)
            if self._tick is not None:
                self.guard.run("tick", self._tick)
            self._turn(data, control)

    def _say_goodbye(self, data: Any, control: Any) -> None:
        """Send what is left, then ``Bye``; end when the hub confirms, or when nothing moves any more."""
        self._outbox.shut()
        kept, said, place, progress = self._retained, False, (0, 0), time.monotonic()
        while not self._acknowledged.is_set():
            if not said and kept.due is None and self._lot is None and not self._load_next():
                self._post_health(data)  # the last word on what was dropped
                self.reply(wire.Bye(self.source, self.epoch, kept.next_seq, kept.oldest))
                said = True
            self._turn(data, control)
            now = time.monotonic()
            here = kept.next_seq, kept.due.seq if kept.due else kept.next_seq
            if here != place:
                place, progress = here, now
            if now >= min(progress + BYE_TIMEOUT_S, self._give_up):
                return

    def _turn(self, data: Any, control: Any) -> None:
        import zmq

        self._retained.fit(self._limit_bytes - self._outbox.nbytes)
        idle = self._pump(data)
        while self._replies and _say(control, self._replies[0]):
            self._replies.popleft()
        tick_s = self._tick_s if time.monotonic() > self._answering else min(TICK_S, self._tick_s)
        if idle:
            control.poll(tick_s * 1000, zmq.POLLIN)
        while _ready(control) & zmq.POLLIN:
            self.guard.run("control", self._hear, control.recv(zmq.NOBLOCK))

    def _pump(self, data: Any) -> bool:
        """Send what can be sent, up to a burst. Returns whether there is nothing to do before the next tick."""
        for _ in range(BURST):
            if due := self._retained.due:
                if not self._hand_over(data, due.seq, due.time, due.frames):
                    return True
                self._retained.sent_again()
                continue
            if self._next is _NONE and not self._load_next():
                return True
            if not self._post(data, self._next):
                return True  # the hub is away or behind; the outbox behind this message fills and sheds
            self._next = _NONE
        return False

    def _load_next(self) -> bool:
        """Make the frames of the next message that is due; False if nothing is queued."""
        while True:
            if self._lot is None:
                self._lot = self._outbox.take()
                if self._lot is None:
                    return False
                self._messages = self._encoded(self._lot)
            made = self.guard.run("encode", next, self._messages, _NONE)
            if made is not None and made is not _NONE:
                self._next = made
                return True
            self._outbox.settle(self._lot, sent=made is _NONE)  # all its messages are out, or one can't be made
            self._lot = None

    def _encoded(self, lot: QueuedBatch) -> Iterator[Frames]:
        for body, arrays in self._encode(lot.kind, lot.items):
            yield Frames(wire.encode_body(body, arrays), passing=isinstance(body, wire.PASSING))

    def _post(self, data: Any, message: Frames) -> bool:
        """Hand one new message to ZeroMQ; False if it takes none now. Only what it took uses up a sequence number."""
        now = time.time()
        if not self._hand_over(data, self._retained.next_seq, now, message.frames):
            return False
        self._retained.keep(now, message.frames, passing=message.passing)
        self._retained.fit(self._limit_bytes - self._outbox.nbytes)
        return True

    def _hand_over(self, data: Any, seq: int, sent: float, frames: list[Frame]) -> bool:
        import zmq

        if not _ready(data) & zmq.POLLOUT:  # else the message would be packed again at every turn
            return False
        envelope = wire.Envelope(wire.PROTO, self.source, self.epoch, seq, sent, self._retained.oldest)
        try:
            data.send_multipart(wire.pack([wire.encode_envelope(envelope), *frames]), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _post_health(self, data: Any) -> bool:
        """Send how it is now; False if that can't be sent now, or not before what is sent again."""
        return self._retained.due is None and self._post(
            data, Frames(wire.encode_body(self.health(), {}), passing=True)
        )

    def _register(self) -> wire.Register:
        return wire.Register(wire.PROTO, self.source, self.epoch, self.role)

    def _hear(self, frame: bytes) -> None:
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
            self._answering = time.monotonic() + ANSWER_S
        if self._on_message is not None:  # under a place of its own: the hub's confirmation is heard regardless
            self.guard.run("on_message", self._on_message, message)


def _ready(socket: Any) -> int:
    """Return what a socket is ready for. Unlike a poll, and a receive that finds nothing, it keeps the GIL."""
    import zmq

    return int(socket.getsockopt(zmq.EVENTS))


def _say(control: Any, message: wire.ControlToHub) -> bool:
    """Send a control message; False if there is no hub to take it now."""
    import zmq

    try:
        control.send(wire.encode(message), zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Frames:
    """A new message less its envelope; ``passing``: of ``wire.PASSING``."""

    frames: list[Frame]
    passing: bool


_NONE = Frames([], passing=False)
"""No message is due, and a lot has no further one."""

_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


def _after_fork() -> None:
    for sender in list(_senders):
        sender._reset()  # a thread and sockets do not survive a fork; messages sent on them vanish silently
        sender.guard.reset()


def _at_exit() -> None:
    # Nobody closed them. A daemon thread that outlives the interpreter may be cut off inside somebody's C++ and abort.
    for sender in list(_senders):
        sender.close(EXIT_TIMEOUT_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
