"""The record and the listener by which `rltop attach` finds this process, made again while that fails.

A full disk, a directory with a wrong mode or a lack of file descriptors may end: a thread tries again, less and less
often. There is none while everything works.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from rltop.collectors.contract import attach, engine_processes
from rltop.collectors.contract.engine_processes import EngineProcess
from rltop.collectors.contract.rundir import RunDirError
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.listener import Listener

RETRY_S = 1.0
MAX_RETRY_S = 60.0
"""Pauses before the first repetition, and between later ones; each is twice the one before."""

log = logging.getLogger("rltop")


class Presence:
    """What says that this process is here, from ``show`` to ``end``.

    Args:
        handle: answers a request; see ``Listener``.
        guard: contains the collectors' faults.
        is_wanted: False: neither a record nor a listener is made.
    """

    def __init__(
        self, handle: Callable[[dict[str, Any]], dict[str, Any]], guard: ErrorBoundary, *, is_wanted: bool
    ) -> None:
        self._handle = handle
        self._guard = guard
        self._is_wanted = is_wanted and _is_possible()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._record: EngineProcess | None = None
        self._listens = False
        self._listener: Listener | None = None
        self._retry: threading.Thread | None = None
        self._ended = threading.Event()
        self._logged = ""

    def after_fork(self) -> None:
        """In the child: the threads and the record are the parent's."""
        if self._listener is not None:
            self._listener.close_in_child()
        self._reset()

    def show(self, record: EngineProcess, *, listens: bool) -> None:
        """Write the record. ``listens``: requests are answered; False while threads must not be started."""
        if not self._is_wanted:
            return
        with self._lock:
            self._record, self._listens = record, listens
            self._ended.clear()
        if not self._is_shown() and listens:
            self._try_again()

    def end(self) -> None:
        """Remove the record and stop listening. Bounded in time."""
        if not self._is_wanted:
            return
        with self._lock:
            self._record = None
            self._ended.set()
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        engine_processes.remove(os.getpid())

    def _is_shown(self) -> bool:
        """Make what is missing; whether nothing is."""
        with self._lock:
            try:
                if self._record is not None:
                    if self._listens and self._listener is None:
                        self._listener = Listener(self._handle, self._guard)
                    engine_processes.write(self._record)
            except (OSError, RuntimeError, RunDirError) as error:
                self._log(error)
                return False
        return True

    def _log(self, error: Exception) -> None:
        if str(error) != self._logged:
            self._logged = str(error)
            log.info("rltop: `rltop attach` can't reach this process until this ends: %s", error)

    def _try_again(self) -> None:
        if self._retry is None:
            self._retry = threading.Thread(target=self._guard.run, args=("presence", self._until_shown), daemon=True)
            self._retry.start()

    def _until_shown(self) -> None:
        pause = RETRY_S
        while not self._ended.wait(pause) and not self._is_shown():
            pause = min(2 * pause, MAX_RETRY_S)
        self._retry = None


def _is_possible() -> bool:
    if not attach.is_supported():
        log.info("rltop: `rltop attach` can't reach this process: this system has no SO_PEERCRED")
    return attach.is_supported()
