"""The senders of messages: epochs, message order, holes, health and disconnects. Pure.

Messages of a sender that can resend are taken in order, each exactly once. Missing ones are requested; early ones are
held here within a bound, or discarded and resent; duplicates are discarded. Messages that the sender no longer has are
lost, and counted. ``docs/protocols/resend.md`` has the states and transitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.backend.fleet.engines import SILENT_S
from rltop.collectors.contract import wire

BYE_PATIENCE_S = 1.0
"""Longest wait, after the last message, for messages sent before a ``bye``; then they are counted as lost. The sender
waits ``sender.BYE_TIMEOUT_S``, which is longer."""

BYE_REQUEST_S = 0.3
"""After this long without a message they are requested: a ``bye`` uses another socket, and may overtake data."""

REQUEST_AGAIN_S = 1.0
REQUEST_PAUSE_S = 0.2
"""Shortest time between two resend requests to a sender, for the same message and for another one."""

EARLY_BYTES = 64 << 20
"""Bound on the messages of one sender that are held until earlier ones arrive."""

HOLE_TIMEOUT_S = 10.0
"""How long a missing message is waited for while others arrive; then it is lost, and later ones are taken."""

RECONNECT_S = 8.0
"""How long a new hub waits for senders that the previous one heard: longer than a sender takes to reconnect."""


@dataclass(frozen=True, slots=True)
class ReceivedMark:
    """How many of the messages that a sender sent in one process lifetime (``epoch``) the store accounts for.

    Attributes:
        acknowledged: no message up to this number is needed any more.
        settled: no message up to this number is missing from any step; rollouts after ``acknowledged`` may be trained
            on again.
    """

    epoch: str
    acknowledged: int
    settled: int


def is_trainer(name: str) -> bool:
    """Whether a source of this name is a trainer rank rather than an engine."""
    return name.startswith("trainer/")


@dataclass(slots=True)
class Source:
    """One sender in its current process lifetime (epoch).

    Attributes:
        last_seen: time of the last sign of life.
        heard: time of the last data message.
        next_seq: number of the next message to take.
        end_seq: one more than the highest number seen.
        resends: whether it can resend.
        requested: the number that was last requested, -1 if none. requested_at: when.
        hole_since: since when ``next_seq`` is missing, if it is.
        early: messages that are held until earlier ones arrive, with their sizes, by number.
    """

    name: str
    epoch: str
    last_seen: float
    next_seq: int
    health: str = "live"
    lost: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    bye: wire.Bye | None = None
    bye_deadline: float = 0.0
    end_seq: int = 0
    heard: float = 0.0
    resends: bool = False
    requested: int = -1
    requested_at: float = 0.0
    hole_since: float | None = None
    early: dict[int, tuple[Any, int]] = field(default_factory=dict)
    early_bytes: int = 0

    @property
    def is_trainer(self) -> bool:
        """A trainer rank rather than an engine."""
        return is_trainer(self.name)

    def resend_due(self, now: float) -> int | None:
        """The number from which to request a resend, if a request is due; it then counts as requested."""
        is_leaving = self.bye is not None and now >= self.bye_deadline - BYE_PATIENCE_S + BYE_REQUEST_S
        is_missing = self.hole_since is not None or (is_leaving and self.next_seq < self.end_seq)
        pause = REQUEST_AGAIN_S if self.requested == self.next_seq else REQUEST_PAUSE_S
        if not (self.resends and is_missing) or (self.requested >= 0 and now - self.requested_at < pause):
            return None
        self.requested, self.requested_at = self.next_seq, now
        return self.next_seq

    def order(self, envelope: wire.Envelope, message: Any, nbytes: int, now: float) -> tuple[list[Any], int]:
        """Add a message; return those to take now, in order, and how many before them are lost."""
        seq, before = envelope.seq, self.next_seq
        self.end_seq = max(self.end_seq, seq + 1)
        self.resends = envelope.oldest is not None
        if envelope.oldest is None:
            self.next_seq = max(before, seq + 1)
            return [message], max(seq - before, 0)
        if seq < before:
            return [], 0
        first = max(before, min(envelope.oldest, seq))
        if self.hole_since is not None and now - self.hole_since >= HOLE_TIMEOUT_S:
            first = min([seq, *self.early])
        if seq not in self.early and (seq == first or self.early_bytes + nbytes <= EARLY_BYTES):
            self.early[seq] = message, nbytes
            self.early_bytes += nbytes
        ready = [self._pop(number) for number in sorted(number for number in self.early if number < first)]
        lost = first - before - len(ready)
        while first in self.early:
            ready.append(self._pop(first))
            first += 1
        self.next_seq = first
        if first == self.end_seq:
            self.hole_since = None
        elif self.hole_since is None or first > before:
            self.hole_since = now
        return ready, lost

    def _pop(self, number: int) -> Any:
        message, nbytes = self.early.pop(number)
        self.early_bytes -= nbytes
        return message


@dataclass(frozen=True, slots=True)
class Arrival:
    """The effect of one message on its source.

    Attributes:
        change: ``connected``, ``restarted`` (a new epoch without a disconnect), ``returned`` (a new epoch after one),
            ``is back`` (after silence), or empty.
        lost: messages that were lost before it.
        is_midway: the fate of earlier messages of the epoch is unknown.
        ready: the messages to take now.
        is_duplicate: the message was taken before.
    """

    source: Source
    change: str = ""
    lost: int = 0
    is_midway: bool = False
    ready: list[Any] = field(default_factory=list)
    is_duplicate: bool = False

    @property
    def is_new_life(self) -> bool:
        """Whether it is the first message of its epoch here."""
        return self.change in {"connected", "restarted", "returned"}


class Sources:
    """All senders, by name.

    Args:
        marks: of the senders that the previous hub heard.
        now: when this hub began.
    """

    def __init__(self, marks: Mapping[str, ReceivedMark] | None = None, now: float = 0.0) -> None:
        self._known: dict[str, Source] = {}
        self._marks = dict(marks or {})
        self._took_over = False  # from a hub that stored no marks: the senders still to come are unknown
        self._incomplete: dict[str, Source] = {}  # earlier messages of these are missing
        self._began = now

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._known.values()))

    def get(self, name: str) -> Source | None:
        """Return the source of that name."""
        return self._known.get(name)

    def receive(self, envelope: wire.Envelope, now: float, message: Any = None, nbytes: int = 0) -> Arrival:
        """Register a data message; ``message``, of ``nbytes``, comes back in ``Arrival.ready`` when its turn is.

        For a source that can't resend, messages before the first one that this hub receives of its epoch are not
        counted as lost: another hub had them.
        """
        source = self._known.get(envelope.source)
        if source is None or source.epoch != envelope.epoch:
            change = "connected" if source is None else "returned" if source.health == "gone" else "restarted"
            fresh, lost, is_midway = self._begin(envelope.source, envelope.epoch, envelope.seq, envelope.oldest, now)
            is_duplicate = envelope.seq < fresh.next_seq
            ready, _ = fresh.order(envelope, message, nbytes, now)
            self._update_incomplete(fresh)
            return Arrival(fresh, change, lost, is_midway, ready, is_duplicate)
        before = source.next_seq
        ready, lost = source.order(envelope, message, nbytes, now)
        self._update_incomplete(source)
        source.lost += lost
        change = "is back" if source.health == "silent" else ""
        if source.health != "gone":
            source.health = "live"
        source.last_seen, source.heard, source.bye_deadline = now, now, now + BYE_PATIENCE_S
        return Arrival(source, change, lost, ready=ready, is_duplicate=envelope.seq < before)

    def _begin(self, name: str, epoch: str, seq: int, oldest: int | None, now: float) -> tuple[Source, int, bool]:
        """Begin a new epoch. Return the source, the messages lost, and whether the fate of earlier ones is unknown."""
        mark = self._marks.pop(name, None)
        first = seq if oldest is None else max(min(oldest, seq), 0)
        lost, is_midway = 0, first > 0
        self._took_over |= oldest is not None and mark is None and seq > 0
        if oldest is not None and mark is not None and mark.epoch == epoch:
            lost, is_midway = max(first - mark.settled - 1, 0), False
            first = max(first, mark.acknowledged + 1)
        source = self._known[name] = Source(name, epoch, now, first, lost=lost, heard=now, resends=oldest is not None)
        return source, lost, is_midway

    def behind(self, now: float) -> bool:
        """Whether earlier messages are still to come, from a sender that resends or has not reconnected yet."""
        if (self._marks or self._took_over) and now - self._began < RECONNECT_S:
            return True
        return any(now - source.last_seen < SILENT_S for source in self._incomplete.values())

    def heard(self, now: float) -> float:
        """Time up to which every live engine has been heard."""
        return min((s.heard for s in self._known.values() if s.health == "live" and not s.is_trainer), default=now)

    def _update_incomplete(self, source: Source) -> None:
        if source.resends and source.next_seq < source.end_seq:
            self._incomplete[source.name] = source
        else:
            self._incomplete.pop(source.name, None)

    def registered(self, register: wire.Register, now: float) -> None:
        """A source registered on the control socket: it is alive, though its data may still be queued."""
        source = self._known.get(register.source)
        if source is not None and source.epoch == register.epoch:
            source.last_seen = now

    def bye_received(self, bye: wire.Bye, now: float) -> int:
        """A source disconnects; see ``take_disconnected``. Returns how many of its messages a new hub has missed."""
        lost, source = 0, self._known.get(bye.source)
        if source is None or source.epoch != bye.epoch:
            source, lost, _ = self._begin(bye.source, bye.epoch, bye.sent, bye.oldest, now)
        source.end_seq = max(source.end_seq, bye.sent)
        self._update_incomplete(source)
        if source.bye is None:
            source.bye, source.bye_deadline = bye, now + BYE_PATIENCE_S
        return lost

    def take_disconnected(self, now: float) -> list[tuple[Source, int]]:
        """Return the sources that have disconnected, with the number of messages that are missing, and mark them gone.

        A source has disconnected once all messages sent before its ``bye`` have arrived or are overdue. It is returned
        once per ``bye``, also a repeated one.
        """
        left = []
        for source in self._known.values():
            if source.bye is None:
                continue
            missing = max(source.bye.sent - source.next_seq, 0)
            if not missing or now >= source.bye_deadline:
                source.next_seq = max(source.next_seq, source.bye.sent)
                source.lost += missing
                source.health, source.bye = "gone", None
                self._incomplete.pop(source.name, None)
                left.append((source, missing))
        return left

    def take_silent(self, now: float) -> list[Source]:
        """Return the live sources without a sign of life for ``SILENT_S``, and mark them silent."""
        quiet = [s for s in self._known.values() if s.health == "live" and now - s.last_seen > SILENT_S]
        for source in quiet:
            source.health = "silent"
        return quiet

    def trainer_health(self) -> str:
        """Health of the trainer: live if one rank is, else silent, else gone; absent without ranks."""
        found = {source.health for source in self._known.values() if source.is_trainer}
        return next((health for health in ("live", "silent", "gone") if health in found), "absent")
