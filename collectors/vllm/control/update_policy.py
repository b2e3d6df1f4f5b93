"""Decides whether a weight update resets the prefix cache: the flag ``update_clears_cache``.

In vLLM the caller that pauses the engine decides: ``pause_scheduler(mode, clear_cache)``. ``off`` overrides that
argument. ``on`` acts after the update itself, which every caller sends as ``collective_rpc``, with or without a pause:
at the next step boundary, after the batches in flight have finished (so no token is lost), only the prefix cache is
reset. vLLM's own reset would also clear the engine's multimodal cache, while the front end keeps its copy.
"""

from __future__ import annotations

from typing import Any

CALLER = "caller"


class UpdatePolicy:
    """The policy of one engine. Written on the engine's thread only.

    Attributes:
        value: ``caller``, ``on`` or ``off``.
        due: a weight update requires a reset.
        resets: number of resets of the whole prefix cache, by any caller.
        skipped: why the last due reset was skipped; empty if it was not.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.value = CALLER
        self.due = False
        self.resets = 0
        self.skipped = ""

    def on_pause(self, mode: Any = "abort", clear_cache: Any = True) -> tuple[Any, Any] | None:
        """``EngineCore.pause_scheduler(mode, clear_cache)``: the arguments to pass instead; None: the caller's."""
        return (mode, False) if self.value == "off" and clear_cache else None

    def on_reset(self, done: Any, *_args: Any, **_kwargs: Any) -> None:
        """``Scheduler.reset_prefix_cache(...) -> bool``."""
        self.resets += bool(done)

    def on_weights(self) -> None:
        """The weights have changed, or may have changed."""
        self.due = self.value == "on"

    def facts(self) -> dict[str, str]:
        """For the fingerprint."""
        facts = {"prefix cache resets": str(self.resets)}
        return facts | {"prefix cache not reset": self.skipped} if self.skipped else facts
