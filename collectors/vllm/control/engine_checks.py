"""Checks of ``contract/preconditions.py`` on the engine core. Each returns its finding; empty if the precondition holds.

They inspect objects, never version numbers, and may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rltop.collectors.contract.preconditions import registry
from rltop.collectors.vllm.engine_core import CoreAccess, why_no_boundary
from rltop.collectors.vllm.patches import PAUSING, RPC, is_patched, why_steps_unseen, why_unusable

CHECKS: dict[str, Callable[[CoreAccess], str]] = {}
"""By the name of the precondition."""

check = registry(CHECKS)


def _requests(core: CoreAccess) -> list[Any]:
    """The scheduler's requests, running or waiting; a copy, because the engine's thread changes them."""
    return list(core.engine.scheduler.requests.values())


def _count(requests: list[Any]) -> str:
    return f"{len(requests)} request{'s' * (len(requests) > 1)}" if requests else ""


def _config(core: CoreAccess, *path: str) -> Any:
    """An entry of vLLM's configuration; None if this vLLM has none."""
    value: Any = core.engine.vllm_config
    for name in path:
        value = getattr(value, name, None)
    return value


# --- every switch -------------------------------------------------------------------------------------------------


@check("boundary")
def boundary(core: CoreAccess) -> str:
    return why_no_boundary(core.engine)


@check("sees_steps")
def sees_steps(core: CoreAccess) -> str:
    return why_steps_unseen(core.engine)


# --- the scheduler ------------------------------------------------------------------------------------------------


@check("no_connector")
def no_connector(core: CoreAccess) -> str:
    connector = getattr(core.engine.scheduler, "connector", None)
    return "" if connector is None else type(connector).__name__


@check("causal")
def causal(core: CoreAccess) -> str:
    groups = getattr(getattr(core.engine.scheduler, "kv_cache_config", None), "kv_cache_groups", ())
    if any(getattr(group.kv_cache_spec, "non_causal", False) for group in groups):
        return "attention layers that look ahead"
    return "encoder-decoder" if _config(core, "model_config", "is_encoder_decoder") else ""


def _cache_manager(core: CoreAccess) -> Any:
    return getattr(core.engine.scheduler, "kv_cache_manager", None)


def _coordinator(core: CoreAccess) -> str:
    return type(getattr(_cache_manager(core), "coordinator", None)).__name__


@check("launched_caching")
def launched_caching(core: CoreAccess) -> str:
    if "NoPrefixCache" in _coordinator(core):
        return _coordinator(core)
    if not getattr(getattr(_cache_manager(core), "block_pool", None), "enable_caching", False):
        return "its block pool does not cache"
    return "no request_block_hasher" if getattr(core.engine, "request_block_hasher", None) is None else ""


@check("one_kind_of_cache")
def one_kind_of_cache(core: CoreAccess) -> str:
    found = _coordinator(core)
    return "" if found in {"UnitaryKVCacheCoordinator", "KVCacheCoordinatorNoPrefixCache"} else found


@check("evictable_blocks")
def evictable_blocks(core: CoreAccess) -> str:
    pool = getattr(_cache_manager(core), "block_pool", None)
    return ", ".join(name for name in ("blocks", "evict_blocks") if not hasattr(pool, name))


@check("launched_async")
def launched_async(core: CoreAccess) -> str:
    return "" if is_async(core.scheduler_class) else core.scheduler_class.__name__


def is_async(scheduler_class: type) -> bool:
    """Whether an engine with this scheduler was started with async scheduling."""
    return any(base.__name__ == "AsyncScheduler" for base in scheduler_class.__mro__)


@check("batch_queue")
def batch_queue(core: CoreAccess) -> str:
    return "none" if getattr(core.engine, "batch_queue", None) is None else ""


@check("no_speculation")
def no_speculation(core: CoreAccess) -> str:
    found = _config(core, "speculative_config")
    return "" if found is None else str(getattr(found, "method", type(found).__name__))


@check("no_drafts")
def no_drafts(core: CoreAccess) -> str:
    return "yes" if getattr(core.engine, "check_for_draft_tokens", False) else ""


@check("depth_to_spare")
def depth_to_spare(core: CoreAccess) -> str:
    return str(core.depth) if core.depth <= stages(core) else ""


