"""Flags on a worker's model runner: methods of every worker to read and write them.

The engine core calls them by name through vLLM's ``collective_rpc``. They never raise: an exception on one rank would
leave the answers of the others in vLLM's queue, and the next call would return them as its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.vllm.workers import lm_head, logprobs_mode, weight_digest, weight_sketches, weight_watch
from rltop.collectors.vllm.workers.rank_checks import CHECKS

READ = "rltop_read_flags"
WRITE = "rltop_write_flag"
RUNNER_ASYNC = "async_scheduling"
"""The part of this flag that lives on the model runner."""

Answer = dict[str, Any]
"""One rank's answer for one flag: ``value``, ``violated`` (findings by precondition), ``note``, ``facts``. Empty if
this rank does not have the flag."""


def no_note(_runner: Any) -> str:
    """Empty: a switch has an effect."""
    return ""


def no_facts(_runner: Any) -> dict[str, str]:
    """No facts."""
    return {}


def on_every_rank(_runner: Any) -> bool:
    """Every rank has the flag."""
    return True


def on_last_stage(runner: Any) -> bool:
    """Whether this rank is on the last pipeline stage, the only one with a head and a sampler in use.

    V1's runner creates a sampler on every stage, but calls only that of the last one.
    """
    if getattr(getattr(runner.vllm_config, "parallel_config", None), "pipeline_parallel_size", 1) == 1:
        return True
    known = getattr(runner, "is_last_pp_rank", None)  # V2's
    if known is None:
        known = sys.modules["vllm.distributed.parallel_state"].get_pp_group().is_last_rank
    return bool(known)


@dataclass(frozen=True)
class RankFlag:
    """The part of one flag that lives on a model runner.

    Attributes:
        read: the value; None if this runner has no such setting.
        write: set it: ``write(runner, value, extra)``, with additional data from the engine core.
        note: why a switch has no effect; empty if it has one.
        facts: facts for the fingerprint.
        present: whether this rank has the flag; if not, it is neither read nor written.
    """

    read: Callable[[Any], str | None]
    write: Callable[[Any, str, Any], None]
    note: Callable[[Any], str] = no_note
    facts: Callable[[Any], dict[str, str]] = no_facts
    present: Callable[[Any], bool] = on_every_rank


def _read_async(runner: Any) -> str | None:
    """V1's runner has the setting; V2's has none and inspects its inputs."""
    found = getattr(runner, "use_async_scheduling", None)
    return None if found is None else ("on" if found else "off")


CARRIED = ("prev_sampled_token_ids", "prev_req_id_to_index", "sampled_token_ids_cpu", "async_copy_ready_event")
"""State that V1's input batch carries from one asynchronous step to the next."""


def _write_async(runner: Any, value: str, tokens: dict[str, list[int]]) -> None:
    """Set the flag while no request is in the batch: all were preempted, and resume from the token ids stored here.

    Under async scheduling the runner stores placeholders (-1), which only an asynchronous step would replace.
    """
    for name in CARRIED:
        if hasattr(runner.input_batch, name):
            setattr(runner.input_batch, name, None)
    for name, sampled in tokens.items():
        if name in runner.requests:
            runner.requests[name].output_token_ids = list(sampled)
    runner.use_async_scheduling = value == "on"


PARTS: dict[str, RankFlag] = {
    "logprobs_mode": RankFlag(
        logprobs_mode.read, logprobs_mode.write, facts=logprobs_mode.facts, present=on_last_stage
    ),
    "lm_head_fp32": RankFlag(lm_head.read, lm_head.write, lm_head.note, lm_head.facts, on_last_stage),
    RUNNER_ASYNC: RankFlag(_read_async, _write_async),
}
"""By flag name."""


def read_flags(worker: Any) -> dict[str, Answer]:
    """The answers of this rank for every flag."""
    return {name: _answer(name, worker) for name in PARTS}


def write_flag(worker: Any, name: str, value: str, extra: Any = None) -> Answer:
    """Set one flag on this rank; return its answer with ``error``. If one rank fails, the engine restores all."""
    try:
        if PARTS[name].present(worker.model_runner):
            PARTS[name].write(worker.model_runner, value, extra)
        error = ""
    except Exception as fault:  # noqa: BLE001 - see the module's docstring
        error = f"{type(fault).__name__}: {fault}"
    return _answer(name, worker) | {"error": error}


def _answer(name: str, worker: Any) -> Answer:
    flag, part = BY_NAME[name], PARTS[name]
    names = [name for name in flag.preconditions + flag.strict_preconditions if name in CHECKS]
    violated: dict[str, str] = {}
    try:
        runner = worker.model_runner
        if not part.present(runner):
            return {}
        for name in names:
            if finding := CHECKS[name](runner):
                violated[name] = finding
                break  # later checks rely on earlier ones
        usable = not violated
        return {
            "value": part.read(runner),
            "violated": violated,
            "note": part.note(runner) if usable else "",
            "facts": part.facts(runner) if usable else {},
        }
    except Exception as fault:  # noqa: BLE001 - see the module's docstring
        violated = {name: f"{type(fault).__name__}: {fault}" for name in names[:1]}
        return {"value": None, "violated": violated, "note": "", "facts": {}}


METHODS: dict[str, Callable[..., Any]] = {
    READ: read_flags,
    WRITE: write_flag,
    weight_digest.DIGEST: weight_digest.digest,
    weight_digest.FREE_BYTES: weight_digest.free_bytes,
    weight_watch.REPORT: weight_watch.report,
    weight_sketches.SKETCH: weight_sketches.sketch_weights,
}
"""The methods that are added to every worker, by name."""
