"""Tracks which messages of rollouts are still needed, for later rows or for the count of unused rollouts. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from rltop.backend.join.records import Record


@dataclass(slots=True)
class _ProcessMessages:
    """Counts of one engine process by the sequence number of the message."""

    young: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Rollouts of the message that are not old yet."""

    untrained: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Those of them that are in no finished step."""


class PendingMessages:
    """The messages of every engine, as long as one of their rollouts is needed."""

    def __init__(self) -> None:
        self._processes: dict[tuple[str, str], _ProcessMessages] = {}

    def received(self, engine: str, life: str, seq: int, records: int) -> None:
        """Message ``seq`` of the engine process brought ``records`` rollouts."""
        if records:
            process = self._processes.setdefault((engine, life), _ProcessMessages())
            process.young[seq] = process.untrained[seq] = records

    def mark_trained(self, record: Record) -> None:
        """Mark a rollout as trained on by a finished step."""
        if not record.trained:
            record.trained = True
            if not record.old and (process := self._processes.get((record.engine, record.life))):
                _lower(process.untrained, record.seq)

    def mark_old(self, record: Record) -> None:
        """Mark a rollout as old: no later step will train on it."""
        record.old = True
        key = record.engine, record.life
        if process := self._processes.get(key):
            _lower(process.young, record.seq)
            if not record.trained:
                _lower(process.untrained, record.seq)
            if not process.young:
                del self._processes[key]

    def watermarks(self, engine: str, life: str, last: int) -> tuple[int, int]:
        """The last message, up to ``last``, by which no rollout is young, and by which none is untrained."""
        process = self._processes.get((engine, life))
        if process is None:
            return last, last
        return next(iter(process.young)) - 1, next(iter(process.untrained), last + 1) - 1


def _lower(counts: OrderedDict[int, int], seq: int) -> None:
    if seq in counts:
        counts[seq] -= 1
        if not counts[seq]:
            del counts[seq]
