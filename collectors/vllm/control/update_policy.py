"""Whether the prefix cache is forgotten at a weight update: the caller's choice, or ours.

vLLM leaves it to whoever pauses the engine: ``pause_scheduler(mode, clear_cache)``. ``off`` goes in there, and only
there. ``on`` comes after the update itself, which every caller sends as ``collective_rpc`` whether it pauses or not: at
the next step boundary, with the batches in flight finished, so that no token is dropped, the prefix cache alone is
reset. vLLM's own reset would clear the engine's multimodal cache too, while the front end keeps its copy.
"""

from __future__ import annotations

from typing import Any

CALLER = "caller"


class UpdatePolicy:
    """The policy of one engine; all of it on the engine's thread, but for reads.

    Attributes:
        value: ``caller``, ``on`` or ``off``.
        due: an update came that the cache has to be reset for.
        resets: times that the whole prefix cache was reset, by whoever.
        skipped: why the last reset that was due was not done; empty if it was.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.value = CALLER
        self.due = False
        self.resets = 0
        self.skipped = ""

    def on_pause(self, mode: Any = "abort", clear_cache: Any = True) -> tuple[Any, Any] | None:
        """``EngineCore.pause_scheduler(mode, clear_cache)``: the arguments to use instead; None for the caller's."""
        return (mode, False) if self.value == "off" and clear_cache else None

    def on_reset(self, done: Any, *_args: Any, **_kwargs: Any) -> None:
        """``Scheduler.reset_prefix_cache(...) -> bool``."""
        self.resets += bool(done)

    def on_weights(self) -> None:
        """The weights have changed, or may have."""
        self.due = self.value == "on"

    def facts(self) -> dict[str, str]:
        """For the fingerprint."""
        found = {"prefix cache resets": str(self.resets)}
        return found | {"prefix cache not reset": self.skipped} if self.skipped else found
