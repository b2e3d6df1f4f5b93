"""A cache of the latest steps, bounded by bytes. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """Items by step, in order of arrival; the oldest are dropped first. The last step always stays.

    Args:
        total_bytes: bound on the total size.
        steps: number of newest steps that may exceed ``total_bytes``, up to ``most_bytes``.
        most_bytes: bound on the total size of these.

    Attributes:
        nbytes: total size, as given by the callers.
    """

    def __init__(self, total_bytes: int, *, steps: int = 0, most_bytes: int = 0) -> None:
        self.nbytes = 0
        self._total, self._steps, self._most = total_bytes, steps, most_bytes
        self._items: OrderedDict[int, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    @property
    def last(self) -> int | None:
        """The step that was added last."""
        return next(reversed(self._items), None)

    def put(self, step: int, item: T, nbytes: int) -> None:
        """Add a step, replacing an earlier one of that number (of a restarted trainer)."""
        self.drop(step)
        self._items[step] = item, nbytes
        self.nbytes += nbytes
        while len(self._items) > 1 and self.nbytes > (self._total if len(self._items) > self._steps else self._most):
            self.drop(next(iter(self._items)))

    def drop(self, step: int) -> None:
        """Remove a step."""
        _, nbytes = self._items.pop(step, (None, 0))
        self.nbytes -= nbytes

    def get(self, step: int) -> T | None:
        """The item of a step; None if it is not kept."""
        return self._items[step][0] if step in self._items else None

    def items(self) -> Iterator[tuple[int, T]]:
        """Steps with their items."""
        return ((step, item) for step, (item, _) in self._items.items())
