"""The engine collector: a vLLM plugin, dormant unless it is told where the hub is.

vLLM calls ``register`` in the front end, in every engine-core process and in every worker. Only the process that runs
an engine's loop is ever tapped, and only once its loop begins.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rltop.collectors.transport.error_boundary import Guard

log = logging.getLogger("rltop")

_refused: set[str] = set()


def register() -> None:
    """Entry point of ``vllm.general_plugins``: total, idempotent, and free unless RLTOP_HUB or RLTOP_RUN is set."""
    from rltop.collectors.transport.error_boundary import Guard

    guard = Guard()
    guard.run("register", _register, guard)


def _register(guard: Guard) -> None:
    from rltop.collectors.contract.rundir import RunDirError, from_environment

    try:
        rundir = from_environment()
    except RunDirError as error:
        if str(error) not in _refused:
            _refused.add(str(error))
            log.warning("rltop: the engine collector stays off: %s", error)
        return
    if rundir is not None:
        from rltop.collectors.vllm.agent import hook  # not above: a dormant plugin loads neither numpy nor msgspec

        hook(rundir, guard)
