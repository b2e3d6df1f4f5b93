"""The flags that live in a worker: what they are on its model runner, and how they change.

Two methods of every worker, reached by name through vLLM's own ``collective_rpc``. Neither raises: an exception on one
rank would leave the answers of the others in vLLM's queue, where the next call would take them for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rltop.collectors.vllm import head

READ = "rltop_read_flags"
WRITE = "rltop_write_flag"

Answer = dict[str, Any]
"""Of one rank for one flag: ``value``, ``obstacle``, ``note`` (of a switch that changes nothing), ``facts``."""

MODES = {"raw_logprobs": "raw", "processed_logprobs": "processed"}
LAUNCHED = {short: mode for mode, short in MODES.items()}
FUSED = frozenset({"forward_cuda", "forward_hip"})
"""Sampling paths that assert or ignore the processed modes; chosen once, when the sampler was made with raw."""


@dataclass(frozen=True)
class WorkerFlag:
    """One flag on a model runner; see ``switches.Switch``. ``facts`` go into the fingerprint."""

    read: Callable[[Any], str | None]
    obstacle: Callable[[Any], str]
    write: Callable[[Any, str], None]
    note: Callable[[Any], str]
    facts: Callable[[Any], dict[str, str]]


# --- logprobs_mode -----------------------------------------------------------------------------------------------


def _holders(runner: Any) -> list[Any]:
    """Every object that decides by a mode of its own: the sampler, V1's top-k/top-p part, V2's prompt logprobs."""
    sampler = getattr(runner, "sampler", None)
    parts = [sampler, getattr(sampler, "topk_topp_sampler", None), getattr(runner, "prompt_logprobs_worker", None)]
    return [part for part in [*parts, runner.model_config] if hasattr(part, "logprobs_mode")]


def _path(runner: Any) -> str:
    """Name of the sampling path that V1's sampler bound; empty where there is none."""
    part = getattr(runner.sampler, "topk_topp_sampler", None)
    return str(getattr(getattr(part, "forward", None), "__name__", ""))


def _read_logprobs(runner: Any) -> str | None:
    if not hasattr(getattr(runner, "sampler", None), "logprobs_mode"):
        return None
    modes = {str(part.logprobs_mode) for part in _holders(runner)}
    if len(modes) > 1:
        return "mixed"
    mode = modes.pop()
    return "mixed" if mode.startswith("processed") and _path(runner) in FUSED else MODES.get(mode, mode)


def _logprobs_obstacle(runner: Any) -> str:
    value = _read_logprobs(runner)
    if value is None:
        return "this vLLM's sampler has no logprobs_mode"
    kind = type(runner.sampler).__name__
    if kind != "Sampler":
        return f"not proven for a {kind}"
    if value not in MODES.values():
        return f"the sampler returns {value}, not logprobs"
    if getattr(runner, "rejection_sampler", None) is not None:
        return "speculative decoding is on: its sampler keeps a mode of its own"
    if getattr(runner.model_config, "return_sampling_mask", False):
        return "the replay of sampling masks needs processed logprobs"
    if _path(runner) in FUSED and not hasattr(runner.sampler.topk_topp_sampler, "forward_native"):
        return "the fused sampler can't return processed logprobs, and there is no native one"
    return ""


def _write_logprobs(runner: Any, value: str) -> None:
    """The mode and the sampling path change together: a fused path under a processed mode ends the engine."""
    part: Any = getattr(runner.sampler, "topk_topp_sampler", None)
    if value == "processed" and _path(runner) in FUSED:
        part.rltop_fused, part.forward = part.forward, part.forward_native
    elif value == "raw" and (fused := getattr(part, "rltop_fused", None)) is not None:
        part.forward = fused
        del part.rltop_fused
    for holder in _holders(runner):
        holder.logprobs_mode = LAUNCHED[value]


def _logprobs_facts(runner: Any) -> dict[str, str]:
    return {"logprobs_mode": str(runner.sampler.logprobs_mode)} | (
        {"sampling_path": path} if (path := _path(runner)) else {}
    )


WORKER_FLAGS: dict[str, WorkerFlag] = {
    "logprobs_mode": WorkerFlag(_read_logprobs, _logprobs_obstacle, _write_logprobs, lambda _: "", _logprobs_facts),
    "lm_head_fp32": WorkerFlag(head.read, head.obstacle, head.write, head.note, head.facts),
}


def read_flags(worker: Any) -> dict[str, Answer]:
    """Every flag of this rank as it stands."""
    return {name: _answer(flag, worker) for name, flag in WORKER_FLAGS.items()}


def write_flag(worker: Any, name: str, value: str) -> Answer:
    """Set one flag on this rank; ``error`` says what went wrong. Undoing is the engine's, on all ranks alike."""
    flag = WORKER_FLAGS[name]
    try:
        flag.write(worker.model_runner, value)
        error = ""
    except Exception as fault:  # noqa: BLE001 - see the top
        error = f"{type(fault).__name__}: {fault}"
    return _answer(flag, worker) | {"error": error}


def _answer(flag: WorkerFlag, worker: Any) -> Answer:
    try:
        runner = worker.model_runner
        obstacle = flag.obstacle(runner)
        usable = not obstacle
        return {
            "value": flag.read(runner),
            "obstacle": obstacle,
            "note": flag.note(runner) if usable else "",
            "facts": flag.facts(runner) if usable else {},
        }
    except Exception as fault:  # noqa: BLE001 - see the top
        return {"value": None, "obstacle": f"{type(fault).__name__}: {fault}", "note": "", "facts": {}}


METHODS: dict[str, Callable[..., Any]] = {READ: read_flags, WRITE: write_flag}
"""What every worker gets, by name."""
