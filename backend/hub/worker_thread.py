"""The hub's second thread: feeds the pure core from two lanes and hands out what it says.

Control and questions have a lane of their own and go first. A step whose rollouts came late is measured in parts, with
that lane in between. So a big step delays a command by about one data message. The data lane is bounded by bytes: when
it is full the I/O thread stops reading, ZeroMQ's own bound fills, and the collectors drop and count. The urgent lane is
bounded by number: what floods it is dropped and counted, and its senders say again what matters.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from rltop.backend import api
from rltop.backend.commands.audit import AuditFile
from rltop.backend.hub.handover import Handover
from rltop.backend.hub.state import AnswerFromStore, Audit, Effect, HubState, Reply, SendControl, Stop
from rltop.backend.store.lookup import StoreLookup as Recalls
from rltop.backend.store.store import Store
from rltop.collectors.contract import wire
from rltop.collectors.transport.error_boundary import ErrorBoundary

DATA_LANE_BYTES = 256 << 20
_MESSAGE_BYTES = 500  # rough cost of a message's objects beside its frames

MAX_URGENT = 10_000

FRAME_PERIOD_S = 0.2
"""Frames go out at 5 Hz when something changed."""

HEARTBEAT_S = 1.0
"""And once a second when nothing did."""

VIEW, CONTROL, QUERY, STOP = b"view", b"control", b"query", b"stop"
"""First frame of what goes to the I/O thread: which socket it is for."""

Call = Callable[[float], list[Effect] | None]


class WorkerThread(threading.Thread):
    """Runs ``HubState``.

    Args:
        state: the core; touched by this thread alone once started.
        clock: wall clock that never steps back, seconds.
        outbox: where frames and messages go, as ``[socket, *frames]``.
        audit: where lines of the audit log go, before anything that they are about.
        store: started; keeps the frames before they are sent. None to keep nothing.
        news: asked at every tick for what the shell has to tell, as severity, kind and text.

    Attributes:
        failed: once the thread is over: it died of a fault.
    """

    def __init__(
        self,
        state: HubState,
        clock: Callable[[], float],
        outbox: Handover,
        audit: AuditFile,
        store: Store | None = None,
        news: Callable[[], list[tuple[str, str, str]]] = list,
    ) -> None:
        super().__init__(name="rltop-core", daemon=True)
        self._state = state
        self._clock = clock
        self._outbox = outbox
        self._audit = audit
        self._store = store
        self._recalls = None if store is None else Recalls(store.path, self._recalled)
        self._news = news
        self._urgent: deque[Call] = deque()
        self._data: deque[list[bytes]] = deque()
        self._data_bytes = 0
        self._wake = threading.Condition()
        self._ended = False
        self._frame_wanted = False
        self._shed = 0
        self._guard = ErrorBoundary(max_faults=None)
        self.failed = True  # until it has ended as told

    # --- from the I/O thread ------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether the data lane takes more."""
        return self._data_bytes < DATA_LANE_BYTES

    def put_data(self, frames: list[bytes]) -> None:
        """Queue a data message."""
        with self._wake:
            self._data.append(frames)
            self._data_bytes += _cost(frames)
            self._wake.notify()

    def put(self, call: Call) -> None:
        """Queue something urgent: called with the time, on the core's thread."""
        with self._wake:
            if len(self._urgent) >= MAX_URGENT:
                self._shed += 1
                return
            self._urgent.append(call)
            self._wake.notify()

    def put_control(self, sender: str, frame: bytes) -> None:
        """Queue a collector's control message."""
        self.put(lambda now: self._state.control(sender, frame, now))

    def put_question(self, client: bytes, frame: bytes) -> None:
        """Queue a viewer's question."""
        self.put(lambda now: self._state.ask(client, frame, now))

    def _recalled(self, viewer: bytes, answer: api.Answer) -> None:
        """Queue an answer that the store gave."""
        self.put(lambda _: [Reply(viewer, answer)])

    def put_undelivered(self, receiver: str, frame: bytes) -> None:
        """Queue the news that a control message has no receiver."""
        self.put(lambda now: self._state.undelivered(receiver, frame, now))

    def put_counter(self, name: str) -> None:
        """Raise a counter that viewers see."""
        self.put(lambda _: self._state.count(name))

    def put_viewer(self) -> None:
        """A viewer subscribed: show it a frame at once, so that it knows where the stream stands."""
        self._frame_wanted = True
        self.put(lambda _: None)

    def end(self) -> None:
        """Answer what was asked, send a last frame, and end; data that still waits is let go."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    # --- the core's thread --------------------------------------------------------------------------------------

    def run(self) -> None:
        """See ``threading.Thread``."""
        self._outbox.begin()
        try:
            self._turn()
        finally:
            if self._recalls is not None:
                self._recalls.end()
            if self._store is not None:
                self._store.end()
            self._outbox.put(STOP)
            self._outbox.end()

    def _turn(self) -> None:
        next_tick = next_beat = 0.0
        while True:
            now = self._clock()
            if now >= next_tick or self._frame_wanted:
                for news in self._news():
                    self._state.note(now, *news)
                self._tick()
                self._guard.run("diagnosis", self._state.watch, now)
                if self._publish(now, heartbeat=now >= next_beat or self._frame_wanted):
                    next_beat, self._frame_wanted = now + HEARTBEAT_S, False
                next_tick = self._clock() + FRAME_PERIOD_S  # from its end: a long one must leave time for messages
            call, frames = self._next(next_tick - self._clock())
            # A fault of ours in one message, or in the tick, must not take the view of the run away.
            if call is not None:
                effects = self._guard.run("urgent", call, self._clock())
                self._perform(effects or [])
            elif self._state.unfinished:
                self._tick()
            elif frames is not None:
                self._perform(self._guard.run("data", self._state.data, frames, self._clock()) or [])
            elif self._ended:
                while self._tick():
                    pass
                self._publish(self._clock(), heartbeat=True)
                self.failed = False
                return

    def _tick(self) -> bool:
        """Let the state tick; True if it left something unfinished."""
        self._perform(self._guard.run("tick", self._state.tick, self._clock()) or [])
        return self._state.unfinished

    def _next(self, timeout: float) -> tuple[Call | None, list[bytes] | None]:
        """Return the next call or data message; no data while a step is half measured, since none may overtake it."""
        with self._wake:
            if not (self._urgent or self._data or self._ended or self._state.unfinished):
                self._wake.wait(max(timeout, 0.0))
            if self._urgent:
                return self._urgent.popleft(), None
            if self._data and not self._state.unfinished and not self._ended:
                frames = self._data.popleft()
                self._data_bytes -= _cost(frames)
                return None, frames
            return None, None

    def _publish(self, now: float, *, heartbeat: bool) -> bool:
        for name, total in (("faults", sum(self._guard.faults.values())), ("shed", self._shed)):
            self._state.count(name, total - self._state.snapshot.counters.get(name, 0))
        if self._store is not None:
            self._state.waiting(self._store.unstored)
        if self._store is None or self._store.is_settled:
            self._perform(self._state.stored())
        frame = self._state.frame(now, heartbeat=heartbeat)
        if frame is None:
            return False
        beside = self._state.beside(frame.steps)
        if self._store is not None:
            if not self._store.put(frame, beside):
                self._state.beside_not_stored()
            behind = self._state.snapshot.counters.get("unstored")
            if api.has_records(frame) or behind:  # records that a viewer has seen survive a kill
                self._state.not_stored(frame, self._store.settle())
        self._outbox.put(VIEW, api.encode(frame))
        return True

    def _perform(self, effects: list[Effect]) -> None:
        lines = [effect.line for effect in effects if isinstance(effect, Audit)]
        if lines or self._audit.waiting:
            trouble = self._audit.write(lines)
            self._state.audit_written(trouble, len(self._audit.waiting), self._clock())
        for effect in effects:
            if isinstance(effect, SendControl):
                self._outbox.put(CONTROL, effect.to.encode(), wire.encode(effect.message))
            elif isinstance(effect, Reply):
                self._outbox.put(QUERY, effect.to, api.encode(effect.answer))
            elif isinstance(effect, AnswerFromStore):
                self._recall(effect)
            elif isinstance(effect, Stop):
                self._outbox.put(STOP)

    def _recall(self, effect: AnswerFromStore) -> None:
        if self._recalls is None:
            self._perform([Reply(effect.to, effect.answer)])
        else:
            self._recalls.put(effect.to, effect.question, effect.answer)


def _cost(frames: list[bytes]) -> int:
    return _MESSAGE_BYTES + sum(len(frame) for frame in frames)
