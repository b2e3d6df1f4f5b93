"""The engine collector: a vLLM plugin, dormant unless RLTOP_HUB or RLTOP_RUN is set.

vLLM calls ``register`` in the front end, in every engine-core process and in every worker. Engines are patched only in
the process that runs their loop, and only when the loop starts.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.collectors.transport.error_boundary import ErrorBoundary

log = logging.getLogger("rltop")

_refused: set[str] = set()


def register() -> None:
    """Entry point of ``vllm.general_plugins``. Never raises, is idempotent, and does nothing without RLTOP_HUB or RLTOP_RUN."""
    from rltop.collectors.transport.error_boundary import ErrorBoundary

    guard = ErrorBoundary()
    guard.run("register", _register, guard)


def _register(guard: ErrorBoundary) -> None:
    from rltop.collectors.contract.rundir import RunDirError, from_environment

    try:
        rundir = from_environment()
    except RunDirError as error:
        if str(error) not in _refused:
            _refused.add(str(error))
            log.warning("rltop: the engine collector stays off: %s", error)
        return
    if rundir is not None:
        from rltop.collectors.vllm.agent import install  # here: a dormant plugin loads neither numpy nor msgspec

        install(rundir, guard)
