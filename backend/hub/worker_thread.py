"""The hub's second thread: feeds the pure ``HubState`` from two queues and performs the effects it returns.

Control messages and questions have an urgent queue of their own and go first. A step whose rollouts arrived late is
measured in parts, with that queue in between, so a large step delays a command by about one data message. The data
queue is bounded by bytes: when it is full, the I/O thread stops reading, ZeroMQ's own bound fills, and the collectors
drop and count. The urgent queue is bounded by number: beyond that, calls are dropped and counted, and their senders
repeat those that matter.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable

from rltop.backend import api
from rltop.backend.commands.audit import AuditFile
from rltop.backend.hub.handover import Handover
from rltop.backend.hub.outputs import AnswerFromStore, Audit, Effect, Renew, Reply, SendControl, Stop
from rltop.backend.hub.peers import Peer
from rltop.backend.hub.state import HubState
from rltop.backend.store.aggregates import FrameAggregates
from rltop.backend.store.lookup import StoreLookup
from rltop.backend.store.store import Store
from rltop.collectors.contract import wire
from rltop.collectors.transport.error_boundary import ErrorBoundary

DATA_QUEUE_BYTES = 256 << 20
_MESSAGE_BYTES = 500  # rough cost of a message's objects, without its frames

MAX_URGENT = 10_000

FRAME_PERIOD_S = 0.2
"""Frames go out at 5 Hz when something changed."""

HEARTBEAT_S = 1.0
"""Period of frames while nothing changes, seconds."""

VIEW, CONTROL, QUERY, STOP, RENEW = b"view", b"control", b"query", b"stop", b"renew"
"""First frame of a message to the I/O thread: the socket it is for."""

Seal = Callable[[str, wire.Body], bytes]

Call = Callable[[float], list[Effect] | None]


class WorkerThread(threading.Thread):
    """Runs ``HubState``.

    Args:
        state: used by this thread alone once started.
        clock: wall clock that never steps back, seconds.
        outbox: takes frames and messages, as ``[socket, *frames]``.
        audit: the audit log; its lines are written before the effects that they describe.
        store: started; stores frames before they are sent. None to store nothing.
        take_events: called at every tick for events of the process: severity, kind and text.
        seal: encodes a message to the collector with an identity.

    Attributes:
        failed: once the thread has ended: whether it ended by an exception.
        carried: messages for the hub of another run that begins (``outputs.Renew``).
    """

    def __init__(
        self,
        state: HubState,
        clock: Callable[[], float],
        outbox: Handover,
        audit: AuditFile,
        store: Store | None = None,
        take_events: Callable[[], list[tuple[str, str, str]]] = list,
        seal: Seal = lambda _, message: wire.encode(message),
    ) -> None:
        super().__init__(name="rltop-core", daemon=True)
        self._state = state
        self._clock = clock
        self._outbox = outbox
        self._audit = audit
        self._store = store
        self._lookup = None if store is None else StoreLookup(store.path, self._put_answer)
        self._take_events = take_events
        self._seal = seal
        self._urgent: deque[Call] = deque()
        self._data: deque[tuple[list[bytes], Peer | None]] = deque()
        self._data_bytes = 0
        self._wake = threading.Condition()
        self._ended = False
        self._frame_wanted = False
        self._shed = 0
        self._guard = ErrorBoundary(max_faults=None)
        self._reported: dict[str, int] = {}  # faults by place
        self.carried: list[list[bytes]] = []
        self.failed = True  # until it has ended in good order

    # --- from the I/O thread ------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether the data queue accepts more."""
        return self._data_bytes < DATA_QUEUE_BYTES

    def put_data(self, frames: list[bytes], peer: Peer | None = None) -> None:
        """Queue a data message."""
        with self._wake:
            self._data.append((frames, peer))
            self._data_bytes += _cost(frames)
            self._wake.notify()

    def put(self, call: Call) -> None:
        """Queue an urgent call, made on the worker thread with the time."""
        with self._wake:
            if len(self._urgent) >= MAX_URGENT:
                self._shed += 1
                return
            self._urgent.append(call)
            self._wake.notify()

    def put_control(self, sender: str, frame: bytes, peer: Peer | None = None) -> None:
        """Queue a collector's control message."""
        self.put(lambda now: self._state.control(sender, frame, now, peer))

    def put_question(self, client: bytes, frame: bytes, peer: Peer | None = None, proof: bytes = b"") -> None:
        """Queue a viewer's question."""
        self.put(lambda now: self._state.ask(client, frame, now, peer, proof))

    def _put_answer(self, viewer: bytes, answer: api.Answer) -> None:
        """Queue an answer from the store."""
        self.put(lambda _: [Reply(viewer, answer)])

    def put_undelivered(self, receiver: str, frame: bytes) -> None:
        """Queue that a control message could not be delivered."""
        self.put(lambda now: self._state.undelivered(receiver, frame, now))

    def put_counter(self, name: str) -> None:
        """Raise a counter that viewers see."""
        self.put(lambda _: self._state.log.count(name))

    def put_viewer(self) -> None:
        """A viewer subscribed: send a frame at once, so that it knows the current frame number."""
        self._frame_wanted = True
        self.put(lambda _: None)

    def end(self) -> None:
        """Answer pending questions, send a last frame, and end; waiting data is dropped."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    # --- worker thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """See ``threading.Thread``."""
        self._outbox.begin()
        try:
            self._turn()
        finally:
            if self._lookup is not None:
                self._lookup.end()
            if self._store is not None:
                self._store.end()
            self._outbox.put(STOP)
            self._outbox.end()

    def _turn(self) -> None:
        for _ in range(len(self._urgent)):  # put before the start, such as the audit log: before the first frame
            effects = self._guard.run("urgent", self._urgent.popleft(), self._clock())
            self._perform(effects or [])
        next_tick = next_beat = 0.0
        while True:
            now = self._clock()
            if now >= next_tick or self._frame_wanted:
                for event in self._take_events():
                    self._state.note(now, *event)
                self._tick()
                self._guard.run("diagnosis", self._state.diagnose, now)
                heartbeat = now >= next_beat or self._frame_wanted
                if self._guard.run("publish", functools.partial(self._publish, now, heartbeat=heartbeat)):
                    next_beat, self._frame_wanted = now + HEARTBEAT_S, False
                next_tick = (
                    self._clock() + FRAME_PERIOD_S
                )  # counted from its end: a long one must leave time for messages
            call, message = self._next(next_tick - self._clock())
            # An exception in one message, or in the tick, must not end the live view.
            if call is not None:
                effects = self._guard.run("urgent", call, self._clock())
                self._perform(effects or [])
            elif self._state.unfinished:
                self._tick()
            elif message is not None:
                frames, peer = message
                self._perform(self._guard.run("data", self._state.data, frames, self._clock(), peer) or [])
            elif self._ended:
                while self._tick():
                    pass
                self._guard.run("publish", functools.partial(self._publish, self._clock(), heartbeat=True))
                self.failed = False
                return

    def _tick(self) -> bool:
        """Tick the state; True if it left rows unmeasured."""
        self._perform(self._guard.run("tick", self._state.tick, self._clock()) or [])
        return self._state.unfinished

    def _next(self, timeout: float) -> tuple[Call | None, tuple[list[bytes], Peer | None] | None]:
        """Return the next call or data message; no data while a step is half measured, to keep the order."""
        with self._wake:
            if not (self._urgent or self._data or self._ended or self._state.unfinished):
                self._wake.wait(max(timeout, 0.0))
            if self._urgent:
                return self._urgent.popleft(), None
            if self._data and not self._state.unfinished and not self._ended:
                message = self._data.popleft()
                self._data_bytes -= _cost(message[0])
                return None, message
            return None, None

    def _publish(self, now: float, *, heartbeat: bool) -> bool:
        self._report_faults(now)
        self._state.log.count("shed", self._shed - self._state.snapshot.counters.get("shed", 0))
        frames = self._state.frames
        if self._store is not None:
            frames.set_unstored(self._store.unstored)
        if self._store is None or self._store.is_settled:
            self._perform(self._state.stored())
        frame = self._state.next_frame(now, heartbeat=heartbeat)
        if frame is None:
            return False
        aggregates = frames.aggregates(frame)
        if self._store is not None:
            self._save(self._store, frame, aggregates)
        self._outbox.put(VIEW, api.encode(frame))
        return True

    def _report_faults(self, now: float) -> None:
        """Count and report the exceptions that were contained since the last call."""
        for place, count in self._guard.faults.items():
            if new := count - self._reported.get(place, 0):
                self._reported[place] = count
                self._state.log.count("faults", new)
                self._state.log.fault(place, count, self._guard.latest[place], now)

    def _save(self, store: Store, frame: api.Frame, aggregates: FrameAggregates) -> None:
        """Hand a frame to the store; wait for its commit if it has news, so that a viewer's news survive a kill."""
        if not store.put(frame, aggregates):
            self._state.aggregates_not_stored()
        if api.has_records(frame) or self._state.snapshot.counters.get("unstored"):
            self._state.frames.correct_unstored(frame, store.settle())

    def _perform(self, effects: list[Effect]) -> None:
        lines = [effect.line for effect in effects if isinstance(effect, Audit)]
        if lines or self._audit.waiting:
            error = self._audit.write(lines)
            self._state.log.audit_written(error, len(self._audit.waiting), self._clock())
        for effect in effects:
            self._guard.run("effect", self._perform_one, effect)

    def _perform_one(self, effect: Effect) -> None:
        if isinstance(effect, SendControl):
            self._outbox.put(CONTROL, effect.to.encode(), self._seal(effect.to, effect.message))
        elif isinstance(effect, Reply):
            self._outbox.put(QUERY, effect.to, api.encode(effect.answer))
        elif isinstance(effect, AnswerFromStore):
            self._answer_from_store(effect)
        elif isinstance(effect, Stop):
            self._outbox.put(STOP)
        elif isinstance(effect, Renew):
            self.carried = effect.carried
            self._outbox.put(RENEW, effect.reason.encode())

    def _answer_from_store(self, effect: AnswerFromStore) -> None:
        if self._lookup is None:
            self._perform([Reply(effect.to, effect.answer)])
        else:
            self._lookup.put(effect.to, effect.question, effect.answer)


def _cost(frames: list[bytes]) -> int:
    return _MESSAGE_BYTES + sum(len(frame) for frame in frames)
