"""A real vLLM engine driven from synchronous tests: one AsyncLLM on an event loop of its own thread.

By default the demo's model on the CPU. ``RLTOP_TEST_DEVICE=cuda`` and ``RLTOP_TEST_MODEL=DIR`` (bf16, no tokenizer) run
the same tests on a GPU, ``RLTOP_TEST_EAGER=0`` compiled; the model runner is vLLM's own choice by its own variables.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import rltop.backend.demo
from tests.support.harness import wait_for

T = TypeVar("T")

DEVICE = os.environ.get("RLTOP_TEST_DEVICE", "cpu")
ON_CPU = DEVICE == "cpu"
MODEL = Path(os.environ.get("RLTOP_TEST_MODEL") or Path(rltop.backend.demo.__file__).parent / "sort-sft")
EAGER = os.environ.get("RLTOP_TEST_EAGER", "1") == "1"
BLOCK = 32

ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR"} | (
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "RLTOP_DEMO_ASYNC": "1",
    }
    if ON_CPU
    else {}
)


def _launch() -> dict[str, Any]:
    """Launch arguments for this device; only the CPU uses vLLM's weight-transfer API for updates."""
    if not ON_CPU:
        # Of a fixed size: engines that boot at once can't measure what is free.
        memory = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 8 << 30}
        return {"dtype": "bfloat16", "generation_config": "vllm"} | memory
    from vllm.config import WeightTransferConfig

    return {
        "dtype": "float32",
        "worker_extension_cls": "rltop.backend.demo.engines.weight_transfer.WorkerExtension",
        "weight_transfer_config": WeightTransferConfig(backend="rltop_file"),
    }


def result(work: Future[T]) -> T:
    """Wait for the result; fails where nothing moves any more."""
    wait_for(work.done, "the engine's answer")
    return work.result()


class LiveEngine:
    """Boots on construction (some 30 s). ``progress`` maps a request to the tokens its front end has seen.

    Args:
        updates: whether it can update weights by vLLM's weight-transfer API, which old versions don't have.
        launch: launch arguments.
    """

    def __init__(self, *, updates: bool = True, **launch: Any) -> None:
        self.progress: dict[str, list[int]] = {}
        self._launch = (_launch() if updates else {"dtype": "float32"}) | launch
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.llm: Any = self.run(self._boot())

    async def _boot(self) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        common: dict[str, Any] = {
            "model": str(MODEL),
            "skip_tokenizer_init": True,
            "max_model_len": 512,
            "max_num_seqs": 64,
            # Recomputing all of them fits one step: in chunks, a seeded request would end an engine on the CPU.
            "max_num_batched_tokens": 16384,
            "block_size": BLOCK,
            "enforce_eager": EAGER,
            "enable_prefix_caching": True,
            "async_scheduling": True,
            "disable_log_stats": True,
        }
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**common | self._launch))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the engine's loop."""
        return result(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin ``work`` on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def generate(
        self,
        name: str,
        prompt: list[int],
        tokens: int,
        seed: int | None,
        logprobs: int | None = 0,
        temperature: float = 1.0,
    ) -> Future[Any]:
        """Sample exactly ``tokens`` tokens; the result is vLLM's last ``RequestOutput``. Cancelling it aborts."""
        self.progress[name] = []
        return self.start(self.sample(name, prompt, tokens, seed, logprobs, temperature))

    async def sample(
        self,
        name: str,
        prompt: list[int],
        tokens: int,
        seed: int | None,
        logprobs: int | None = 0,
        temperature: float = 1.0,
    ) -> Any:
        """The same, awaited on the engine's loop."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=temperature, max_tokens=tokens, ignore_eos=True, logprobs=logprobs, seed=seed, detokenize=False
        )
        self.progress[name] = []
        output = None
        async for output in self.llm.generate({"prompt_token_ids": prompt}, params, name):
            self.progress[name] = list(output.outputs[0].token_ids)
        return output

    def wait_running(self, names: list[str], tokens: int = 3) -> None:
        """Until every named request has some tokens."""
        wait_for(lambda: all(len(self.progress[name]) >= tokens for name in names), "requests in flight")

    def close(self) -> None:
        """End the engine's processes and the loop."""

        async def shutdown() -> None:
            self.llm.shutdown()

        self.run(shutdown())
        self.llm = None  # its __del__ fails when it runs as late as the interpreter's end
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@functools.cache
def _policy() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if ON_CPU else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(str(MODEL), dtype=dtype).eval().to(DEVICE)


def policy_logprobs(prompt: list[int], tokens: list[int], temperature: float) -> Any:
    """Log-probabilities of ``tokens`` [n] by transformers alone, at a temperature, in double."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([prompt + tokens], device=DEVICE)
        logits = _policy()(ids).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits.float() / temperature, -1)
        return logp.gather(-1, ids[0, len(prompt) :, None])[:, 0].double().cpu().numpy()
