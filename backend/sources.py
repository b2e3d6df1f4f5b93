"""Who sends: epochs, holes in what arrived, and who has said goodbye. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rltop.backend.fleet.engines import SILENT_S
from rltop.collectors import wire

BYE_PATIENCE_S = 1.0
"""How long a goodbye waits for the next of the messages that were sent before it; then they are counted as lost. The
sender waits ``sender.BYE_TIMEOUT_S``, which is longer."""


@dataclass(slots=True)
class Source:
    """One sender in its present life (epoch)."""

    name: str
    epoch: str
    last_seen: float
    next_seq: int
    health: str = "live"
    lost: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    bye: wire.Bye | None = None
    bye_deadline: float = 0.0

    @property
    def is_trainer(self) -> bool:
        """A trainer rank rather than an engine."""
        return self.name.startswith("trainer/")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a message told about its source.

    ``news`` is ``appeared``, ``restarted`` (a new life without a goodbye from the last), ``returned`` (with one),
    ``is back`` (after silence) or empty; ``lost`` messages went before it; ``midway``: earlier ones of its epoch went
    to another hub, or to none.
    """

    source: Source
    news: str = ""
    lost: int = 0
    midway: bool = False

    @property
    def new_life(self) -> bool:
        """First message of its epoch here."""
        return self.news in {"appeared", "restarted", "returned"}


class Sources:
    """All senders, by name."""

    def __init__(self) -> None:
        self._known: dict[str, Source] = {}

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._known.values()))

    def get(self, name: str) -> Source | None:
        """The source of that name."""
        return self._known.get(name)

    def arrived(self, envelope: wire.Envelope, now: float) -> Arrival:
        """A data message came in.

        What a source sent before this hub first heard of its epoch is not counted as lost: another hub had it.
        """
        source = self._known.get(envelope.source)
        if source is None or source.epoch != envelope.epoch:
            fresh = self._known[envelope.source] = Source(envelope.source, envelope.epoch, now, envelope.seq + 1)
            news = "appeared" if source is None else "returned" if source.health == "gone" else "restarted"
            return Arrival(fresh, news, midway=envelope.seq > 0)
        lost = max(envelope.seq - source.next_seq, 0)
        source.next_seq = max(source.next_seq, envelope.seq + 1)
        source.lost += lost
        back = source.health == "silent"
        if source.health != "gone":
            source.health = "live"
        source.last_seen, source.bye_deadline = now, now + BYE_PATIENCE_S
        return Arrival(source, "is back" if back else "", lost)

    def registered(self, register: wire.Register, now: float) -> None:
        """A word on the control socket: the source is there, though its data may wait its turn."""
        source = self._known.get(register.source)
        if source is not None and source.epoch == register.epoch:
            source.last_seen = now

    def goodbye(self, bye: wire.Bye, now: float) -> None:
        """A source has sent its last message; see ``leaving``."""
        source = self._known.get(bye.source)
        if source is None or source.epoch != bye.epoch:
            source = self._known[bye.source] = Source(bye.source, bye.epoch, now, bye.sent)
        if source.bye is None:
            source.bye, source.bye_deadline = bye, now + BYE_PATIENCE_S

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
