"""A vLLM plugin for the demo alone: puts back on the CPU what vLLM changes there by platform.

Async scheduling, which vLLM turns off, and with ``RLTOP_DEMO_FORK=1`` processes by fork, where vLLM has spawn: that is
for a process with nothing in it but the engine.

``CpuPlatform.check_and_update_config`` sets ``scheduler_config.async_scheduling = False`` ("not required on CPU"); the
scheduler itself is the same on every platform, so putting back what was asked for gives the real one with its real
batch queue, and the demo's switch has something to switch. Active only with ``RLTOP_DEMO_ASYNC=1``.
"""

from __future__ import annotations

import logging
import os
from typing import Any

ENABLE = "RLTOP_DEMO_ASYNC"
"""Environment variable that turns the plugin on."""

FORK = "RLTOP_DEMO_FORK"
"""Environment variable that has it fork."""

RESTORED = "RLTOP_DEMO_ASYNC_RESTORED"
"""Set to ``1`` once async scheduling was put back; inherited by the engine's processes, for their fingerprint."""

log = logging.getLogger("rltop")


def register() -> None:
    """Entry point of ``vllm.general_plugins``. Does nothing unless asked for; may run more than once; never raises."""
    if os.environ.get(ENABLE) != "1":
        return
    try:
        _wrap()
    except (ImportError, AttributeError):
        log.warning("rltop demo: async scheduling on the CPU could not be restored", exc_info=True)


def _wrap() -> None:
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__
    if getattr(original, "restores_async", False):
        return

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        scheduler = vllm_config.scheduler_config
        asked = scheduler.async_scheduling
        original(cls, vllm_config)
        if os.environ.get(FORK) == "1":
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # vLLM's own default: saves two imports, 10 s each
        if asked and not scheduler.async_scheduling:
            scheduler.async_scheduling = True
            os.environ[RESTORED] = "1"

    check_and_update_config.restores_async = True  # type: ignore[attr-defined] # marks the wrapper, for a second load
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
