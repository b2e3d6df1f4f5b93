"""Who this engine is, read from the live objects. Strings only; what can't be read is absent, never guessed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from typing import Any

RESTORED = "RLTOP_DEMO_ASYNC_RESTORED"
"""Set by rltop's demo where it put async scheduling back on a platform that turns it off."""


def _runner(engine: Any) -> Any:
    """The model runner, where the worker lives in this process (one device); else None."""
    wrapper = getattr(engine.model_executor, "driver_worker", None)
    worker = getattr(wrapper, "worker", wrapper)
    return getattr(worker, "model_runner", None)


def _model_runner(engine: Any) -> str | None:
    runner = _runner(engine)
    if runner is not None:
        return "V2" if ".gpu.model_runner" in type(runner).__module__ else "V1"
    known = getattr(engine.vllm_config, "use_v2_model_runner", None)
    return None if known is None else ("V2" if known else "V1")


def _attention(engine: Any) -> str | None:
    groups = getattr(_runner(engine), "attn_groups", None) or []
    names = {group.backend.get_name() for of_cache in groups for group in of_cache}
    return ", ".join(sorted(names)) or None


def _logprobs_mode(engine: Any) -> str | None:
    live = getattr(getattr(_runner(engine), "sampler", None), "logprobs_mode", None)
    return live or getattr(engine.vllm_config.model_config, "logprobs_mode", None)


def _head_dtype(engine: Any) -> str | None:
    model = getattr(_runner(engine), "model", None)
    processor = getattr(model, "logits_processor", None)
    found = getattr(processor, "head_dtype", None) or getattr(engine.vllm_config.model_config, "head_dtype", None)
    return _plain(found)


def _device(engine: Any) -> str | None:
    torch = sys.modules.get("torch")
    kind = getattr(engine.vllm_config.device_config, "device_type", None)
    if kind == "cuda" and torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return kind


def _async(engine: Any) -> str:
    depth = getattr(engine, "batch_queue_size", 1)
    note = " (restored by rltop's demo on this platform)" if os.environ.get(RESTORED) == "1" else ""
    return f"{type(engine.scheduler).__name__}, launched with a queue of {depth}{note}"


def _prefix(engine: Any) -> str:
    manager = engine.scheduler.kv_cache_manager
    return f"{'on' if manager.enable_caching else 'off'} at launch, {type(manager.coordinator).__name__}"


def _sampling(engine: Any) -> str | None:
    defaults = engine.vllm_config.model_config.get_diff_sampling_param()
    return ", ".join(f"{name}={value}" for name, value in sorted(defaults.items())) or "vLLM's own"


def _parallel(engine: Any) -> str:
    parallel = engine.vllm_config.parallel_config
    names = ("data", "tensor", "pipeline")
    return ", ".join(f"{name} {getattr(parallel, f'{name}_parallel_size')}" for name in names)


def _plain(value: Any) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")


FACTS: dict[str, Callable[[Any], Any]] = {
    "vllm_version": lambda _: sys.modules["vllm"].__version__,
    "model": lambda engine: engine.vllm_config.model_config.model,
    "dtype": lambda engine: engine.vllm_config.model_config.dtype,
    "quantization": lambda engine: engine.vllm_config.model_config.quantization,
    "head_dtype": _head_dtype,
    "kv_cache_dtype": lambda engine: engine.vllm_config.cache_config.cache_dtype,
    "model_runner": _model_runner,
    "attention_backend": _attention,
    "logprobs_mode": _logprobs_mode,
    "prefix_caching": _prefix,
    "async_scheduling": _async,
    "block_size": lambda engine: engine.vllm_config.cache_config.block_size,
    "max_num_seqs": lambda engine: engine.vllm_config.scheduler_config.max_num_seqs,
    "max_num_batched_tokens": lambda engine: engine.vllm_config.scheduler_config.max_num_batched_tokens,
    "max_model_len": lambda engine: engine.vllm_config.model_config.max_model_len,
    "enforce_eager": lambda engine: engine.vllm_config.model_config.enforce_eager,
    "parallel": _parallel,
    "speculative": lambda engine: getattr(engine.vllm_config.speculative_config, "method", None),
    "default_sampling": _sampling,
    "device": _device,
    "platform": lambda _: platform.platform(),
    "torch_version": lambda _: sys.modules["torch"].__version__,
    "python_version": lambda _: platform.python_version(),
}
"""What is told of an engine, and where it stands."""


def fingerprint(engine: Any) -> dict[str, str]:
    """The facts that this engine has. Never raises: objects differ from version to version, absent is an answer."""
    found = {}
    for name, read in FACTS.items():
        try:
            value = _plain(read(engine))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
            continue
        if value is not None:
            found[name] = value
    return found
