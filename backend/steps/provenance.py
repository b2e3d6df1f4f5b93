"""Records which rollouts a step was made from, so that a resumed hub does not count them again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rltop.backend.join.batch import Batch
from rltop.backend.join.records import Record

Place = tuple[int, int]
"""Number of a message, and index of the rollout in it."""


@dataclass(frozen=True, slots=True)
class StepProvenance:
    """The sources of a step that is done.

    Attributes:
        lives: epoch of every trainer rank that was known by then.
        rollouts: those that may be resent, by engine, its epoch, and the step's update.
    """

    lives: Mapping[int, str] = field(default_factory=dict)
    rollouts: Mapping[tuple[str, str, int], list[Place]] = field(default_factory=dict)


class OpenProvenance:
    """The rollouts that the rows of an open step were joined with, by the step's updates."""

    def __init__(self) -> None:
        self._joined: set[tuple[Record, int]] = set()

    def add(self, batch: Batch) -> None:
        """Add a batch whose rows are joined."""
        self._joined.update((hit.record, batch.body.update) for hit in batch.hits if hit is not None)

    @property
    def records(self) -> set[Record]:
        """All these rollouts."""
        return {record for record, _ in self._joined}

    def result(self, lives: Mapping[int, str]) -> StepProvenance:
        """Return the provenance of a step that is done, without old rollouts, which are not resent."""
        rollouts: dict[tuple[str, str, int], list[Place]] = {}
        for record, update in self._joined:
            if not record.old:
                rollouts.setdefault((record.engine, record.life, update), []).append((record.seq, record.place))
        return StepProvenance(dict(lives), {key: sorted(places) for key, places in rollouts.items()})


class StoredSteps:
    """Steps that an earlier hub stored; messages about them may be resent.

    Args:
        lives: by step, the epoch of every rank (``StepProvenance.lives``).
    """

    def __init__(self, lives: Mapping[int, Mapping[int, str]] | None = None) -> None:
        self._lives = dict(lives or {})

    def has(self, step: int, rank: int, life: str) -> bool:
        """Whether messages of the rank's epoch ``life`` about the step are in the store already.

        A rank that restarted repeats its steps, and so do all others with it.
        """
        lives = self._lives.get(step)
        if lives is None:
            return False
        if lives.get(rank, life) != life:
            self._lives.clear()
            return False
        return True


def uses(provenance: Iterable[tuple[int, StepProvenance]]) -> dict[tuple[str, str, int, int], set[tuple[int, int]]]:
    """Return the steps and updates that used a rollout, by engine, epoch, message and index."""
    found: dict[tuple[str, str, int, int], set[tuple[int, int]]] = {}
    for step, of_step in provenance:
        for (engine, life, update), places in of_step.rollouts.items():
            for seq, place in places:
                found.setdefault((engine, life, seq, place), set()).add((step, update))
    return found
