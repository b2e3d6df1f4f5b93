"""The error boundary between a host and rltop: no exception of rltop is ever raised into vLLM or a trainer.

Every call from the host goes through ``Guard.run``. The collectors catch ``Exception`` nowhere else, except in requests
to an engine's workers, and in commands and weight updates on an engine: there, the exception is the answer.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MAX_FAULTS = 20
"""After this many exceptions in one place, the place is switched off for the rest of the process."""

log = logging.getLogger("rltop")


class Guard:
    """Contains and counts exceptions, by place.

    The first exception of a place is logged with its traceback, later ones are only counted. After ``max_faults`` the
    place is off and costs one dictionary lookup. Thread-safe.

    Args:
        max_faults: None never switches a place off: for processes of rltop, without a host to protect.

    Attributes:
        faults: exceptions so far, by place.
    """

    def __init__(self, max_faults: int | None = MAX_FAULTS) -> None:
        self.faults: dict[str, int] = {}
        self._limit = math.inf if max_faults is None else max_faults
        self._lock = threading.Lock()

    def run(self, place: str, call: Callable[..., T], *args: Any) -> T | None:
        """Call ``call(*args)``; None if it raised, or if ``place`` is off. Never raises an ``Exception``."""
        if self.is_off(place):
            return None
        try:
            return call(*args)
        except Exception:  # noqa: BLE001 - the one place that catches all
            self._count(place)
            return None

    def is_off(self, place: str) -> bool:
        """Whether ``place`` failed too often and is switched off."""
        return self.faults.get(place, 0) >= self._limit

    def after(self, place: str, original: Callable[..., T], call: Callable[..., Any]) -> Callable[..., T]:
        """Wrap ``original``: afterwards, ``run(place, call, result, ...)`` with its arguments. For frequent calls.

        ``run`` is inlined, because each further call and object costs the host a cache miss or more.
        """
        faults, limit = self.faults, self._limit

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> T:
            result = original(*args, **kwargs)
            if not faults or faults.get(place, 0) < limit:
                try:
                    call(result, *args, **kwargs)
                except Exception:  # noqa: BLE001 - as in ``run``
                    self._count(place)
            return result

        return wrapper

    def reset(self) -> None:
        """Reset the counts: in a forked child, where the lock may be held by a thread that does not exist."""
        self.faults.clear()
        self._lock = threading.Lock()

    def _count(self, place: str) -> None:
        with self._lock:
            count = self.faults[place] = self.faults.get(place, 0) + 1
        if count == 1:
            log.warning("rltop: an exception in %s was contained; the run is not affected", place, exc_info=True)
        elif count == self._limit:
            log.warning("rltop: %s failed %d times and is now off", place, count)
