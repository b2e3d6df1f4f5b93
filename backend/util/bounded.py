"""What is kept of each of the latest steps: bounded by bytes, the oldest go first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteBoundedCache(Generic[T]):
    """By step, in order of arrival. The last step stays, whatever it holds.

    Args:
        total_bytes: bound on all that is kept, beyond the newest ``steps``.
        steps: so many of the newest are kept beyond ``total_bytes``, up to ``most_bytes``.

    Attributes:
        nbytes: what it holds, as its callers reckon.
    """

    def __init__(self, total_bytes: int, *, steps: int = 0, most_bytes: int = 0) -> None:
        self.nbytes = 0
        self._total, self._steps, self._most = total_bytes, steps, most_bytes
        self._kept: OrderedDict[int, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[int]:
        return iter(self._kept)

    @property
    def last(self) -> int | None:
        """The step that came last."""
        return next(reversed(self._kept), None)

    def put(self, step: int, item: T, nbytes: int) -> None:
        """The step is over; one that comes again, from a restarted trainer, takes the place of its first telling."""
        self.drop(step)
        self._kept[step] = item, nbytes
        self.nbytes += nbytes
        while len(self._kept) > 1 and self.nbytes > (self._total if len(self._kept) > self._steps else self._most):
            self.drop(next(iter(self._kept)))

    def drop(self, step: int) -> None:
        """Let go of a step."""
        _, nbytes = self._kept.pop(step, (None, 0))
        self.nbytes -= nbytes

    def get(self, step: int) -> T | None:
        """What is kept of a step."""
        return self._kept[step][0] if step in self._kept else None

    def items(self) -> Iterator[tuple[int, T]]:
        """Steps and what is kept of them."""
        return ((step, item) for step, (item, _) in self._kept.items())
