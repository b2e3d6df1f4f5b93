"""Whether the prefix cache is forgotten at a pause or a weight update: the caller's choice, or ours.

vLLM's pauses end in ``EngineCore._finish_pause(clear_cache)``, which waits for the device and then resets the caches or
not. ``off`` and the caller's own choice go in there. ``on`` under a caller that does not clear, or under an update
without a pause, resets the prefix cache alone, at the next step boundary: ``_reset_caches`` would clear the engine's
multimodal cache too, while the front end keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rltop.collectors.vllm import seams
from rltop.collectors.vllm.switch import common_obstacle, launch

FLAG = "update_clears_cache"


class UpdateClearsCache:
    """The policy of one engine. ``on_pause`` and ``at_boundary`` run on the engine's thread.

    Args:
        engine: the engine core.
        updates: how many weight updates it has finished.
        drain: finishes the batches in flight.
    """

    def __init__(self, engine: Any, updates: Callable[[], int], drain: Callable[[Any], None]) -> None:
        self._engine = engine
        self._updates = updates
        self._drain = drain
        self._policy = "caller"
        self._seen = updates()
        self._cleared = False  # at the pause under way
        self._due = False

    def refresh(self) -> None:
        """All of it can be read from any thread."""

    def read(self) -> str | None:
        """The policy, if the live engine's pause does end in ours."""
        if getattr(self._engine, "_finish_pause", None) is None:
            return None
        return self._policy if seams.is_tapped(self._engine, "_finish_pause") else "caller"

    def obstacle(self) -> str:
        """No such end of a pause, or one that something else counts on."""
        engine = self._engine
        if common := common_obstacle(engine):
            return common
        if fault := seams.fault_of(seams.PAUSE, engine):
            return launch(FLAG, fault)
        if not seams.is_tapped(engine, "_finish_pause"):
            return "the collector does not see the end of a pause"
        if getattr(engine.vllm_config.model_config, "enable_sleep_mode", False):
            return "sleep mode is on: it discards the KV cache's memory and counts on the reset of its own pause"
        return ""

    def write(self, value: str) -> None:
        """From the next pause or update on."""
        self._policy = value
        self._due = False

    def note(self) -> str:
        """Nothing to add."""
        return ""

    def on_pause(self, clear_cache: bool) -> tuple[bool] | None:
        """``EngineCore._finish_pause(clear_cache)``: with which argument instead; None for the caller's."""
        self._due = self._policy == "on" and not clear_cache
        self._cleared = clear_cache and self._policy != "off"
        return (False,) if self._policy == "off" else None

    def at_boundary(self) -> None:
        """Between two steps: reset what a pause or a finished update left to be reset."""
        if (updates := self._updates()) != self._seen:
            self._seen = updates
            self._due |= self._policy == "on" and not (self._paused() and self._cleared)
        if self._due:
            self._due = False
            self._drain(self._engine)
            self._engine.reset_prefix_cache(reset_running_requests=True)
            self._cleared = True

    def _paused(self) -> bool:
        return getattr(getattr(self._engine.scheduler, "pause_state", None), "name", "UNPAUSED") != "UNPAUSED"
