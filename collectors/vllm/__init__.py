"""The engine collector: a vLLM plugin. Engines start dormant unless RLTOP_HUB or RLTOP_RUN names their run.

vLLM calls ``register`` in the front end, in every engine-core process and in every worker. Engines are patched only in
the process that runs their loop, and only when the loop starts or ``rltop attach`` asks for it. RLTOP_DORMANT=0 keeps
dormant engines unreachable.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.collectors.transport.error_boundary import ErrorBoundary

log = logging.getLogger("rltop")

_refused: set[str] = set()


def register() -> None:
    """Entry point of ``vllm.general_plugins``. Idempotent; never raises."""
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
    is_reachable = os.environ.get("RLTOP_DORMANT", "1") != "0"
    if rundir is None and (not is_reachable or "vllm" not in sys.modules):
        return
    from rltop.collectors.vllm.attachable import AttachableProcess  # here: a process without vLLM loads nothing

    AttachableProcess(guard, rundir, is_reachable=is_reachable).install()
