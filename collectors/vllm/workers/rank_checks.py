"""Checks of ``contract/preconditions.py`` on a worker's model runner, each run on its own rank.

Each returns its finding; empty if the precondition holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rltop.collectors.contract.preconditions import registry
from rltop.collectors.vllm.workers import lm_head, logprobs_mode

CHECKS: dict[str, Callable[[Any], str]] = {}
"""By the name of the precondition."""

check = registry(CHECKS)


# --- the strict form of async_scheduling --------------------------------------------------------------------------


@check("known_runner")
def known_runner(runner: Any) -> str:
    if not hasattr(runner, "use_async_scheduling"):
        return ""  # V2 has no such state
    batch = getattr(runner, "input_batch", None)
    wanted = {"requests": runner, "prev_sampled_token_ids": batch, "prev_req_id_to_index": batch}
    return ", ".join(f"no {name}" for name, owner in wanted.items() if not hasattr(owner, name))


# --- logprobs_mode ------------------------------------------------------------------------------------------------


@check("sampler_mode")
def sampler_mode(runner: Any) -> str:
    return "" if logprobs_mode.read(runner) is not None else "none"


@check("plain_sampler")
def plain_sampler(runner: Any) -> str:
    kind = type(runner.sampler).__name__
    return "" if kind == "Sampler" else kind


@check("returns_logprobs")
def returns_logprobs(runner: Any) -> str:
    value = logprobs_mode.read(runner)
    return "" if value in logprobs_mode.LAUNCHED else str(value)


@check("no_rejection_sampler")
def no_rejection_sampler(runner: Any) -> str:
    found = getattr(runner, "rejection_sampler", None)
    return "" if found is None else type(found).__name__


@check("no_mask_replay")
def no_mask_replay(runner: Any) -> str:
    return "on" if getattr(runner.model_config, "return_sampling_mask", False) else ""


@check("native_sampling")
def native_sampling(runner: Any) -> str:
    path = logprobs_mode.path(runner)
    missing = path in logprobs_mode.FUSED and not hasattr(runner.sampler.topk_topp_sampler, "forward_native")
    return path if missing else ""


# --- lm_head_fp32 -------------------------------------------------------------------------------------------------


@check("weights_present")
def weights_present(runner: Any) -> str:
    return "on" if getattr(runner.model_config, "enable_sleep_mode", False) else ""


@check("known_head")
def known_head(runner: Any) -> str:
    processor, found = lm_head.parts(runner)
    if processor is None:
        return "logits processor"
    known = not getattr(processor, "logits_as_input", False) and hasattr(getattr(found, "quant_method", None), "apply")
    return "" if known else "head"


@check("plain_head")
def plain_head(runner: Any) -> str:
    _, found = lm_head.parts(runner)
    if hasattr(found, "base_layer"):
        return "LoRA"
    kind = type(found.quant_method).__name__
    return "" if kind in lm_head.PLAIN else kind


@check("provable_head")
def provable_head(runner: Any) -> str:
    processor, _ = lm_head.parts(runner)
    alone = hasattr(processor, "_apply_head") or not hasattr(processor, "head_dtype")
    return "" if alone else "one piece with its gather"


@check("head_memory")
def head_memory(runner: Any) -> str:
    return "" if lm_head.note(runner) or lm_head.read(runner) == "on" else lm_head.memory(runner)
