"""The engine's configuration as facts, read from the live objects. Facts that can't be read are absent, never guessed.

All values are strings. Flags report their own state and are not included. ``current`` has the other facts that may
change while the engine runs.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from rltop.collectors.contract.facts import as_text
from rltop.collectors.vllm.workers.all_ranks import reachable

RESTORED = "RLTOP_DEMO_ASYNC_RESTORED"
"""Set by rltop's demo if it re-enabled async scheduling on a platform that turns it off."""

NEUTRAL = "vLLM's own"
"""All default sampling parameters are vLLM's own: temperature 1, no truncation."""


def _attention(runner: Any) -> str:
    names = {group.backend.get_name() for of_cache in runner.attn_groups for group in of_cache}
    return ", ".join(sorted(names))


def _head_dtype(runner: Any) -> Any:
    processor = getattr(runner.model, "logits_processor", None)
    found = getattr(processor, "head_dtype", None)
    return runner.model_config.head_dtype if found is None else found


def _device(runner: Any) -> str:
    kind = str(runner.device)
    return f"{kind} {sys.modules['torch'].cuda.get_device_name(runner.device)}" if kind.startswith("cuda") else kind


WORKER_FACTS: dict[str, Callable[[Any], Any]] = {
    "model_runner": lambda runner: "V2" if ".gpu.model_runner" in type(runner).__module__ else "V1",
    "attention_backend": _attention,
    "logprobs_mode": lambda runner: runner.sampler.logprobs_mode,
    "head_dtype": _head_dtype,
    "device": _device,
}
"""Facts of a model runner, which may live in another process."""


def worker_facts(worker: Any) -> dict[str, str]:
    """Read the facts of a model runner. Runs in a worker, called through vLLM's ``collective_rpc``."""
    return _read(WORKER_FACTS, getattr(getattr(worker, "worker", worker), "model_runner", None))


def _scheduler(engine: Any) -> str:
    note = " (async restored by rltop's demo on this platform)" if os.environ.get(RESTORED) == "1" else ""
    return f"{type(engine.scheduler).__name__}{note}"


def _sampling(engine: Any) -> str:
    """Defaults for parameters that requests leave unset, as far as they differ from vLLM's own."""
    defaults = engine.vllm_config.model_config.get_diff_sampling_param()
    return ", ".join(f"{name}={as_text(value)}" for name, value in sorted(defaults.items())) or NEUTRAL


def _sampling_source(engine: Any) -> str:
    config = engine.vllm_config.model_config
    source = {"auto": "the model's generation_config.json", "vllm": "none (--generation-config vllm)"}.get(
        config.generation_config, config.generation_config
    )
    return f"{source} and --override-generation-config" if config.override_generation_config else source


def _parallel(engine: Any) -> str:
    parallel = engine.vllm_config.parallel_config
    names = ("data", "tensor", "pipeline")
    return ", ".join(f"{name} {getattr(parallel, f'{name}_parallel_size')}" for name in names)


FACTS: dict[str, Callable[[Any], Any]] = {
    "vllm_version": lambda _: sys.modules["vllm"].__version__,
    "model": lambda engine: engine.vllm_config.model_config.model,
    "dtype": lambda engine: engine.vllm_config.model_config.dtype,
    "quantization": lambda engine: engine.vllm_config.model_config.quantization or "none",
    "kv_cache_dtype": lambda engine: engine.vllm_config.cache_config.cache_dtype,
    "prefix_cache": lambda engine: type(engine.scheduler.kv_cache_manager.coordinator).__name__,
    "block_size": lambda engine: engine.vllm_config.cache_config.block_size,
    "max_num_seqs": lambda engine: engine.vllm_config.scheduler_config.max_num_seqs,
    "max_num_batched_tokens": lambda engine: engine.vllm_config.scheduler_config.max_num_batched_tokens,
    "max_model_len": lambda engine: engine.vllm_config.model_config.max_model_len,
    "enforce_eager": lambda engine: engine.vllm_config.model_config.enforce_eager,
    "parallel": _parallel,
    "speculative": lambda engine: getattr(engine.vllm_config.speculative_config, "method", "none"),
    "default_sampling": _sampling,
    "default_sampling_from": _sampling_source,
    "platform": lambda _: platform.platform(),
    "torch_version": lambda _: sys.modules["torch"].__version__,
    "python_version": lambda _: platform.python_version(),
}
"""Facts of an engine core that never change."""

CURRENT: dict[str, Callable[[Any], Any]] = {
    "scheduler": _scheduler,
    "batch_queue": lambda engine: engine.batch_queue_size if engine.batch_queue is not None else "none",
}
"""Facts of an engine core that a switch may change. Plain attribute reads, from any thread."""


def current(engine: Any) -> dict[str, str]:
    """Read the facts that may have changed since ``fingerprint``."""
    return _read(CURRENT, engine)


def fingerprint(engine: Any) -> dict[str, str]:
    """Read all facts. Call it before the engine takes requests: it queries the workers."""
    found = _read(FACTS, engine)
    workers = engine.model_executor.collective_rpc(worker_facts) if reachable(engine) else []
    for name in WORKER_FACTS:
        values = sorted({facts[name] for facts in workers if name in facts})
        if values:
            found[name] = ", ".join(values)
    return found


def _read(facts: dict[str, Callable[[Any], Any]], source: Any) -> dict[str, str]:
    """Read each fact; skip those that this vLLM version does not have."""
    found = {}
    for name, read in facts.items():
        try:
            value = as_text(read(source))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
            continue
        if value is not None:
            found[name] = value
    return found
