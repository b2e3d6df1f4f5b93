"""The send queue: bounded by bytes, keeps order, sheds by kind, and counts every record."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

from rltop.collectors.contract.wire import Counts

VITAL_SHARE = 0.1
"""Share of the byte limit reserved for vital kinds: scalars and states are kept when bulk data is shed."""


@dataclass(frozen=True)
class QueuedBatch:
    """Consecutive items of one kind, taken for sending; they count as queued until they are settled."""

    kind: str
    items: list[Any]
    nbytes: int


@dataclass
class _Kind:
    offered: int = 0
    sent: int = 0
    dropped: int = 0


class SendQueue:
    """Items offered by the host's threads, taken by the sender's thread. Thread-safe; no call blocks or raises.

    A new item that does not fit is dropped: queued ones are older, and more likely to be complete. For every kind
    ``offered == sent + dropped + queued`` at all times.

    Args:
        limit_bytes: bound on items that are queued, or taken and not settled.
        vital: kinds that may use all of it; others leave ``VITAL_SHARE`` free.
    """

    def __init__(self, limit_bytes: int, vital: frozenset[str]) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self._bulk_limit = int(limit_bytes * (1 - VITAL_SHARE))
        self._vital = vital
        self._queue: deque[tuple[str, int, Any]] = deque()
        self._kinds: dict[str, _Kind] = {}
        self._is_closed = False
        # One uncontended lock: threads meet here for microseconds at most.
        self._lock = threading.Lock()

    def offer(self, kind: str, nbytes: int, item: Any) -> bool:
        """Queue ``item``, or drop and count it. Return whether it was queued."""
        with self._lock:
            counts = self._kinds.setdefault(kind, _Kind())
            counts.offered += 1
            if not self._fits(kind, nbytes):
                counts.dropped += 1
                return False
            self.nbytes += nbytes
            self._queue.append((kind, nbytes, item))
        return True

    def has_room(self, kind: str, nbytes: int) -> bool:
        """Whether an item of that size would be queued now."""
        with self._lock:
            return self._fits(kind, nbytes)

    def count_lost(self, kind: str, count: int) -> None:
        """Count records that were lost before they could be offered."""
        with self._lock:
            counts = self._kinds.setdefault(kind, _Kind())
            counts.offered += count
            counts.dropped += count

    def take(self) -> QueuedBatch | None:
        """Take the oldest item, and all directly after it of the same kind; None if the queue is empty."""
        with self._lock:
            if not self._queue:
                return None
            kind, nbytes, items = self._queue[0][0], 0, []
            while self._queue and self._queue[0][0] == kind:
                _, size, item = self._queue.popleft()
                nbytes += size
                items.append(item)
        return QueuedBatch(kind, items, nbytes)

    def settle(self, batch: QueuedBatch, *, sent: bool) -> None:
        """Count a taken batch as sent or dropped, as a whole."""
        with self._lock:
            counts = self._kinds[batch.kind]
            if sent:
                counts.sent += len(batch.items)
            else:
                counts.dropped += len(batch.items)
            self.nbytes -= batch.nbytes

    def close(self) -> None:
        """Drop all later offers."""
        with self._lock:
            self._is_closed = True

    def counts(self) -> dict[str, Counts]:
        """Return the counts of all records so far, by kind."""
        with self._lock:
            return {
                name: Counts(k.offered, k.sent, k.dropped, k.offered - k.sent - k.dropped)
                for name, k in self._kinds.items()
            }

    def _fits(self, kind: str, nbytes: int) -> bool:
        limit = self.limit_bytes if kind in self._vital else self._bulk_limit
        return not self._is_closed and self.nbytes + nbytes <= limit
