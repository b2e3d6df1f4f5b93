"""The engine side of every flag: how it is read from the live objects, and how it is set.

Decisions depend on the objects, never on version numbers. A new flag is one entry in ``contract/flags.py`` and one
``FlagControl`` here. The control of a flag that lives in the workers comes from ``worker_control``, with an entry in
``workers/one_rank.py``.
"""

from __future__ import annotations

import functools
from collections import deque

from rltop.collectors.vllm.control.engine_checks import is_async, stages
from rltop.collectors.vllm.engine_core import CoreAccess, FlagControl, SwitchError, evict_unreferenced, preempt_all
from rltop.collectors.vllm.patches import PAUSING, is_patched
from rltop.collectors.vllm.workers.one_rank import RUNNER_ASYNC

DEPTH_1, STRICT = "depth 1", "strict"

# --- prefix_caching -----------------------------------------------------------------------------------------------


def _caching(core: CoreAccess) -> str | None:
    """As set on the live KV cache manager."""
    enabled = getattr(getattr(core.engine.scheduler, "kv_cache_manager", None), "enable_caching", None)
    return None if enabled is None else ("on" if enabled else "off")


def _set_caching(core: CoreAccess, value: str, _strict: bool) -> None:
    """Evict every hashed block that no request references, then set ``enable_caching``.

    ``enable_caching`` of the pool and the coordinator stay unchanged: with those off, reused blocks would keep their
    hash, and a later "on" would read wrong KV.
    """
    manager = core.engine.scheduler.kv_cache_manager
    evict_unreferenced(manager)
    manager.enable_caching = value == "on"


# --- async_scheduling ---------------------------------------------------------------------------------------------


def _form(core: CoreAccess) -> str | None:
    """``on``, ``depth 1``, ``strict``, or ``mixed`` if the parts differ; None if the engine was launched without it."""
    engine = core.engine
    if not is_async(core.scheduler_class) or getattr(engine, "batch_queue", None) is None:
        return None
    deep = engine.batch_queue_size > stages(core)
    strict = {type(engine.scheduler) is not core.scheduler_class, not engine.async_scheduling}
    if (runners := core.workers.read(RUNNER_ASYNC)) is not None:
        strict.add(runners == "off")
    if runners == "mixed" or len(strict) > 1 or (deep and True in strict):
        return "mixed"
    return "on" if deep else STRICT if True in strict else DEPTH_1


def _scheduling(core: CoreAccess) -> str | None:
    form = _form(core)
    return form if form in {"on", "mixed"} else "off"


def _scheduling_detail(core: CoreAccess) -> str:
    form = _form(core)
    return form if form in {DEPTH_1, STRICT} else ""


def _set_scheduling(core: CoreAccess, value: str, strict: bool) -> None:
    """Set the queue depth; at depth 1 the same step function schedules, executes, waits and updates step by step."""
    engine = core.engine
    if engine.batch_queue:
        raise SwitchError("the batch queue is not empty")
    strict_off = value == "off" and strict
    if strict_off or _form(core) in {STRICT, "mixed"}:
        _set_strict(core, strict_off)
    depth = core.depth if value == "on" else stages(core)
    engine.batch_queue_size, engine.batch_queue = depth, deque(maxlen=depth)


def _set_strict(core: CoreAccess, strict_off: bool) -> None:
    """Set everything that reads the setting: as if launched with it off, or as launched.

    Running requests are preempted, because the rows of the runners' batch have another meaning in the other mode; the
    runners get the token ids for which they held placeholders. The two scheduler classes differ only in methods. The
    copy thread of multiprocess workers stays: it passes on any output.
    """
    engine = core.engine
    preempt_all(engine)
    if core.workers.read(RUNNER_ASYNC) is not None:
        tokens = {name: list(request.output_token_ids) for name, request in engine.scheduler.requests.items()}
        if fault := core.workers.write(RUNNER_ASYNC, "off" if strict_off else "on", tokens):
            raise SwitchError(fault)
    engine.scheduler.__class__ = core.scheduler_class.__bases__[0] if strict_off else core.scheduler_class
    engine.async_scheduling = not strict_off


# --- update_clears_cache ------------------------------------------------------------------------------------------


def _policy(core: CoreAccess) -> str | None:
    """The policy, if the live engine's pauses go through the collector; else ``caller``."""
    if getattr(core.engine, PAUSING.method, None) is None:
        return None
    return core.policy.value if is_patched(core.engine, PAUSING.method) else "caller"


def _set_policy(core: CoreAccess, value: str, _strict: bool) -> None:
    """Takes effect at the next pause or weight update."""
    core.policy.value = value
    core.policy.due = False


# --- flags of the workers -----------------------------------------------------------------------------------------


def _read_workers(flag: str, core: CoreAccess) -> str | None:
    return core.workers.read(flag)


def _write_workers(flag: str, core: CoreAccess, value: str, _strict: bool) -> None:
    if fault := core.workers.write(flag, value):
        raise SwitchError(fault)


def _note_workers(flag: str, core: CoreAccess) -> str:
    return core.workers.note(flag)


def worker_control(flag: str) -> FlagControl:
    """The control of a flag that lives in the workers; see ``one_rank``."""
    return FlagControl(
        read=functools.partial(_read_workers, flag),
        write=functools.partial(_write_workers, flag),
        note=functools.partial(_note_workers, flag),
    )


CONTROLS: dict[str, FlagControl] = {
    "prefix_caching": FlagControl(_caching, _set_caching),
    "async_scheduling": FlagControl(_scheduling, _set_scheduling, _scheduling_detail),
    "logprobs_mode": worker_control("logprobs_mode"),
    "lm_head_fp32": worker_control("lm_head_fp32"),
    "update_clears_cache": FlagControl(_policy, _set_policy),
}
"""By flag name."""
