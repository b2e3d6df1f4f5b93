"""Which messages of rollouts may still be needed: for rows that are to come, or to know what became of them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from rltop.backend.join.records import Record


@dataclass(slots=True)
class _ProcessMessages:
    """Of one engine's process, by number of the message: how many rollouts of it ..."""

    young: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """... are not yet old enough to be passed over;"""

    untrained: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """... are neither that, nor in a step that is done."""


class PendingMessages:
    """The messages of every engine, as long as a rollout of theirs is needed."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, str], _ProcessMessages] = {}

    def add(self, engine: str, life: str, seq: int, records: int) -> None:
        """Message ``seq`` of the engine's process brought so many rollouts."""
        if records:
            found = self._lives.setdefault((engine, life), _ProcessMessages())
            found.young[seq] = found.untrained[seq] = records

    def trained(self, record: Record) -> None:
        """The rollout is in a step that is done."""
        if not record.trained:
            record.trained = True
            if not record.old and (life := self._lives.get((record.engine, record.life))):
                _lower(life.untrained, record.seq)

    def aged(self, record: Record) -> None:
        """The rollout is old enough: what has not trained on it by now, will not."""
        record.old = True
        key = record.engine, record.life
        if life := self._lives.get(key):
            _lower(life.young, record.seq)
            if not record.trained:
                _lower(life.untrained, record.seq)
            if not life.young:
                del self._lives[key]

    def marks(self, engine: str, life: str, last: int) -> tuple[int, int]:
        """Of the messages up to ``last``, the last before which no rollout is young, and none is untrained."""
        found = self._lives.get((engine, life))
        if found is None:
            return last, last
        return next(iter(found.young)) - 1, next(iter(found.untrained), last + 1) - 1


def _lower(counts: OrderedDict[int, int], seq: int) -> None:
    if seq in counts:
        counts[seq] -= 1
        if not counts[seq]:
            del counts[seq]
