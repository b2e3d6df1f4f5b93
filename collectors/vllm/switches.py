"""The switches: what each flag is on the live objects of an engine, when it may change, and how.

Everything is probed on the objects, never on version numbers. A switch runs on the engine's own thread between two
steps, with the batch queue drained, so that tokens of batches in flight belong to the time before it; it is whole or
undone; and what counts is the read-back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.flags import BY_NAME
from rltop.collectors.vllm.seams import HostFailure
from rltop.collectors.wire import FlagState


class SwitchError(RuntimeError):
    """The live objects did not do what the switch expected; everything is as it was before."""


@dataclass(frozen=True)
class Switch:
    """One flag on an engine core.

    Attributes:
        read: ``on``, ``off``, or None where the engine has no such thing.
        obstacle: why it can't be switched on this engine now; empty if it can. Only reads, so safe from any thread.
        write: sets it, whole or not at all.
    """

    read: Callable[[Any], str | None]
    obstacle: Callable[[Any], str]
    write: Callable[[Any, str], None]


def _launch(flag: str, reason: str) -> str:
    return f"{reason}; start the engine with {BY_NAME[flag].launch}"


def _common_obstacle(engine: Any) -> str:
    if not hasattr(engine, "_process_engine_step"):
        return "an engine inside its caller's process has no step boundary; unset VLLM_ENABLE_V1_MULTIPROCESSING=0"
    if getattr(engine.scheduler, "connector", None) is not None:
        return "a KV connector is in use, whose own cache and transfers this switch does not cover"
    return ""


# --- prefix_caching ----------------------------------------------------------------------------------------------


def _read_prefix(engine: Any) -> str | None:
    enabled = getattr(getattr(engine.scheduler, "kv_cache_manager", None), "enable_caching", None)
    return None if enabled is None else ("on" if enabled else "off")


def _prefix_obstacle(engine: Any) -> str:
    if common := _common_obstacle(engine):
        return common
    manager = getattr(engine.scheduler, "kv_cache_manager", None)
    coordinator = type(getattr(manager, "coordinator", None)).__name__
    pool = getattr(manager, "block_pool", None)
    if coordinator == "KVCacheCoordinatorNoPrefixCache" or not getattr(pool, "enable_caching", False):
        return _launch("prefix_caching", "started with prefix caching off: there are no block hashes to look up")
    if coordinator != "UnitaryKVCacheCoordinator":
        return f"not proven for {coordinator} (hybrid attention or Mamba)"
    if not all(hasattr(pool, name) for name in ("blocks", "evict_blocks")):
        return "this vLLM's block pool can't evict single blocks"
    if getattr(engine, "request_block_hasher", None) is None:
        return _launch("prefix_caching", "requests are not hashed on this engine")
    return ""


def _write_prefix(engine: Any, value: str) -> None:
    """Both ways evict every hashed block that no request holds, so that nothing of before is ever hit.

    The pool's and the coordinator's own ``enable_caching`` stay as they are: with those off, reused blocks keep their
    hash, and a later "on" would read wrong KV.
    """
    manager = engine.scheduler.kv_cache_manager
    pool = manager.block_pool
    unheld = {block.block_id for block in pool.blocks if block.ref_cnt == 0 and block.block_hash is not None}
    pool.evict_blocks(unheld)
    manager.enable_caching = value == "on"


# --- async_scheduling --------------------------------------------------------------------------------------------


def _depths(engine: Any) -> tuple[int, int]:
    """Depth of the batch queue with the flag off (pipeline stages) and on (as launched)."""
    config = engine.vllm_config
    return config.parallel_config.pipeline_parallel_size, config.max_concurrent_batches


def is_async(engine: Any) -> bool:
    """Whether the engine was started with async scheduling: its scheduler is an ``AsyncScheduler``."""
    return any(base.__name__ == "AsyncScheduler" for base in type(engine.scheduler).__mro__)


def _read_async(engine: Any) -> str | None:
    if not is_async(engine) or getattr(engine, "batch_queue", None) is None:
        return "off"
    return "on" if engine.batch_queue_size > _depths(engine)[0] else "off"


def _async_obstacle(engine: Any) -> str:
    if common := _common_obstacle(engine):
        return common
    if not is_async(engine):
        return _launch("async_scheduling", f"started with it off: the scheduler is a {type(engine.scheduler).__name__}")
    if getattr(engine, "batch_queue", None) is None:
        return _launch("async_scheduling", "started without a batch queue")
    if getattr(engine.vllm_config, "speculative_config", None) is not None:
        return "speculative decoding is on: draft tokens travel with the batches in flight"
    if getattr(engine, "check_for_draft_tokens", False):
        return "this model drafts tokens, which travel with the batches in flight"
    off, on = _depths(engine)
    if off >= on:
        return f"the batch queue is {on} deep either way (pipeline stages)"
    return ""


def _write_async(engine: Any, value: str) -> None:
    """Depth 1 makes the same step function schedule, execute, wait, update: one step at a time."""
    if engine.batch_queue:
        raise SwitchError("the batch queue is not empty")
    off, on = _depths(engine)
    before = engine.batch_queue_size, engine.batch_queue
    depth = on if value == "on" else off
    engine.batch_queue_size, engine.batch_queue = depth, deque(maxlen=depth)
    if engine.batch_queue.maxlen != engine.batch_queue_size:
        engine.batch_queue_size, engine.batch_queue = before
        raise SwitchError("the batch queue could not be renewed")


SWITCHES: dict[str, Switch] = {
    "prefix_caching": Switch(_read_prefix, _prefix_obstacle, _write_prefix),
    "async_scheduling": Switch(_read_async, _async_obstacle, _write_async),
}


def states(engine: Any) -> dict[str, FlagState]:
    """Every flag as it stands. Only reads."""
    found = {}
    for name, switch in SWITCHES.items():
        obstacle = switch.obstacle(engine)
        found[name] = FlagState(switch.read(engine), not obstacle, obstacle)
    return found


def drain(engine: Any) -> None:
    """Finish the batches in flight and schedule none, by the engine's own step.

    Raises:
        HostFailure: the engine's own code raised; its batch is gone, so the engine must know.
    """
    scheduler = engine.scheduler
    shadowed = vars(scheduler).get("has_requests")
    scheduler.has_requests = lambda: False
    try:
        while getattr(engine, "batch_queue", None):
            engine._process_engine_step()
    except Exception as error:
        raise HostFailure(error) from error
    finally:
        if shadowed is None:
            del scheduler.has_requests
        else:
            scheduler.has_requests = shadowed


def flip(engine: Any, flag: str, value: str) -> None:
    """Drain, switch, read back.

    Raises:
        SwitchError: it did not take; the old value is back in place.
        HostFailure: see ``drain``.
    """
    switch = SWITCHES[flag]
    drain(engine)
    old = switch.read(engine)
    try:
        switch.write(engine, value)
        if switch.read(engine) != value:
            raise SwitchError(f"the engine still reads {switch.read(engine)} after the switch")
    except Exception:
        if old is not None and switch.read(engine) != old:
            switch.write(engine, old)
        raise
