"""Why an engine can't be probed, now or at all: plain reads of the live objects, from any thread."""

from __future__ import annotations

from typing import Any

from rltop.collectors.contract.probes import MAX_KV_USAGE, WAITING_PER_SEAT


def asleep(engine: Any) -> str:
    """Why the engine's weights may not be read; empty if they may."""
    model = engine.vllm_config.model_config
    if getattr(model, "enable_sleep_mode", False) and getattr(engine.model_executor, "is_sleeping", True):
        return "the engine sleeps, and its weights may be away"
    return ""


def unfit(engine: Any) -> str:
    """Why a request that scores its prompt can't be put into this engine; empty if it can."""
    config = engine.vllm_config
    if hasattr(engine, "dp_group"):
        return "data-parallel ranks that step together take requests only together"
    if config.speculative_config is not None:
        return "prompt logprobs can't be relied on with speculative decoding"
    if config.lora_config is not None:
        return "which adapter a rollout had is not known"
    if getattr(engine.scheduler, "connector", None) is not None:
        return "a KV connector would store what the probe computes"
    model = config.model_config
    if model.is_multimodal_model or model.is_encoder_decoder or model.runner_type != "generate":
        return "token ids are not all that this model is prompted with"
    if getattr(config.cache_config, "kv_sharing_fast_prefill", False):
        return "prompt logprobs end an engine that was started with --kv-sharing-fast-prefill"
    return ""


def crowded(engine: Any) -> str:
    """Why a probe's requests would be in the way of rollouts; empty if they would not."""
    scheduler = engine.scheduler
    usage = float(getattr(scheduler.kv_cache_manager, "usage", 0.0))
    if usage > MAX_KV_USAGE:
        return f"the KV cache is {usage:.0%} full, and probes wait at {MAX_KV_USAGE:.0%}"
    seats = engine.vllm_config.scheduler_config.max_num_seqs
    if len(scheduler.waiting) > WAITING_PER_SEAT * seats:
        return f"{len(scheduler.waiting)} requests wait for {seats} seats"
    return ""
