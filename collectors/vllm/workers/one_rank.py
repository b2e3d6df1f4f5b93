"""What lives in a worker: what flags are on its model runner, and how they change.

Two methods of every worker, reached by name through vLLM's own ``collective_rpc``. Neither raises: an exception on one
rank would leave the answers of the others in vLLM's queue, where the next call would take them for its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.vllm.workers import lm_head, logprobs_mode, weight_digest
from rltop.collectors.vllm.workers.rank_checks import CHECKS

READ = "rltop_read_flags"
WRITE = "rltop_write_flag"
RUNNER_ASYNC = "async_scheduling"
"""The runner's part of that flag."""

Answer = dict[str, Any]
"""Of one rank for one flag: ``value``, ``lacking`` (what was found, by need), ``note``, ``facts``. Empty where the flag
is not applicable on this rank."""


def no_note(_runner: Any) -> str:
    """A switch changes something."""
    return ""


def no_facts(_runner: Any) -> dict[str, str]:
    """Nothing for the fingerprint."""
    return {}


def everywhere(_runner: Any) -> bool:
    """Every rank has it."""
    return True


def last_stage(runner: Any) -> bool:
    """Whether this rank is on the last stage of the pipeline, the only one with a head and a sampler in use.

    V1's runner makes a sampler on every stage and never calls those before the last.
    """
    if getattr(getattr(runner.vllm_config, "parallel_config", None), "pipeline_parallel_size", 1) == 1:
        return True
    known = getattr(runner, "is_last_pp_rank", None)  # V2's
    if known is None:
        known = sys.modules["vllm.distributed.parallel_state"].get_pp_group().is_last_rank
    return bool(known)


@dataclass(frozen=True)
class RankFlag:
    """What of one flag lives on a model runner.

    Attributes:
        read: its value, or None where this runner has no such thing.
        write: set it: ``write(runner, value, extra)``, with what else the engine core sent along.
        note: why a switch would change nothing; empty if it would.
        facts: for the fingerprint.
        present: whether this rank has the objects; one that has not neither answers nor takes a value.
    """

    read: Callable[[Any], str | None]
    write: Callable[[Any, str, Any], None]
    note: Callable[[Any], str] = no_note
    facts: Callable[[Any], dict[str, str]] = no_facts
    present: Callable[[Any], bool] = everywhere


def _read_async(runner: Any) -> str | None:
    """V1's runner keeps the setting; V2's has none, and looks at its inputs."""
    found = getattr(runner, "use_async_scheduling", None)
    return None if found is None else ("on" if found else "off")


CARRIED = ("prev_sampled_token_ids", "prev_req_id_to_index", "sampled_token_ids_cpu", "async_copy_ready_event")
"""What V1's input batch carries from one asynchronous step to the next."""


def _write_async(runner: Any, value: str, tokens: dict[str, list[int]]) -> None:
    """With no request in the batch: every one was preempted, and comes back by the tokens kept for it here.

    Under async scheduling those are placeholders (-1), which only an asynchronous step would fill in.
    """
    for name in CARRIED:
        if hasattr(runner.input_batch, name):
            setattr(runner.input_batch, name, None)
    for name, sampled in tokens.items():
        if name in runner.requests:
            runner.requests[name].output_token_ids = list(sampled)
    runner.use_async_scheduling = value == "on"


PARTS: dict[str, RankFlag] = {
    "logprobs_mode": RankFlag(logprobs_mode.read, logprobs_mode.write, facts=logprobs_mode.facts, present=last_stage),
    "lm_head_fp32": RankFlag(lm_head.read, lm_head.write, lm_head.note, lm_head.facts, last_stage),
    RUNNER_ASYNC: RankFlag(_read_async, _write_async),
}
"""By the name of the flag."""


def read_flags(worker: Any) -> dict[str, Answer]:
    """Every flag of this rank as it stands."""
    return {name: _answer(name, worker) for name in PARTS}


def write_flag(worker: Any, name: str, value: str, extra: Any = None) -> Answer:
    """Set one flag on this rank; ``error`` says what went wrong. Undoing is the engine's, on all ranks alike."""
    try:
        if PARTS[name].present(worker.model_runner):
            PARTS[name].write(worker.model_runner, value, extra)
        error = ""
    except Exception as fault:  # noqa: BLE001 - see the top
        error = f"{type(fault).__name__}: {fault}"
    return _answer(name, worker) | {"error": error}


def _answer(name: str, worker: Any) -> Answer:
    flag, part = BY_NAME[name], PARTS[name]
    needs = [need for need in flag.preconditions + flag.strict_preconditions if need in CHECKS]
    lacking: dict[str, str] = {}
    try:
        runner = worker.model_runner
        if not part.present(runner):
            return {}
        for need in needs:
            if found := CHECKS[need](runner):
                lacking[need] = found
                break  # the later ones count on the earlier
        usable = not lacking
        return {
            "value": part.read(runner),
            "lacking": lacking,
            "note": part.note(runner) if usable else "",
            "facts": part.facts(runner) if usable else {},
        }
    except Exception as fault:  # noqa: BLE001 - see the top
        said = {need: f"{type(fault).__name__}: {fault}" for need in needs[:1]}
        return {"value": None, "lacking": said, "note": "", "facts": {}}


METHODS: dict[str, Callable[..., Any]] = {
    READ: read_flags,
    WRITE: write_flag,
    weight_digest.DIGEST: weight_digest.digest,
    weight_digest.ROOM: weight_digest.free_bytes,
}
"""What every worker gets, by name."""
