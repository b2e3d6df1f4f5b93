"""Who sends: epochs, the order of what arrives, holes in it, and who has said goodbye. Pure.

Messages of a sender that can send again are taken in order, each once: what is missing is asked for, what comes early
waits here, within a bound, or comes again, and what comes twice is left. What the sender has no more is lost, and
counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.backend.fleet.engines import SILENT_S
from rltop.collectors.contract import wire

BYE_PATIENCE_S = 1.0
"""How long a goodbye waits for the next of the messages that were sent before it; then they are counted as lost. The
sender waits ``sender.BYE_TIMEOUT_S``, which is longer."""

BYE_ASK_S = 0.3
"""After so long without a message it is asked for those: a goodbye comes by another socket, and overtakes data."""

ASK_AGAIN_S = 1.0
ASK_PAUSE_S = 0.2
"""How long an answer is waited for before a sender is asked again for the same message, and for another."""

EARLY_BYTES = 64 << 20
"""Messages of one sender that may wait for those before them."""

HOLE_PATIENCE_S = 10.0
"""How long a missing message is waited for while others come; then it is lost, and the sender is heard again."""

RETURN_S = 8.0
"""How long a new hub waits for senders that the last one heard: longer than a sender takes to connect and speak."""


@dataclass(frozen=True, slots=True)
class ReceivedMark:
    """How much of what a sender sent in a life (``epoch``) is in what is stored.

    Attributes:
        acknowledged: no message up to this number is needed any more.
        settled: nothing up to this number is missing from any step; from ``acknowledged`` on rollouts may yet be
            trained on again.
    """

    epoch: str
    acknowledged: int
    settled: int


def is_trainer(name: str) -> bool:
    """Whether a source of this name is a trainer rank rather than an engine."""
    return name.startswith("trainer/")


@dataclass(slots=True)
class Source:
    """One sender in its present life (epoch).

    Attributes:
        next_seq: number of the message that comes next.
        goal: one more than the highest number that was seen.
        heard: when its last message came; ``last_seen`` counts any sign of life.
        resends: it can be asked to send again. asked: for which number it was asked last, asked_at: when.
        hole_since: since when ``next_seq`` is missing, if it is.
        early: what came before its turn, with its size, by number.
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
    goal: int = 0
    heard: float = 0.0
    resends: bool = False
    asked: int = -1
    asked_at: float = 0.0
    hole_since: float | None = None
    early: dict[int, tuple[Any, int]] = field(default_factory=dict)
    early_bytes: int = 0

    @property
    def is_trainer(self) -> bool:
        """A trainer rank rather than an engine."""
        return is_trainer(self.name)

    def lacks(self, now: float) -> int | None:
        """The number from which on it is to send again, if it is to be asked for that now."""
        leaving = self.bye is not None and now >= self.bye_deadline - BYE_PATIENCE_S + BYE_ASK_S
        missing = self.hole_since is not None or (leaving and self.next_seq < self.goal)
        pause = ASK_AGAIN_S if self.asked == self.next_seq else ASK_PAUSE_S
        if not (self.resends and missing) or (self.asked >= 0 and now - self.asked_at < pause):
            return None
        self.asked, self.asked_at = self.next_seq, now
        return self.next_seq

    def place(self, envelope: wire.Envelope, message: Any, nbytes: int, now: float) -> tuple[list[Any], int]:
        """What is to be taken now that a message came, in order, and how many are lost of those whose turn it was."""
        seq, before = envelope.seq, self.next_seq
        self.goal = max(self.goal, seq + 1)
        self.resends = envelope.oldest is not None
        if envelope.oldest is None:
            self.next_seq = max(before, seq + 1)
            return [message], max(seq - before, 0)
        if seq < before:
            return [], 0
        first = max(before, min(envelope.oldest, seq))
        if self.hole_since is not None and now - self.hole_since >= HOLE_PATIENCE_S:
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
        if first == self.goal:
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
    """What a message told about its source.

    ``news`` is ``appeared``, ``restarted`` (a new life without a goodbye from the last), ``returned`` (with one),
    ``is back`` (after silence) or empty; ``lost`` messages went before it; ``midway``: nobody knows what became of
    earlier ones of its epoch; ``ready``: the messages to take now; ``twice``: it was taken before.
    """

    source: Source
    news: str = ""
    lost: int = 0
    midway: bool = False
    ready: list[Any] = field(default_factory=list)
    twice: bool = False

    @property
    def new_life(self) -> bool:
        """First message of its epoch here."""
        return self.news in {"appeared", "restarted", "returned"}


