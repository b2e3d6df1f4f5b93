"""What a step was made from, so that a hub that goes on from the store does not take it a second time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rltop.backend.join.batch import Batch
from rltop.backend.join.records import Record

Place = tuple[int, int]
"""Number of a message, and place of the rollout in it."""


@dataclass(frozen=True, slots=True)
class StepProvenance:
    """What a step that is done was made from.

    Attributes:
        lives: of every rank of the trainer that was heard of by then.
        rollouts: that may be sent again, by engine, its life, and update of the step.
    """

    lives: Mapping[int, str] = field(default_factory=dict)
    rollouts: Mapping[tuple[str, str, int], list[Place]] = field(default_factory=dict)


class OpenProvenance:
    """The rollouts that the rows of an open step have found so far, by the step's updates."""

    def __init__(self) -> None:
        self._found: set[tuple[Record, int]] = set()

    def add(self, batch: Batch) -> None:
        """Take in a batch that looks for rollouts no more."""
        self._found.update((hit.record, batch.body.update) for hit in batch.hits if hit is not None)

    @property
    def records(self) -> set[Record]:
        """All of them."""
        return {record for record, _ in self._found}

    def result(self, lives: Mapping[int, str]) -> StepProvenance:
        """Of a step that is done. What is old is not sent again."""
        rollouts: dict[tuple[str, str, int], list[Place]] = {}
        for record, update in self._found:
            if not record.old:
                rollouts.setdefault((record.engine, record.life, update), []).append((record.seq, record.place))
        return StepProvenance(dict(lives), {key: sorted(places) for key, places in rollouts.items()})


class StoredSteps:
    """Steps that an earlier hub stored, and what it knew of the trainer then: they may be told again.

    Args:
        lives: by step, of every rank (``StepProvenance.lives``).
    """

    def __init__(self, lives: Mapping[int, Mapping[int, str]] | None = None) -> None:
        self._lives = dict(lives or {})

    def knows(self, step: int, rank: int, life: str) -> bool:
        """Whether what a rank says of the step in this life of it is in the store: not to be taken again.

        A rank that was started anew trains its steps anew, and so do all others with it.
        """
        lives = self._lives.get(step)
        if lives is None:
            return False
        if lives.get(rank, life) != life:
            self._lives.clear()
            return False
        return True


def uses(taken: Iterable[tuple[int, StepProvenance]]) -> dict[tuple[str, str, int, int], set[tuple[int, int]]]:
    """By engine, life, message and place, in which steps and updates a rollout is."""
    found: dict[tuple[str, str, int, int], set[tuple[int, int]]] = {}
    for step, of_step in taken:
        for (engine, life, update), places in of_step.rollouts.items():
            for seq, place in places:
                found.setdefault((engine, life, seq, place), set()).add((step, update))
    return found
