"""The error boundary: no exception of the collectors is ever raised into vLLM or a trainer.

Every call from the host into a collector goes through ``ErrorBoundary.run``. Elsewhere in the collectors ``Exception``
is caught only where it becomes an answer: when workers are called or answer, and when a command, a probe or a weight
update acts on the engine.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MAX_FAULTS = 20
"""After this many faults, other than a lack of memory, a place is switched off for the rest of the process."""

log = logging.getLogger("rltop")


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    """Takes the place of a call that is not wanted any more."""


class ErrorBoundary:
    """Contains the collectors' own exceptions, and counts them by place.

    The first fault of a place is logged with its traceback, later ones are only counted. After ``max_faults`` the place
    is off and costs one dictionary look-up. Safe from any thread.

    Attributes:
        faults: exceptions by place. latest: the latest one of each place, as text.

    Args:
        max_faults: None never switches a place off; for processes of rltop itself, which have no host to protect.
    """

    def __init__(self, max_faults: int | None = MAX_FAULTS) -> None:
        self.faults: dict[str, int] = {}
        self.latest: dict[str, str] = {}
        self._strikes: dict[str, int] = {}
        self._limit = math.inf if max_faults is None else max_faults
        self._lock = threading.RLock()

    def run(self, place: str, call: Callable[..., T], *args: Any, raises: tuple[type[Exception], ...] = ()) -> T | None:
        """Return ``call(*args)``; None if it raised, or if ``place`` is off. Raises no ``Exception`` but ``raises``."""
        if self.is_off(place):
            return None
        try:
            return call(*args)
        except raises:
            raise
        except Exception:  # noqa: BLE001 - containing them is the purpose of this class
            self._count(place)
            return None

    def is_off(self, place: str) -> bool:
        """Whether ``place`` has failed too often and is switched off."""
        return self._strikes.get(place, 0) >= self._limit

    def after(self, place: str, original: Callable[..., T], call: Callable[..., Any]) -> Callable[..., T]:
        """Return ``original`` followed by ``call(result, *args, **kwargs)``, contained as in ``run``.

        Hot path: used for methods that vLLM calls in every step. ``run`` is inlined, because at that time each
        additional function call and object costs a cache miss or more. ``rltop_idle`` of the result, a function, makes
        it forget ``call``.
        """
        strikes, limit = self._strikes, self._limit

        def idle() -> None:
            nonlocal call
            call = _nothing

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> T:
            result = original(*args, **kwargs)
            if not strikes or strikes.get(place, 0) < limit:
                try:
                    call(result, *args, **kwargs)
                except Exception:  # noqa: BLE001 - as in ``run``
                    self._count(place)
            return result

        wrapped.rltop_idle = idle  # type: ignore[attr-defined] # our own attribute
        return wrapped

    def reset(self) -> None:
        """Forget every fault: in a forked child, where a thread that no longer exists may hold the lock."""
        self.faults.clear()
        self._strikes.clear()
        self._lock = threading.RLock()

    def _count(self, place: str) -> None:
        error = sys.exception()
        self.latest[place] = repr(error)
        with self._lock:
            count = self.faults[place] = self.faults.get(place, 0) + 1
            if not isinstance(error, MemoryError):  # the host's shortage, which may end
                self._strikes[place] = self._strikes.get(place, 0) + 1
        if count == 1:
            log.warning("rltop: a fault in %s was contained; the run is not affected", place, exc_info=True)
        elif self._strikes.get(place) == self._limit and not isinstance(error, MemoryError):
            log.warning("rltop: %s failed %d times and is now off", place, self._limit)