def stages(core: CoreAccess) -> int:
    """Pipeline stages: the number of batches in flight without async scheduling."""
    return int(_config(core, "parallel_config", "pipeline_parallel_size") or 1)


# --- preempting every running request -----------------------------------------------------------------------------


@check("none_waits_with_kv")
def none_waits_with_kv(core: CoreAccess) -> str:
    """As ``Scheduler._holds_kv_blocks``, for requests that do not run."""
    waiting = [r for r in _requests(core) if str(r.status) != "RUNNING"]
    return _count([r for r in waiting if "REMOTE_KV" in str(r.status) or r.num_computed_tokens > 0])


@check("none_finishes_in_pause")
def none_finishes_in_pause(core: CoreAccess) -> str:
    """In a pause of mode ``wait`` preempted requests would be queued, and queued requests stay queued."""
    draining = getattr(getattr(core.engine.scheduler, "pause_state", None), "name", "") == "PAUSED_NEW"
    return _count(list(core.engine.scheduler.running)) if draining else ""


@check("preemption_keeps_tokens")
def preemption_keeps_tokens(core: CoreAccess) -> str:
    return _count([r for r in _requests(core) if hasattr(r, "discard_latest_async_tokens")])


@check("seeds_survive")
def seeds_survive(core: CoreAccess) -> str:
    """A chunk of a prefill resets its random generator to an offset, which generators on the CPU don't have."""
    if _config(core, "device_config", "device_type") != "cpu":
        return ""
    running = list(core.engine.scheduler.running)
    seeded = [r for r in running if getattr(r.sampling_params, "seed", None) is not None]
    budget = _config(core, "scheduler_config", "max_num_batched_tokens")
    longest = _config(core, "scheduler_config", "long_prefill_token_threshold") or budget
    fits = sum(r.num_tokens for r in running) <= budget and all(r.num_tokens <= longest for r in seeded)
    return "" if fits else _count(seeded) and f"{_count(seeded)} with seeds"


# --- the strict form of async_scheduling --------------------------------------------------------------------------


@check("one_stage")
def one_stage(core: CoreAccess) -> str:
    return str(stages(core)) if stages(core) > 1 else ""


@check("no_lockstep")
def no_lockstep(core: CoreAccess) -> str:
    return type(core.engine).__name__ if hasattr(core.engine, "dp_group") else ""


@check("known_scheduler")
def known_scheduler(core: CoreAccess) -> str:
    """Exactly vLLM's AsyncScheduler on Scheduler, without wrappers on methods in which the two differ."""
    found = core.scheduler_class
    own = found.__name__ == "AsyncScheduler" and [base.__name__ for base in found.__bases__] == ["Scheduler"]
    hidden = sorted(set(vars(found)) & set(vars(core.engine.scheduler)))
    return ", ".join(hidden) if own else found.__name__


@check("generates")
def generates(core: CoreAccess) -> str:
    kind = str(_config(core, "model_config", "runner_type") or "generate")
    return "" if kind == "generate" else kind


@check("no_structured_output")
def no_structured_output(core: CoreAccess) -> str:
    return _count([r for r in _requests(core) if getattr(r, "structured_output_request", None) is not None])


# --- the workers --------------------------------------------------------------------------------------------------


@check("workers_answer")
def workers_answer(core: CoreAccess) -> str:
    return core.workers.fault


@check("ranks_agree")
def ranks_agree(core: CoreAccess) -> str:
    return core.workers.differing()


@check("no_lora")
def no_lora(core: CoreAccess) -> str:
    found = _config(core, "lora_config")
    return "" if found is None else type(found).__name__


# --- weight updates -----------------------------------------------------------------------------------------------


@check("sees_updates")
def sees_updates(core: CoreAccess) -> str:
    for point in (PAUSING, RPC):
        if fault := why_unusable(point, core.engine):
            return f"{point.name}: {fault}"
        if not is_patched(core.engine, point.method):
            return f"calls of {point.method}"
    return ""


@check("no_sleep_mode")
def no_sleep_mode(core: CoreAccess) -> str:
    return "on" if _config(core, "model_config", "enable_sleep_mode") else ""


@check("text_only")
def text_only(core: CoreAccess) -> str:
    return "multimodal" if _config(core, "model_config", "is_multimodal_model") else ""
