"""The border between a host and us: nothing of ours is ever raised into vLLM or a trainer.

Every call from the host goes through ``Guard.run``. It is the only place in the collectors that catches
``Exception``, but for what asks an engine's workers or answers it from there, and for what a command or a weight update
asks of an engine: those faults are answers.
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
"""After so many faults at one place that place is switched off for the rest of the process."""

log = logging.getLogger("rltop")


class Guard:
    """Counts and contains our own faults, by place.

    The first fault of a place is logged with its traceback, later ones are only counted; after ``max_faults`` the
    place is off and costs one dictionary look-up. Safe from any thread.

    Args:
        max_faults: None never switches a place off: in a process of our own, where there is no host to spare.
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
        except Exception:  # noqa: BLE001 - the one place that may
            self._note(place)
            return None

    def is_off(self, place: str) -> bool:
        """Whether ``place`` failed so often that nothing runs there any more."""
        return self.faults.get(place, 0) >= self._limit

    def after(self, place: str, original: Callable[..., T], call: Callable[..., Any]) -> Callable[..., T]:
        """``original``, then ``run(place, call, result, ...)`` with its arguments: for what a host calls all the time.

        Written out, because every call and every object it touches costs an engine that did something else meanwhile
        a cache miss or more.
        """
        faults, limit = self.faults, self._limit

        @functools.wraps(original)
        def followed(*args: Any, **kwargs: Any) -> T:
            result = original(*args, **kwargs)
            if not faults or faults.get(place, 0) < limit:
                try:
                    call(result, *args, **kwargs)
                except Exception:  # noqa: BLE001 - as in ``run``
                    self._note(place)
            return result

        return followed

    def reset(self) -> None:
        """Forget every fault: in a forked child, where the lock may be held by a thread that is not there."""
        self.faults.clear()
        self._lock = threading.Lock()

    def _note(self, place: str) -> None:
        with self._lock:
            count = self.faults[place] = self.faults.get(place, 0) + 1
        if count == 1:
            log.warning("rltop: a fault in %s was contained; the run is not affected", place, exc_info=True)
        elif count == self._limit:
            log.warning("rltop: %s failed %d times and is now off", place, count)
