"""Which steps nobody measured: told when later ones close, where something was lost on the way. Pure."""

from __future__ import annotations

from collections.abc import Iterable

NO_HUB = "there was no hub"
LOST = "what the trainer said of them was lost"

Hole = tuple[int, int, str]
"""First and last of the steps, and why."""


class Holes:
    """Expects one step after the other where something is known to be lost; else a trainer may count as it likes.

    Args:
        last: step that an earlier hub stored last; None if there is none.
    """

    def __init__(self, last: int | None = None) -> None:
        self._last = last  # up to it all is told
        self._done: set[int] = set()  # beyond it
        self._resumed = last is not None
        self._lossy = False

    def lost(self) -> None:
        """Something that the trainer had to say is lost, here or before it was sent."""
        self._lossy = True

    def new_epoch(self) -> None:
        """The trainer was started anew, and begins where it likes."""
        self._last, self._resumed, self._lossy = None, False, False
        self._done.clear()

    def closed(self, step: int, still_open: Iterable[int]) -> list[Hole]:
        """A step has closed, others are ``still_open``: the holes before them that were not told yet."""
        last = min([step, *still_open]) - 1 if self._last is None else self._last
        if step > last:
            self._done.add(step)
        ahead = min((number for number in still_open if number > last), default=None)
        passed = sorted(number for number in self._done if ahead is None or number < ahead)
        self._done.difference_update(passed)
        holes = []
        for number in passed if ahead is None else [*passed, ahead]:
            if number > last + 1 and (self._resumed or self._lossy):
                holes.append((last + 1, number - 1, NO_HUB if self._resumed else LOST))
            self._resumed = False
            last = number if number != ahead else number - 1
        self._last = last
        return holes
