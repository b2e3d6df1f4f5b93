"""Checks before a probe. Each returns why the engine can't be probed, or an empty string.

Plain reads of the live objects, from any thread.
"""

from __future__ import annotations

from typing import Any

from rltop.collectors.contract.probes import MAX_KV_USAGE, WAITING_PER_SEAT


def weights_offloaded(engine: Any) -> str:
    """Why the engine's weights can't be read; empty if they can."""
    model = engine.vllm_config.model_config
    if getattr(model, "enable_sleep_mode", False) and getattr(engine.model_executor, "is_sleeping", True):
        return "the engine sleeps, and its weights may be offloaded"
    return ""


def cannot_score(engine: Any) -> str:
    """Why this engine can't score a prompt of token ids; empty if it can."""
    config = engine.vllm_config
    if hasattr(engine, "dp_group"):
        return "data-parallel ranks in lockstep accept requests only together"
    if config.speculative_config is not None:
        return "prompt logprobs are not reliable with speculative decoding"
    if config.lora_config is not None:
        return "the LoRA adapter of a rollout is unknown"
    if getattr(engine.scheduler, "connector", None) is not None:
        return "a KV connector would store the KV that the probe computes"
    model = config.model_config
    if model.is_multimodal_model or model.is_encoder_decoder or model.runner_type != "generate":
        return "prompts of this model consist of more than token ids"
    if getattr(config.cache_config, "kv_sharing_fast_prefill", False):
        return "prompt logprobs end an engine that was started with --kv-sharing-fast-prefill"
    return ""


def overloaded(engine: Any) -> str:
    """Why a probe's requests would slow down rollouts; empty if they would not."""
    scheduler = engine.scheduler
    usage = float(getattr(scheduler.kv_cache_manager, "usage", 0.0))
    if usage > MAX_KV_USAGE:
        return f"the KV cache is {usage:.0%} full; probes need at most {MAX_KV_USAGE:.0%}"
    slots = engine.vllm_config.scheduler_config.max_num_seqs
    if len(scheduler.waiting) > WAITING_PER_SEAT * slots:
        return f"{len(scheduler.waiting)} requests wait for {slots} slots"
    return ""
