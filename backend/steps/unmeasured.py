"""Finds steps that were not measured because messages were lost or no hub was running. Pure."""

from __future__ import annotations

from collections.abc import Iterable

NO_HUB = "there was no hub"
LOST = "the trainer's messages about them were lost"

Hole = tuple[int, int, str]
"""First and last of the steps, and the reason."""


class Holes:
    """Expects consecutive step numbers only where losses are known; otherwise a trainer may number its steps freely.

    Args:
        last: last step that an earlier hub stored; None if there is none.
    """

    def __init__(self, last: int | None = None) -> None:
        self._last = last  # holes up to here are reported
        self._done: set[int] = set()  # steps beyond it
        self._resumed = last is not None
        self._lossy = False

    def messages_lost(self) -> None:
        """Messages of the trainer were lost, in transit or before they were sent."""
        self._lossy = True

    def new_epoch(self) -> None:
        """The trainer restarted, and may begin at any step."""
        self._last, self._resumed, self._lossy = None, False, False
        self._done.clear()

    def step_done(self, step: int, still_open: Iterable[int]) -> list[Hole]:
        """Return the new holes before a step that is done, and before those that are ``still_open``."""
        last = min([step, *still_open]) - 1 if self._last is None else self._last
        if step > last:
            self._done.add(step)
        next_open = min((number for number in still_open if number > last), default=None)
        passed = sorted(number for number in self._done if next_open is None or number < next_open)
        self._done.difference_update(passed)
        holes = []
        for number in passed if next_open is None else [*passed, next_open]:
            if number > last + 1 and (self._resumed or self._lossy):
                holes.append((last + 1, number - 1, NO_HUB if self._resumed else LOST))
            self._resumed = False
            last = number if number != next_open else number - 1
        self._last = last
        return holes
