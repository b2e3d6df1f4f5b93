"""A vLLM plugin for the demo: restores async scheduling on the CPU, which vLLM turns off there.

``CpuPlatform.check_and_update_config`` sets ``scheduler_config.async_scheduling = False`` ("not required on CPU"). The
scheduler is the same on every platform, so restoring the setting gives the real scheduler with its batch queue, and the
demo's ``async_scheduling`` flag is a real switch. Active only with ``RLTOP_DEMO_ASYNC=1``.

With ``RLTOP_DEMO_FORK=1`` it also starts processes by fork instead of spawn; only for a process that runs nothing but
the engine.
"""

from __future__ import annotations

import logging
import os
from typing import Any

ENABLE = "RLTOP_DEMO_ASYNC"
"""Environment variable that enables the plugin."""

FORK = "RLTOP_DEMO_FORK"
"""Environment variable that selects fork."""

RESTORED = "RLTOP_DEMO_ASYNC_RESTORED"
"""Set to ``1`` once async scheduling is restored; the engine's processes inherit it, for their fingerprint."""

log = logging.getLogger("rltop")


def register() -> None:
    """Entry point of ``vllm.general_plugins``. Does nothing unless enabled. Idempotent. Never raises."""
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
        requested = scheduler.async_scheduling
        original(cls, vllm_config)
        if os.environ.get(FORK) == "1":
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = (
                "fork"  # vLLM's default elsewhere; saves two imports of 10 s each
            )
        if requested and not scheduler.async_scheduling:
            scheduler.async_scheduling = True
            os.environ[RESTORED] = "1"

    check_and_update_config.restores_async = True  # type: ignore[attr-defined] # marks the wrapper, so that a second load skips it
    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
