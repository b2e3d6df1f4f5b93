"""The senders of messages: epochs, message order, losses, health and disconnects. Pure.

Messages of a sender that can resend are taken in order, each exactly once. Missing ones are requested; early ones are
held here within a bound, or discarded and resent; duplicates are discarded. Messages that the sender no longer has are
lost, and counted. ``docs/protocols/resend.md`` has the states and transitions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.backend.fleet.engines import SILENT_S
from rltop.backend.ingest.names import Newcomer
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

MISSING_TIMEOUT_S = 10.0
"""A message that is still missing after this time, while others arrive, is lost; later ones are then taken."""

RECONNECT_S = 8.0
"""How long a new hub waits for senders of the previous one: longer than a sender takes to reconnect."""


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


MAX_REMEMBERED = 4096
"""Processes whose software, refusal or lost name is remembered; the oldest are forgotten."""


def is_trainer(name: str) -> bool:
    """Whether a source of this name is a trainer rank rather than an engine."""
    return name.startswith("trainer/")


@dataclass(slots=True)
class Source:
    """One sender in its current process lifetime (epoch).

    Attributes:
        name: under which viewers see it. wire_name: in its messages; another one if several processes share that.
        since, last_sent: when it sent its first and its latest message here, by the clock of the senders.
        pid: of an engine, once it has reported it. number: of the process, in the order in which they got names.
        last_seen: time of the last sign of life.
        last_data: time of the last data message.
        next_seq: number of the next message to take.
        end_seq: one more than the highest number seen.
        resends: whether it can resend.
        faults, unproven, dropped: as last reported in ``wire.Health``.
        requested: the number that was last requested, -1 if none. requested_at: when.
        missing_since: since when ``next_seq`` is missing, if it is.
        early: messages that are held until earlier ones arrive, with their sizes, by number.
    """

    name: str
    epoch: str
    last_seen: float
    next_seq: int
    health: str = "live"
    lost: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    dropped: int = 0
    unproven: int = 0
    bye: wire.Bye | None = None
    bye_deadline: float = 0.0
    end_seq: int = 0
    last_data: float = 0.0
    resends: bool = False
    requested: int = -1
    requested_at: float = 0.0
    missing_since: float | None = None
    early: dict[int, tuple[Any, int]] = field(default_factory=dict)
    early_bytes: int = 0
    wire_name: str = ""
    since: float = 0.0
    last_sent: float = 0.0
    pid: int | None = None
    number: int = 0

    @property
    def is_trainer(self) -> bool:
        """A trainer rank rather than an engine."""
        return is_trainer(self.name)

    def resend_due(self, now: float) -> int | None:
        """The number from which to request a resend, if a request is due; it then counts as requested."""
        is_leaving = self.bye is not None and now >= self.bye_deadline - BYE_PATIENCE_S + BYE_REQUEST_S
        is_missing = self.missing_since is not None or (is_leaving and self.next_seq < self.end_seq)
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
        if self.missing_since is not None and now - self.missing_since >= MISSING_TIMEOUT_S:
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
            self.missing_since = None
        elif self.missing_since is None or first > before:
            self.missing_since = now
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


def _forget_oldest(remembered: dict[tuple[str, str], Any]) -> None:
    while len(remembered) > MAX_REMEMBERED:
        del remembered[next(iter(remembered))]


class Sources:
    """All senders, by name.

    Args:
        marks: of the senders of the previous hub.
        now: when this hub began.
        pids: of the engines of the previous hub.
    """

    def __init__(
        self, marks: Mapping[str, ReceivedMark] | None = None, now: float = 0.0, pids: Mapping[str, int] | None = None
    ) -> None:
        self._known: dict[str, Source] = {}
        self._software: dict[tuple[str, str], dict[str, str]] = {}
        self._displaced: dict[tuple[str, str], Source] = {}  # by name in messages and epoch: they lost their name
        self._waiting: dict[tuple[str, str], Newcomer] = {}
        self._refused: dict[tuple[str, str], None] = {}
        self._conflicts: list[Source | Newcomer] = []  # processes whose name another one has, until they are taken
        self._pids = dict(pids or {})
        self._admitted = 0
        self._marks = dict(marks or {})
        self._took_over = False  # from a hub that stored no marks: the senders still to come are unknown
        self._incomplete: dict[str, Source] = {}  # earlier messages of these are missing
        self._began = now

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._known.values()))

    def get(self, name: str) -> Source | None:
        """Return the source of that name."""
        return self._known.get(name)

    def find(self, wire_name: str, epoch: str) -> Source | None:
        """The source of the process that sends under this name, in this epoch."""
        known, process = self._known.values(), (wire_name, epoch)
        named = self._known.get(wire_name)  # almost always the one: a search takes long in a large fleet
        if named is not None and (named.wire_name, named.epoch) == process:
            return named
        return next((source for source in known if (source.wire_name, source.epoch) == process), None)

    def receive(
        self, envelope: wire.Envelope, now: float, message: Any = None, nbytes: int = 0, pid: int | None = None
    ) -> Arrival | None:
        """Register a data message; ``message``, of ``nbytes``, comes back in ``Arrival.ready`` when its turn is.

        None if it is not taken now: its process waits for a name (``take_named``), or is refused. For a source that
        can't resend, messages before the first one that this hub receives of its epoch are not counted as lost: another
        hub had them. ``pid``: of an engine, if the message has it.
        """
        source = self.find(envelope.source, envelope.epoch) or self._returned(envelope)
        if source is None:
            return self._unknown(envelope, now, message, nbytes, pid)
        before = source.next_seq
        ready, lost = source.order(envelope, message, nbytes, now)
        self._update_incomplete(source)
        source.lost += lost
        change = "is back" if source.health == "silent" else ""
        if source.health != "gone":
            source.health = "live"
        source.last_seen, source.last_data, source.bye_deadline = now, now, now + BYE_PATIENCE_S
        source.last_sent, source.pid = max(source.last_sent, envelope.sent), pid or source.pid
        return Arrival(source, change, lost, ready=ready, is_duplicate=envelope.seq < before)

    def _unknown(
        self, envelope: wire.Envelope, now: float, message: Any, nbytes: int, pid: int | None
    ) -> Arrival | None:
        """Register the message of a process that has no name yet; it gets one unless a live process has that."""
        key = envelope.source, envelope.epoch
        if key in self._refused:
            return None
        newcomer = self._waiting.setdefault(key, Newcomer(*key, since=envelope.sent))
        newcomer.pid = pid or newcomer.pid
        newcomer.hold(envelope, message, nbytes)
        name = self._free_name(newcomer) or (self._displace(newcomer) if envelope.oldest is None else None)
        return None if name is None else self._admit(newcomer, name, now)

    def _holders(self, wire_name: str) -> list[Source]:
        return [source for source in self._known.values() if source.wire_name == wire_name]

    def _free_name(self, newcomer: Newcomer) -> str | None:
        """The name that the process had at an earlier hub, or its own, or that of a dead process; None: wait."""
        marked = (name for name, mark in self._marks.items() if mark.epoch == newcomer.epoch and newcomer.may_be(name))
        reported = (name for name in (newcomer.wire_name, newcomer.own_name) if self._pids.get(name, 0) == newcomer.pid)
        had = next(itertools.chain(marked, reported), None)
        if had is not None and had not in self._known:
            return had
        holders = self._holders(newcomer.wire_name)
        return newcomer.dead(holders) if holders else newcomer.wire_name

    def _displace(self, newcomer: Newcomer) -> str:
        """Take the name of the process that was heard the longest ago: it can't resend, so it may not wait."""
        oldest = min(self._holders(newcomer.wire_name), key=lambda source: source.last_seen)
        self._displaced[oldest.wire_name, oldest.epoch] = oldest
        _forget_oldest(self._displaced)
        return oldest.name

    def _returned(self, envelope: wire.Envelope) -> Source | None:
        """Return a displaced process if it has sent something since: the name is the earlier one's."""
        source = self._displaced.get((envelope.source, envelope.epoch))
        if source is None or (other := self._known[source.name]).since >= envelope.sent:
            return None
        del self._displaced[envelope.source, envelope.epoch]
        self._incomplete.pop(source.name, None)
        first, other = sorted((source, other), key=lambda process: process.number)
        self._known[first.name] = first
        newcomer = Newcomer(other.wire_name, other.epoch, other.since, other.pid)
        if other.is_trainer:
            self._refuse(newcomer)
        else:
            other.name = newcomer.own_name
            self._known[other.name] = other
            self._conflicts.append(other)
        return None if source.is_trainer and source is other else source

    def take_named(self, now: float) -> list[Arrival]:
        """Return the processes that waited and have a name now, with what they have sent; others are refused."""
        named = []
        for key, newcomer in list(self._waiting.items()):
            if name := self._free_name(newcomer):
                named.append(self._admit(newcomer, name, now))
            elif not newcomer.is_conflict(self._holders(newcomer.wire_name)):
                continue
            elif is_trainer(newcomer.wire_name):
                self._refuse(self._waiting.pop(key))
            else:
                named.append(self._admit(newcomer, newcomer.own_name, now))
                self._conflicts.append(named[-1].source)
        return named

    def take_conflicts(self) -> list[Source | Newcomer]:
        """Return the processes in conflict since the last call: engines by their own names, and refused trainers."""
        new, self._conflicts = self._conflicts, []
        return new

    def _refuse(self, newcomer: Newcomer) -> None:
        self._refused[newcomer.wire_name, newcomer.epoch] = None
        _forget_oldest(self._refused)
        self._conflicts.append(newcomer)

    def is_refused(self, wire_name: str, epoch: str) -> bool:
        """Whether nothing is taken from this process."""
        return (wire_name, epoch) in self._refused

    def _admit(self, newcomer: Newcomer, name: str, now: float) -> Arrival:
        """Begin a process under a name, and take what it has sent so far."""
        del self._waiting[newcomer.wire_name, newcomer.epoch]
        past = self._known.get(name)
        change = "connected" if past is None else "returned" if past.health == "gone" else "restarted"
        envelope = newcomer.held[0][0]
        source, lost, is_midway = self._begin(name, envelope.epoch, envelope.seq, envelope.oldest, now)
        source.wire_name, source.pid = newcomer.wire_name, newcomer.pid
        source.since, source.last_sent = newcomer.since, newcomer.held[-1][0].sent
        self._admitted += 1
        source.number = self._admitted
        ready: list[Any] = []
        is_duplicate = envelope.seq < source.next_seq
        for held in newcomer.held:
            ready += source.order(*held, now)[0]
        self._update_incomplete(source)
        if newcomer.bye is not None:
            self.bye_received(newcomer.bye, now)
        return Arrival(source, change, lost, is_midway, ready, is_duplicate)

    def _begin(self, name: str, epoch: str, seq: int, oldest: int | None, now: float) -> tuple[Source, int, bool]:
        """Begin a new epoch. Return the source, the messages lost, and whether the fate of earlier ones is unknown."""
        mark = self._marks.pop(name, None)
        first = seq if oldest is None else max(min(oldest, seq), 0)
        lost, is_midway = 0, first > 0
        self._took_over |= oldest is not None and mark is None and seq > 0
        if oldest is not None and mark is not None and mark.epoch == epoch:
            lost, is_midway = max(first - mark.settled - 1, 0), False
            first = max(first, mark.acknowledged + 1)
        source = self._known[name] = Source(
            name, epoch, now, first, lost=lost, last_data=now, resends=oldest is not None, wire_name=name
        )
        return source, lost, is_midway

    def behind(self, now: float) -> bool:
        """Whether earlier messages are still to come, from a sender that resends or has not reconnected yet."""
        if (self._marks or self._took_over) and now - self._began < RECONNECT_S:
            return True
        return any(now - source.last_seen < SILENT_S for source in self._incomplete.values())

    def data_until(self, now: float) -> float:
        """Time up to which every live engine has sent data."""
        return min((s.last_data for s in self._known.values() if s.health == "live" and not s.is_trainer), default=now)

    def _update_incomplete(self, source: Source) -> None:
        if source.resends and source.next_seq < source.end_seq:
            self._incomplete[source.name] = source
        else:
            self._incomplete.pop(source.name, None)

    def registered(self, register: wire.Register, now: float) -> None:
        """A source registered on the control socket: it is alive, though its data may still be queued."""
        self._software[register.source, register.epoch] = register.software
        _forget_oldest(self._software)
        if (source := self.find(register.source, register.epoch)) is not None:
            source.last_seen = now

    def software_of(self, source: Source) -> dict[str, str]:
        """What the process stated when it registered, possibly before its first data message."""
        return self._software.get((source.wire_name, source.epoch), {})

    def bye_received(self, bye: wire.Bye, now: float) -> int:
        """A source disconnects; see ``take_disconnected``. Returns how many of its messages a new hub has missed."""
        if (newcomer := self._waiting.get((bye.source, bye.epoch))) is not None:
            newcomer.bye = bye
            return 0
        lost, source = 0, self.find(bye.source, bye.epoch)
        if source is None:
            name = self._free_name(Newcomer(bye.source, bye.epoch, 0.0))
            if name is None or self.is_refused(bye.source, bye.epoch):
                return 0
            source, lost, _ = self._begin(name, bye.epoch, bye.sent, bye.oldest, now)
            source.wire_name = bye.source
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