class Sources:
    """All senders, by name; ``marks`` are of those that the hub before heard, ``now`` is when this one began."""

    def __init__(self, marks: Mapping[str, ReceivedMark] | None = None, now: float = 0.0) -> None:
        self._known: dict[str, Source] = {}
        self._marks = dict(marks or {})
        self._took_over = False  # from a hub that stored nothing: nobody knows who is still to come
        self._late: dict[str, Source] = {}  # what they sent before is still to come
        self._began = now

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._known.values()))

    def get(self, name: str) -> Source | None:
        """The source of that name."""
        return self._known.get(name)

    def arrived(self, envelope: wire.Envelope, now: float, message: Any = None, nbytes: int = 0) -> Arrival:
        """A data message came in: ``message`` is what is given back in ``Arrival.ready``, and takes ``nbytes``.

        What a source that resends nothing sent before this hub first heard of its epoch is not counted as lost:
        another hub had it.
        """
        source = self._known.get(envelope.source)
        if source is None or source.epoch != envelope.epoch:
            news = "appeared" if source is None else "returned" if source.health == "gone" else "restarted"
            fresh, lost, midway = self._begin(envelope.source, envelope.epoch, envelope.seq, envelope.oldest, now)
            twice = envelope.seq < fresh.next_seq
            ready, _ = fresh.place(envelope, message, nbytes, now)
            self._note(fresh)
            return Arrival(fresh, news, lost, midway, ready, twice)
        before = source.next_seq
        ready, lost = source.place(envelope, message, nbytes, now)
        self._note(source)
        source.lost += lost
        back = source.health == "silent"
        if source.health != "gone":
            source.health = "live"
        source.last_seen, source.heard, source.bye_deadline = now, now, now + BYE_PATIENCE_S
        return Arrival(source, "is back" if back else "", lost, ready=ready, twice=envelope.seq < before)

    def _begin(self, name: str, epoch: str, seq: int, oldest: int | None, now: float) -> tuple[Source, int, bool]:
        """A life that is new here: from which message on it is taken, how many are lost, whether it was under way."""
        mark = self._marks.pop(name, None)
        first = seq if oldest is None else max(min(oldest, seq), 0)
        lost, midway = 0, first > 0
        self._took_over |= oldest is not None and mark is None and seq > 0
        if oldest is not None and mark is not None and mark.epoch == epoch:
            lost, midway = max(first - mark.settled - 1, 0), False
            first = max(first, mark.acknowledged + 1)
        source = self._known[name] = Source(name, epoch, now, first, lost=lost, heard=now, resends=oldest is not None)
        return source, lost, midway

    def behind(self, now: float) -> bool:
        """Whether messages are still to come that were sent before: of a sender that sends again, or is yet unheard."""
        if (self._marks or self._took_over) and now - self._began < RETURN_S:
            return True
        return any(now - source.last_seen < SILENT_S for source in self._late.values())

    def heard(self, now: float) -> float:
        """Up to when every engine that is live was heard."""
        return min((s.heard for s in self._known.values() if s.health == "live" and not s.is_trainer), default=now)

    def _note(self, source: Source) -> None:
        if source.resends and source.next_seq < source.goal:
            self._late[source.name] = source
        else:
            self._late.pop(source.name, None)

    def registered(self, register: wire.Register, now: float) -> None:
        """A word on the control socket: the source is there, though its data may wait its turn."""
        source = self._known.get(register.source)
        if source is not None and source.epoch == register.epoch:
            source.last_seen = now

    def goodbye(self, bye: wire.Bye, now: float) -> int:
        """A source has sent its last message; see ``leaving``. Returns how many before it are lost for a new hub."""
        lost, source = 0, self._known.get(bye.source)
        if source is None or source.epoch != bye.epoch:
            source, lost, _ = self._begin(bye.source, bye.epoch, bye.sent, bye.oldest, now)
        source.goal = max(source.goal, bye.sent)
        self._note(source)
        if source.bye is None:
            source.bye, source.bye_deadline = bye, now + BYE_PATIENCE_S
        return lost

    def leaving(self, now: float) -> list[tuple[Source, int]]:
        """Sources whose every message before the goodbye is here, or was waited for long enough, with how many are not.

        They are gone from here on; each is returned once per goodbye, also a repeated one.
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
                self._late.pop(source.name, None)
                left.append((source, missing))
        return left

    def falling_silent(self, now: float) -> list[Source]:
        """Sources that were live and have not been heard of for ``SILENT_S``."""
        quiet = [s for s in self._known.values() if s.health == "live" and now - s.last_seen > SILENT_S]
        for source in quiet:
            source.health = "silent"
        return quiet

    def trainer_health(self) -> str:
        """Of all trainer ranks: live if one is, then silent, then gone; absent if there is none."""
        found = {source.health for source in self._known.values() if source.is_trainer}
        return next((health for health in ("live", "silent", "gone") if health in found), "absent")
