"""Building blocks of switches: access to the engine core, a control per flag, and shared operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rltop.collectors.vllm import in_process
from rltop.collectors.vllm.control.update_policy import UpdatePolicy
from rltop.collectors.vllm.patches import BOUNDARY, CALLERS_STEP, why_unusable
from rltop.collectors.vllm.workers.all_ranks import Workers


class SwitchError(RuntimeError):
    """A switch did not take effect on the live objects; the previous state is restored."""


@dataclass
class CoreAccess:
    """One engine core, as the switches access it. Create it before the engine takes requests: it queries the workers.

    Attributes:
        engine: vLLM's engine core.
        workers: all its ranks.
        policy: whether weight updates reset the prefix cache.
        scheduler_class: class of the scheduler at launch.
        depth: depth of the batch queue at launch.
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


def no_text(_core: CoreAccess) -> str:
    """An empty detail or note."""
    return ""


@dataclass(frozen=True)
class FlagControl:
    """The engine side of one flag.

    Attributes:
        read: the value; None if this engine has no such setting. From any thread.
        write: set it, completely or not at all: ``write(core, value, strict)``. On the engine's thread, queue drained.
        detail: form of the value, if there are several; else empty. From any thread.
        note: additional information about an applied switch; may be empty.
    """

    read: Callable[[CoreAccess], str | None]
    write: Callable[[CoreAccess, str, bool], None]
    detail: Callable[[CoreAccess], str] = no_text
    note: Callable[[CoreAccess], str] = no_text


def why_no_boundary(engine: Any) -> str:
    """Why this engine has no usable step boundary; empty if it has one."""
    inside = in_process.is_in_process(engine)
    if inside and (fault := in_process.why_no_switch(engine)):
        return fault
    if fault := why_unusable(CALLERS_STEP if inside else BOUNDARY, engine):
        return f"no step boundary on this vLLM: {fault}"
    return ""


def evict_unreferenced(manager: Any) -> tuple[int, int]:
    """Evict every hashed block that no request references; return how many were evicted and how many remain.

    An evicted block can't be hit any more. It was free before, and its content stays until the block is reused.
    """
    unreferenced, referenced = hashed_blocks(manager)
    manager.block_pool.evict_blocks(unreferenced)
    return len(unreferenced), referenced


def hashed_blocks(manager: Any) -> tuple[set[int], int]:
    """Ids of the hashed blocks that no request references, and the number of referenced ones."""
    hashed = [block for block in manager.block_pool.blocks if block.block_hash is not None]
    unreferenced = {block.block_id for block in hashed if block.ref_cnt == 0}
    return unreferenced, len(hashed) - len(unreferenced)


def preempt_all(engine: Any) -> None:
    """Preempt every running request, to be recomputed, by vLLM's own reset of the prefix cache. Drain the queue first.

    Callers check ``flags.PREEMPTION`` first: the reset raises only after it has preempted some requests.
    """
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
