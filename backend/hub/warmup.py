"""Has the kernel of the summaries compiled beside the core's thread, so that no command waits for a compiler."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger("rltop.hub")


class Warmup:
    """Compiles on a thread of its own once it is first asked whether that is done: a hub without rows loads nothing.

    The thread is no daemon: an interpreter that ended while it is inside the compiler could be aborted by it.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Whether rows can be measured without waiting. From one thread."""
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
        except Exception:  # the first rows to be measured raise it again, where faults are counted
            log.exception("the kernel does not compile")
        finally:
            self._done.set()
