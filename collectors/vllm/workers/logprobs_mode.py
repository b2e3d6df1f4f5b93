"""The mode of logprobs on a live model runner: every object that decides by one, and the sampling path with it."""

from __future__ import annotations

from typing import Any

MODES = {"raw_logprobs": "raw", "processed_logprobs": "processed"}
LAUNCHED = {short: mode for mode, short in MODES.items()}
FUSED = frozenset({"forward_cuda", "forward_hip"})
"""Sampling paths that assert or ignore the processed modes; chosen once, when the sampler was made with raw."""


def holders(runner: Any) -> list[Any]:
    """Every object that decides by a mode of its own: the sampler, V1's top-k/top-p part, V2's prompt logprobs."""
    sampler = getattr(runner, "sampler", None)
    parts = [sampler, getattr(sampler, "topk_topp_sampler", None), getattr(runner, "prompt_logprobs_worker", None)]
    return [part for part in [*parts, runner.model_config] if hasattr(part, "logprobs_mode")]


def path(runner: Any) -> str:
    """Name of the sampling path that V1's sampler bound; empty where there is none."""
    part = getattr(runner.sampler, "topk_topp_sampler", None)
    return str(getattr(getattr(part, "forward", None), "__name__", ""))


def read(runner: Any) -> str | None:
    """The mode, if all agree on it and the path fits; None where the sampler has none."""
    if not hasattr(getattr(runner, "sampler", None), "logprobs_mode"):
        return None
    modes = {str(part.logprobs_mode) for part in holders(runner)}
    if len(modes) > 1:
        return "mixed"
    mode = modes.pop()
    return "mixed" if mode.startswith("processed") and path(runner) in FUSED else MODES.get(mode, mode)


def write(runner: Any, value: str, _extra: Any) -> None:
    """The mode and the sampling path change together: a fused path under a processed mode ends the engine."""
    part: Any = getattr(runner.sampler, "topk_topp_sampler", None)
    if value == "processed" and path(runner) in FUSED:
        part.rltop_fused, part.forward = part.forward, part.forward_native
    elif value == "raw" and (fused := getattr(part, "rltop_fused", None)) is not None:
        part.forward = fused
        del part.rltop_fused
    for holder in holders(runner):
        holder.logprobs_mode = LAUNCHED[value]


def facts(runner: Any) -> dict[str, str]:
    """The mode in vLLM's words, and the path."""
    return {"logprobs_mode": str(runner.sampler.logprobs_mode)} | (
        {"sampling_path": found} if (found := path(runner)) else {}
    )
