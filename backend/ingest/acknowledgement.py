"""Up to which message every sender is settled: what the store keeps of that, and what senders are told. Pure.

A message of the trainer is settled when its step is done, one of rollouts when they are in steps that are done or too
old to be trained on (``join.needed``), any other at once. What is told to a sender is in the store before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from rltop.backend.ingest.sources import ReceivedMark, Source
from rltop.backend.join.pending import PendingMessages
from rltop.collectors.contract import wire

PERIOD_S = 5.0
"""How often senders are told where no step is done."""


Places = deque[tuple[int, int]]


class Acknowledgements:
    """The marks of all senders that resend.

    Args:
        needed: which rollouts may still be.
        is_open: whether a step is still being put together.
    """

    def __init__(self, needed: PendingMessages, is_open: Callable[[int], bool]) -> None:
        self._needed = needed
        self._is_open = is_open
        self._of_steps: dict[str, tuple[str, Places]] = {}  # by rank: its life, and messages with their steps
        self._marks: dict[str, ReceivedMark] = {}  # as last given to the store
        self._told: dict[str, ReceivedMark] = {}
        self._untold: dict[str, ReceivedMark] = {}
        self._looked = float("-inf")

    def took(self, envelope: wire.Envelope, body: wire.DataBody) -> None:
        """A message was taken."""
        if isinstance(body, wire.Sequences | wire.StepClosed):
            life, places = self._of_steps.get(envelope.source, ("", _NO_PLACES))
            if life != envelope.epoch:
                places = deque()
                self._of_steps[envelope.source] = envelope.epoch, places
            places.append((envelope.seq, body.step))

    def marks(self, sources: Iterable[Source], now: float, *, step_done: bool) -> list[tuple[str, ReceivedMark]]:
        """What is to be stored with what is known now: the marks that moved, from time to time."""
        if not step_done and now - self._looked < PERIOD_S:
            return []
        self._looked = now
        moved = []
        for source in sources:
            if source.resends and self._marks.get(source.name) != (mark := self._mark(source)):
                self._marks[source.name] = self._untold[source.name] = mark
                moved.append((source.name, mark))
        return moved

    def not_stored(self) -> None:
        """The store did not take the marks that it was given last: they come again."""
        for name in self._untold:
            del self._marks[name]
        self._untold.clear()

    def acknowledged(self) -> list[tuple[str, wire.Acknowledged]]:
        """What senders are to be told, by name, now that all marks are stored."""
        news = [
            (name, wire.Acknowledged(mark.epoch, mark.acknowledged))
            for name, mark in self._untold.items()
            if mark.acknowledged >= 0 and self._told.get(name, _NOTHING) != mark
        ]
        self._told |= self._untold
        self._untold.clear()
        return news

    def _mark(self, source: Source) -> ReceivedMark:
        last = source.next_seq - 1
        if not source.is_trainer:
            return ReceivedMark(source.epoch, *self._needed.watermarks(source.name, source.epoch, last))
        life, places = self._of_steps.get(source.name, ("", _NO_PLACES))
        if life != source.epoch:
            places = _NO_PLACES
        while places and not self._is_open(places[0][1]):
            places.popleft()
        settled = places[0][0] - 1 if places else last
        return ReceivedMark(source.epoch, settled, settled)


_NOTHING = ReceivedMark("", -1, -1)
_NO_PLACES: Places = deque()
