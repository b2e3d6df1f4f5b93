"""Reads and writes ``logprobs_mode`` on a live model runner: on every object that has one, and the sampling path."""

from __future__ import annotations

from typing import Any

MODES = {"raw_logprobs": "raw", "processed_logprobs": "processed"}
LAUNCHED = {short: mode for mode, short in MODES.items()}
FUSED = frozenset({"forward_cuda", "forward_hip"})
"""Sampling paths that fail on or ignore processed modes; chosen once, when the sampler is created with raw."""


def holders(runner: Any) -> list[Any]:
    """The objects with a mode of their own: sampler, V1's top-k/top-p part, V2's prompt logprobs, configuration."""
    sampler = getattr(runner, "sampler", None)
    parts = [sampler, getattr(sampler, "topk_topp_sampler", None), getattr(runner, "prompt_logprobs_worker", None)]
    return [part for part in [*parts, runner.model_config] if hasattr(part, "logprobs_mode")]


def path(runner: Any) -> str:
    """Name of the sampling path that V1's sampler has bound; empty if there is none."""
    part = getattr(runner.sampler, "topk_topp_sampler", None)
    return str(getattr(getattr(part, "forward", None), "__name__", ""))


def read(runner: Any) -> str | None:
    """The mode; ``mixed`` if objects differ or the path does not support it; None if the sampler has none."""
    if not hasattr(getattr(runner, "sampler", None), "logprobs_mode"):
        return None
    modes = {str(part.logprobs_mode) for part in holders(runner)}
    if len(modes) > 1:
        return "mixed"
    mode = modes.pop()
    return "mixed" if mode.startswith("processed") and path(runner) in FUSED else MODES.get(mode, mode)


def write(runner: Any, value: str, _extra: Any) -> None:
    """Set mode and sampling path together: a fused path with a processed mode ends the engine."""
    part: Any = getattr(runner.sampler, "topk_topp_sampler", None)
    if value == "processed" and path(runner) in FUSED:
        part.rltop_fused, part.forward = part.forward, part.forward_native
    elif value == "raw" and (fused := getattr(part, "rltop_fused", None)) is not None:
        part.forward = fused
        del part.rltop_fused
    for holder in holders(runner):
        holder.logprobs_mode = LAUNCHED[value]


def facts(runner: Any) -> dict[str, str]:
    """The mode by vLLM's name, and the sampling path."""
    return {"logprobs_mode": str(runner.sampler.logprobs_mode)} | (
        {"sampling_path": found} if (found := path(runner)) else {}
    )
