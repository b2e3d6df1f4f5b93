"""Which steps nobody measured: told when the next one closes, where something was lost on the way. Pure."""

from __future__ import annotations

NO_HUB = "there was no hub"
LOST = "what the trainer said of them was lost"


class Holes:
    """Expects one step after the other where something is known to be lost; else a trainer may count as it likes.

    Args:
        last: step that an earlier hub stored last; None if there is none.
    """

    def __init__(self, last: int | None = None) -> None:
        self._last = last
        self._resumed = last is not None
        self._lossy = False

    def lost(self) -> None:
        """Something that the trainer had to say is lost, here or before it was sent."""
        self._lossy = True

    def new_epoch(self) -> None:
        """The trainer was started anew, and begins where it likes."""
        self._last, self._resumed, self._lossy = None, False, False

    def closed(self, step: int) -> tuple[int, int, str] | None:
        """The first step that is open or has closed since the last call: the steps before it, first, last, and why."""
        last, why = self._last, NO_HUB if self._resumed else LOST
        known = self._resumed or self._lossy
        self._last, self._resumed = step if last is None else max(last, step), False
        return (last + 1, step - 1, why) if known and last is not None and step > last + 1 else None
