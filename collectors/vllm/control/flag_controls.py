"""The engine's side of every flag: how it is read on the live objects, and how it is set.

Everything is probed on the objects, never on version numbers. A new flag is one entry in ``contract/flags.py`` and one
``FlagControl`` here; a flag that lives in the workers gets its control from ``of_workers`` and a part in ``one_rank.py``.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

from rltop.collectors.vllm.control.engine_checks import is_async, stages
from rltop.collectors.vllm.engine_core import CoreAccess, FlagControl, SwitchError, evict_unheld, preempt_all
from rltop.collectors.vllm.patches import PAUSING, is_tapped
from rltop.collectors.vllm.workers.one_rank import RUNNER_ASYNC

DEPTH_1, STRICT = "depth 1", "strict"

# --- prefix_caching -----------------------------------------------------------------------------------------------


def _caching(core: CoreAccess) -> str | None:
    """As the live manager has it."""
    enabled = getattr(getattr(core.engine.scheduler, "kv_cache_manager", None), "enable_caching", None)
    return None if enabled is None else ("on" if enabled else "off")


def _set_caching(core: CoreAccess, value: str, _strict: bool) -> None:
    """Both ways evict every hashed block that no request holds; of before, only what requests hold can be hit.

    The pool's and the coordinator's own ``enable_caching`` stay as they are: with those off, reused blocks keep
    their hash, and a later "on" would read wrong KV.
    """
    manager = core.engine.scheduler.kv_cache_manager
    evict_unheld(manager)
    manager.enable_caching = value == "on"


# --- async_scheduling ---------------------------------------------------------------------------------------------


def _form(core: CoreAccess) -> str | None:
    """``on``, ``depth 1``, ``strict``, ``mixed`` where the parts differ; None where the engine was launched without."""
    engine = core.engine
    if not is_async(core.scheduler_class) or getattr(engine, "batch_queue", None) is None:
        return None
    deep = engine.batch_queue_size > stages(core)
    full = {type(engine.scheduler) is not core.scheduler_class, not engine.async_scheduling}
    if (runners := core.workers.read(RUNNER_ASYNC)) is not None:
        full.add(runners == "off")
    if runners == "mixed" or len(full) > 1 or (deep and True in full):
        return "mixed"
    return "on" if deep else STRICT if True in full else DEPTH_1


def _scheduling(core: CoreAccess) -> str | None:
    form = _form(core)
    return form if form in {"on", "mixed"} else "off"


def _scheduling_detail(core: CoreAccess) -> str:
    form = _form(core)
    return form if form in {DEPTH_1, STRICT} else ""


def _set_scheduling(core: CoreAccess, value: str, strict: bool) -> None:
    """Depth 1 makes the same step function schedule, execute, wait, update: one step at a time."""
    engine = core.engine
    if engine.batch_queue:
        raise SwitchError("the batch queue is not empty")
    full = value == "off" and strict
    if full or _form(core) in {STRICT, "mixed"}:
        _set_strict(core, full)
    depth = core.depth if value == "on" else stages(core)
    engine.batch_queue_size, engine.batch_queue = depth, deque(maxlen=depth)


def _set_strict(core: CoreAccess, full: bool) -> None:
    """Everything that reads the setting, as if launched so or as launched.

    Running requests are preempted, so that none is left in the runners' batch, whose rows mean something else either
    way; the runners get the tokens which they held as placeholders. The scheduler's two classes differ in methods
    alone. What stays is the copy thread of multiprocess workers, which hands over what it is given.
    """
    engine = core.engine
    preempt_all(engine)
    if core.workers.read(RUNNER_ASYNC) is not None:
        tokens = {name: list(request.output_token_ids) for name, request in engine.scheduler.requests.items()}
        if fault := core.workers.write(RUNNER_ASYNC, "off" if full else "on", tokens):
            raise SwitchError(fault)
    engine.scheduler.__class__ = core.scheduler_class.__bases__[0] if full else core.scheduler_class
    engine.async_scheduling = not full


# --- update_clears_cache ------------------------------------------------------------------------------------------


def _policy(core: CoreAccess) -> str | None:
    """The policy, if the live engine's pauses do go through ours."""
    if getattr(core.engine, PAUSING.method, None) is None:
        return None
    return core.policy.value if is_tapped(core.engine, PAUSING.method) else "caller"


def _set_policy(core: CoreAccess, value: str, _strict: bool) -> None:
    """From the next pause or update on."""
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


def of_workers(flag: str) -> FlagControl:
    """The control of a flag whose parts are in ``worker.PARTS``."""
    parts: list[Any] = [functools.partial(part, flag) for part in (_read_workers, _write_workers, _note_workers)]
    return FlagControl(read=parts[0], write=parts[1], note=parts[2])


CONTROLS: dict[str, FlagControl] = {
    "prefix_caching": FlagControl(_caching, _set_caching),
    "async_scheduling": FlagControl(_scheduling, _set_scheduling, _scheduling_detail),
    "logprobs_mode": of_workers("logprobs_mode"),
    "lm_head_fp32": of_workers("lm_head_fp32"),
    "update_clears_cache": FlagControl(_policy, _set_policy),
}
"""By the name of the flag."""
