"""The switches of the scheduler: the prefix cache, and how many batches are under way at once."""

from __future__ import annotations

from collections import deque
from typing import Any

from rltop.collectors.vllm.switch import SwitchError, common_obstacle, launch


class PrefixCaching:
    """Whether prompts are looked up in the prefix cache."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def refresh(self) -> None:
        """All of it can be read from any thread."""

    def read(self) -> str | None:
        """As the live manager has it."""
        enabled = getattr(getattr(self._engine.scheduler, "kv_cache_manager", None), "enable_caching", None)
        return None if enabled is None else ("on" if enabled else "off")

    def obstacle(self) -> str:
        """Started without block hashes, or with a cache of a kind not proven."""
        engine = self._engine
        if common := common_obstacle(engine):
            return common
        manager = getattr(engine.scheduler, "kv_cache_manager", None)
        coordinator = type(getattr(manager, "coordinator", None)).__name__
        pool = getattr(manager, "block_pool", None)
        if coordinator == "KVCacheCoordinatorNoPrefixCache" or not getattr(pool, "enable_caching", False):
            return launch("prefix_caching", "started with prefix caching off: there are no block hashes to look up")
        if coordinator != "UnitaryKVCacheCoordinator":
            return f"not proven for {coordinator} (hybrid attention or Mamba)"
        if not all(hasattr(pool, name) for name in ("blocks", "evict_blocks")):
            return "this vLLM's block pool can't evict single blocks"
        if getattr(engine, "request_block_hasher", None) is None:
            return launch("prefix_caching", "requests are not hashed on this engine")
        return ""

    def write(self, value: str) -> None:
        """Both ways evict every hashed block that no request holds, so that nothing of before is ever hit.

        The pool's and the coordinator's own ``enable_caching`` stay as they are: with those off, reused blocks keep
        their hash, and a later "on" would read wrong KV.
        """
        manager = self._engine.scheduler.kv_cache_manager
        pool = manager.block_pool
        unheld = {block.block_id for block in pool.blocks if block.ref_cnt == 0 and block.block_hash is not None}
        pool.evict_blocks(unheld)
        manager.enable_caching = value == "on"

    def note(self) -> str:
        """Nothing to add."""
        return ""


def is_async(engine: Any) -> bool:
    """Whether the engine was started with async scheduling: its scheduler is an ``AsyncScheduler``."""
    return any(base.__name__ == "AsyncScheduler" for base in type(engine.scheduler).__mro__)


class AsyncScheduling:
    """How deep the batch queue is: as launched, or one batch per pipeline stage."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def refresh(self) -> None:
        """All of it can be read from any thread."""

    def _depths(self) -> tuple[int, int]:
        """Depth of the batch queue with the flag off (pipeline stages) and on (as launched)."""
        config = self._engine.vllm_config
        return config.parallel_config.pipeline_parallel_size, config.max_concurrent_batches

    def read(self) -> str | None:
        """By the depth of the live queue."""
        engine = self._engine
        if not is_async(engine) or getattr(engine, "batch_queue", None) is None:
            return "off"
        return "on" if engine.batch_queue_size > self._depths()[0] else "off"

    def obstacle(self) -> str:
        """Started without it, or with drafts that travel with the batches."""
        engine = self._engine
        if common := common_obstacle(engine):
            return common
        if not is_async(engine):
            kind = type(engine.scheduler).__name__
            return launch("async_scheduling", f"started with it off: the scheduler is a {kind}")
        if getattr(engine, "batch_queue", None) is None:
            return launch("async_scheduling", "started without a batch queue")
        if getattr(engine.vllm_config, "speculative_config", None) is not None:
            return "speculative decoding is on: draft tokens travel with the batches in flight"
        if getattr(engine, "check_for_draft_tokens", False):
            return "this model drafts tokens, which travel with the batches in flight"
        off, on = self._depths()
        if off >= on:
            return f"the batch queue is {on} deep either way (pipeline stages)"
        return ""

    def write(self, value: str) -> None:
        """Depth 1 makes the same step function schedule, execute, wait, update: one step at a time."""
        engine = self._engine
        if engine.batch_queue:
            raise SwitchError("the batch queue is not empty")
        off, on = self._depths()
        before = engine.batch_queue_size, engine.batch_queue
        depth = on if value == "on" else off
        engine.batch_queue_size, engine.batch_queue = depth, deque(maxlen=depth)
        if engine.batch_queue.maxlen != engine.batch_queue_size:
            engine.batch_queue_size, engine.batch_queue = before
            raise SwitchError("the batch queue could not be renewed")

    def note(self) -> str:
        """Nothing to add."""
        return ""
