"""A real vLLM engine on the CPU, driven from synchronous tests: one AsyncLLM on an event loop of its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import rltop.backend.demo
from tests.harness import wait_for

T = TypeVar("T")

MODEL = Path(rltop.backend.demo.__file__).parent / "sort-sft"
BLOCK = 32
BOOT_S = 300.0
RESULT_S = 120.0

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "RLTOP_DEMO_ASYNC": "1",
}


class LiveEngine:
    """Boots on construction (some 30 s). ``progress`` maps a request to the tokens its front end has seen."""

    def __init__(self) -> None:
        self.progress: dict[str, list[int]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.llm: Any = self.start(self._boot()).result(BOOT_S)

    async def _boot(self) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(MODEL),
                skip_tokenizer_init=True,
                max_model_len=512,
                max_num_seqs=64,
                block_size=BLOCK,
                dtype="float32",
                enforce_eager=True,
                async_scheduling=True,
                disable_log_stats=True,
                worker_extension_cls="rltop.backend.demo.weights.WorkerExtension",
                weight_transfer_config=WeightTransferConfig(backend="rltop_file"),
            )
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work`` on the engine's loop."""
        return self.start(work).result(RESULT_S)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin ``work`` on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def generate(
        self,
        name: str,
        prompt: list[int],
        tokens: int,
        seed: int,
        logprobs: int | None = 0,
        temperature: float = 1.0,
    ) -> Future[Any]:
        """Sample exactly ``tokens`` tokens; the result is vLLM's last ``RequestOutput``. Cancelling it aborts."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=temperature, max_tokens=tokens, ignore_eos=True, logprobs=logprobs, seed=seed, detokenize=False
        )
        self.progress[name] = []

        async def last() -> Any:
            output = None
            async for output in self.llm.generate({"prompt_token_ids": prompt}, params, name):
                self.progress[name] = list(output.outputs[0].token_ids)
            return output

        return self.start(last())

    def wait_running(self, names: list[str], tokens: int = 3) -> None:
        """Until every named request has some tokens."""
        wait_for(lambda: all(len(self.progress[name]) >= tokens for name in names), "requests in flight", 60)

    def close(self) -> None:
        """End the engine's processes and the loop."""

        async def shutdown() -> None:
            self.llm.shutdown()

        self.run(shutdown())
        self.llm = None  # its __del__ fails when it runs as late as the interpreter's end
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
