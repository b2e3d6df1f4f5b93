"""What a switch is made of: the objects it works on, a control per flag, and what several of them need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rltop.collectors.vllm.control.update_policy import UpdatePolicy
from rltop.collectors.vllm.patches import BOUNDARY, fault_of
from rltop.collectors.vllm.workers.all_ranks import Workers


class SwitchError(RuntimeError):
    """The live objects did not do what the switch expected; everything is as it was before."""


@dataclass
class CoreAccess:
    """One engine core as the switches see it. Made before the engine takes work: it asks the workers.

    Attributes:
        engine: vLLM's engine core.
        workers: all its ranks.
        policy: what weight updates do to the cache.
        scheduler_class: of the scheduler as launched.
        depth: of the batch queue as launched.
    """

    engine: Any
    workers: Workers = field(init=False)
    policy: UpdatePolicy = field(init=False)
    scheduler_class: type = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.engine)
        self.policy = UpdatePolicy(self.engine)
        self.scheduler_class = type(self.engine.scheduler)
        self.depth = getattr(self.engine, "batch_queue_size", 1)
        self.workers.refresh()


def nothing(_core: CoreAccess) -> str:
    """Nothing to add."""
    return ""


@dataclass(frozen=True)
class FlagControl:
    """The engine's side of one flag.

    Attributes:
        read: the value, or None where this engine has no such thing. From any thread.
        write: set it, whole or not at all: ``write(core, value, strict)``. On the engine's thread, the queue drained.
        detail: which form of the value it is, where there are several. From any thread.
        note: what else there is to say of an applied switch; often empty.
    """

    read: Callable[[CoreAccess], str | None]
    write: Callable[[CoreAccess, str, bool], None]
    detail: Callable[[CoreAccess], str] = nothing
    note: Callable[[CoreAccess], str] = nothing


def no_boundary(engine: Any) -> str:
    """Why nothing can be run between two steps of this engine; empty if it can."""
    if not hasattr(engine, "_process_engine_step") or not hasattr(engine, "input_queue"):
        return "an engine inside its caller's process has no step boundary; unset VLLM_ENABLE_V1_MULTIPROCESSING=0"
    if fault := fault_of(BOUNDARY, engine):
        return f"no step boundary that is known here: {fault}"
    return ""


def evict_unheld(manager: Any) -> tuple[int, int]:
    """Evict every hashed block that no request holds: how many those were, and how many stay because one does.

    What is evicted can't be hit any more, and is free as before: its content stays for whoever still copies it.
    """
    pool = manager.block_pool
    unheld, held = split_hashed(manager)
    pool.evict_blocks(unheld)
    return len(unheld), held


def split_hashed(manager: Any) -> tuple[set[int], int]:
    """Ids of the hashed blocks that no request holds, and how many are held."""
    hashed = [block for block in manager.block_pool.blocks if block.block_hash is not None]
    unheld = {block.block_id for block in hashed if block.ref_cnt == 0}
    return unheld, len(hashed) - len(unheld)


def preempt_all(engine: Any) -> None:
    """Have every running request computed anew, by vLLM's own reset of the prefix cache. The batch queue is drained.

    Callers check ``flags.PREEMPTION`` first: the reset raises only after it has preempted some.
    """
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
