"""Tracks up to which message every sender is settled, for the store and for acknowledgements. Pure.

A message of the trainer is settled when its step is done; one with rollouts when these are in steps that are done, or
too old to be trained on (``join.pending``); any other at once. A mark is acknowledged only after it is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from rltop.backend.ingest.sources import ReceivedMark, Source
from rltop.backend.join.pending import PendingMessages
from rltop.collectors.contract import wire

PERIOD_S = 5.0
"""How often marks are stored while no step is done."""

StepMessages = deque[tuple[int, int]]
"""Number and step of each message that awaits its step."""


class Acknowledgements:
    """The marks of all senders that resend.

    Args:
        pending: the messages with rollouts that may still be needed.
        is_open: whether a step is still being assembled.
    """

    def __init__(self, pending: PendingMessages, is_open: Callable[[int], bool]) -> None:
        self._pending = pending
        self._is_open = is_open
        self._step_messages: dict[str, tuple[str, StepMessages]] = {}  # by rank: its epoch, and its messages
        self._given: dict[str, ReceivedMark] = {}  # to the store, latest
        self._acknowledged: dict[str, ReceivedMark] = {}
        self._unacknowledged: dict[str, ReceivedMark] = {}
        self._looked = float("-inf")

    def message_taken(self, envelope: wire.Envelope, body: wire.DataBody) -> None:
        """A message was taken in its turn."""
        if isinstance(body, wire.Sequences | wire.StepClosed):
            life, messages = self._step_messages.get(envelope.source, ("", _NONE))
            if life != envelope.epoch:
                messages = deque()
                self._step_messages[envelope.source] = envelope.epoch, messages
            messages.append((envelope.seq, body.step))

    def take_marks(self, sources: Iterable[Source], now: float, *, step_done: bool) -> list[tuple[str, ReceivedMark]]:
        """Return the marks that moved, to be stored with the next frame: after each step, else every ``PERIOD_S``."""
        if not step_done and now - self._looked < PERIOD_S:
            return []
        self._looked = now
        moved = []
        for source in sources:
            if source.resends and self._given.get(source.name) != (mark := self._mark(source)):
                self._given[source.name] = self._unacknowledged[source.name] = mark
                moved.append((source.name, mark))
        return moved

    def not_stored(self) -> None:
        """The store did not accept the marks it was given last: give them again."""
        for name in self._unacknowledged:
            del self._given[name]
        self._unacknowledged.clear()

    def take_acknowledged(self) -> list[tuple[str, wire.Acknowledged]]:
        """Return the acknowledgements to send, by sender. Call when all marks are stored."""
        moved = [
            (name, wire.Acknowledged(mark.epoch, mark.acknowledged))
            for name, mark in self._unacknowledged.items()
            if mark.acknowledged >= 0 and self._acknowledged.get(name) != mark
        ]
        self._acknowledged |= self._unacknowledged
        self._unacknowledged.clear()
        return moved

    def _mark(self, source: Source) -> ReceivedMark:
        last = source.next_seq - 1
        if not source.is_trainer:
            return ReceivedMark(source.epoch, *self._pending.watermarks(source.name, source.epoch, last))
        life, messages = self._step_messages.get(source.name, ("", _NONE))
        if life != source.epoch:
            messages = _NONE
        while messages and not self._is_open(messages[0][1]):
            messages.popleft()
        settled = messages[0][0] - 1 if messages else last
        return ReceivedMark(source.epoch, settled, settled)


_NONE: StepMessages = deque()
