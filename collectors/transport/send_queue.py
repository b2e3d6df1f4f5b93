"""The send queue: bounded by bytes, ordered, drops bulk kinds first, and counts every record."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from rltop.collectors.contract.wire import Counts

T = TypeVar("T")

VITAL_SHARE = 0.1
"""Share of the byte limit reserved for vital kinds: scalars and state still fit when bulk data is dropped."""


@dataclass(frozen=True)
class QueuedBatch(Generic[T]):
    """Consecutive items of one kind, removed to be sent. They count as queued until ``SendQueue.settle``."""

    kind: str
    items: list[T]
    nbytes: int


@dataclass
class _Kind:
    offered: int = 0
    sent: int = 0
    dropped: int = 0


class SendQueue(Generic[T]):
    """Items offered by the host's threads and removed by the sender's. Safe from any thread; never waits or raises.

    A new item that does not fit is dropped completely: items already queued are older and more likely to be complete.
    For every kind ``offered == sent + dropped + queued`` at all times.

    Args:
        limit_bytes: bound on the bytes of items that are queued, or removed and not settled.
        vital: kinds that may use the whole limit; other kinds leave ``VITAL_SHARE`` free.
    """

    def __init__(self, limit_bytes: int, vital: frozenset[str]) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._bulk_limit = int(limit_bytes * (1 - VITAL_SHARE))
        self._vital = vital
        self._queue: deque[tuple[str, int, T]] = deque()
        self._kinds: dict[str, _Kind] = {}
        self._closed = False
        self._lock = threading.RLock()  # held for microseconds at most
        self._changing = False  # a call changes the counts, and a signal handler may have interrupted it
        self._deferred: deque[tuple[str, int, T] | tuple[str, int]] = deque()

    def offer(self, kind: str, nbytes: int, item: T) -> bool:
        """Queue ``item`` of about ``nbytes`` bytes, or drop and count it. Returns whether it was queued.

        In a signal handler that interrupted another call it is queued, or dropped, when that call ends.
        """
        return self._change((kind, nbytes, item))

    def has_room(self, kind: str, nbytes: int) -> bool:
        """Whether an item of that size would be queued now."""
        with self._lock:
            return self._fits(kind, nbytes)

    def count_dropped(self, kind: str, count: int) -> None:
        """Count records that were dropped before they could be offered."""
        self._change((kind, count))

    def _change(self, change: tuple[str, int, T] | tuple[str, int]) -> bool:
        """Apply an item to queue, or a count of dropped records; returns whether an item was queued or deferred."""
        with self._lock:
            if self._changing:
                self._deferred.append(change)
                return True
            self._changing = True
            try:
                queued = self._apply(change)
                while self._deferred:
                    self._apply(self._deferred.popleft())
            finally:
                self._changing = False
        return queued

    def _apply(self, change: tuple[str, int, T] | tuple[str, int]) -> bool:
        counts = self._kinds.setdefault(change[0], _Kind())
        if len(change) == 2:
            counts.offered += change[1]
            counts.dropped += change[1]
            return False
        counts.offered += 1
        if not self._fits(change[0], change[1]):
            counts.dropped += 1
            return False
        self.nbytes += change[1]
        self._queue.append(change)
        return True

    def pop_batch(self) -> QueuedBatch[T] | None:
        """Remove the oldest item and all following ones of the same kind; None if the queue is empty."""
        with self._lock:
            if not self._queue:
                return None
            kind, nbytes = self._queue[0][0], 0
            items: list[T] = []
            while self._queue and self._queue[0][0] == kind:
                _, size, item = self._queue.popleft()
                nbytes += size
                items.append(item)
        return QueuedBatch(kind, items, nbytes)

    def settle(self, batch: QueuedBatch[T], *, sent: bool) -> None:
        """Count the items of a batch as sent or dropped, and release their bytes."""
        with self._lock:
            counts = self._kinds[batch.kind]
            if sent:
                counts.sent += len(batch.items)
            else:
                counts.dropped += len(batch.items)
            self.nbytes -= batch.nbytes

    def close(self) -> None:
        """Drop every item that is offered from now on."""
        with self._lock:
            self._closed = True

    def counts(self) -> dict[str, Counts]:
        """The counts of every kind so far."""
        with self._lock:
            return {
                name: Counts(k.offered, k.sent, k.dropped, k.offered - k.sent - k.dropped)
                for name, k in self._kinds.items()
            }

    def _fits(self, kind: str, nbytes: int) -> bool:
        limit = self.limit_bytes if kind in self._vital else self._bulk_limit
        return not self._closed and self.nbytes + nbytes <= limit
