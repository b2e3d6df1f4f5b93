"""Compiles the numba kernels in a thread of their own, so that no command waits for the compiler."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("rltop.hub")


class Warmup:
    """Starts compiling at the first call of ``ready``: a hub without rows does not load numba.

    The thread is not a daemon: an interpreter that exits while a thread is inside the compiler may abort.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Whether rows can be measured without waiting. To be called from one thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rltop-warmup", daemon=False)
            self._thread.start()
        return self._done.is_set()

    def _run(self) -> None:
        from rltop.backend.evidence import kernel
        from rltop.backend.summary.strata import warm

        try:
            warm()
            kernel.warm()
        except Exception:  # the first measured rows raise it again, where exceptions are counted
            log.exception("a kernel does not compile")
        finally:
            self._done.set()
