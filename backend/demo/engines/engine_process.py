"""A rollout engine of the demo: a vLLM ``AsyncLLM`` that answers granted tickets and loads weight updates meanwhile.

``python -m rltop.backend.demo.engines.engine_process JOB`` with ``JOB`` a JSON ``EngineJob``; ``supervisor.py`` sets
the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq
import zmq.asyncio

from rltop.backend.demo import messages
from rltop.backend.demo.engines.weight_updates import TokenVersions, weights_of
from rltop.backend.demo.jobs import GROUP_SIZE, GROUPS, EngineJob, decode, end_with_parent
from rltop.backend.demo.rl import task

SLOTS = 8
"""Concurrent requests: a quarter of the requests that a step grants to each of two engines. An update then meets
running requests, which become sequences of two versions, and waiting ones, also if a busy machine delays it."""

SHUTDOWN_S = 10.0
"""How long the engine's processes may take to end, so that their collectors can disconnect."""

KV_BYTES = 64 << 20
"""KV cache on a GPU: 40 times the need of ``SLOTS`` requests."""

GPU_SHARE = 0.02
"""Share of a GPU that must be free before vLLM boots; it uses part of that, plus its CUDA context."""

MIDWAY_REQUESTS, MIDWAY_TOKENS = 4, 2
"""An update waits until this many requests have this many tokens. Answers have 11 or more, so sampling continues
after."""


class TicketServer:
    """Answers tickets on one engine.

    Args:
        engine: a running ``AsyncLLM``.
        job: the engine's job.
        send: sends a message to the trainer.
        defaults: the checkpoint's sampling parameters, for those that a request leaves unset.
    """

    def __init__(self, engine: Any, job: EngineJob, send: Any, defaults: Mapping[str, Any] | None = None) -> None:
        self._engine = engine
        self._job = job
        self._send = send
        self._defaults = defaults or {}
        self._slow = False
        self._weights = weights_of(engine)
        self._versions = TokenVersions()
        self._open: set[int] = set()
        self._sizes: dict[str, int] = {}
        self._progressed = asyncio.Condition()

    def open(self, tickets: Sequence[int]) -> None:
        """Count tickets as in flight, before any of them is answered."""
        self._open.update(tickets)

    async def answer(self, ticket: int) -> None:
        """Sample one group and send it."""
        prompt = task.prompt(self._job.seed, ticket)
        await self._slow_down(self._job.fault.during(ticket // GROUPS).slow_ms)
        samples = await asyncio.gather(*(self._sample(ticket, number, prompt) for number in range(GROUP_SIZE)))
        await self._send(messages.Group(self._job.engine, ticket, prompt, list(samples)))
        async with self._progressed:
            self._open.discard(ticket)
            self._progressed.notify_all()

    async def update(self, update: messages.Update) -> None:
        """Load new weights between two engine steps, with requests in flight if any are due.

        Requests keep their tokens; their KV is recomputed under the new weights.
        """
        fault = self._job.fault.during(update.version - 1)
        await self._midway()
        in_flight, began = len(self._sizes), time.perf_counter()
        await self._engine.pause_generation(mode="keep", clear_cache=fault.clears_cache)
        paused = time.perf_counter()
        if fault.loads_weights:
            await self._weights.load(update.path, update.version)
        elif fault.moves_version:
            await self._weights.set_version(update.version)
        if fault.loads_weights or fault.moves_version:
            self._versions.update(update.version, self._sizes)
        loaded = time.perf_counter()
        await self._engine.resume_generation()
        pause_ms, load_ms = (paused - began) * 1e3, (loaded - paused) * 1e3
        await self._send(messages.Updated(self._job.engine, update.version, in_flight, pause_ms, load_ms))

    async def _slow_down(self, slow_ms: float) -> None:
        """Delay every forward pass from now on."""
        if slow_ms and not self._slow:
            self._slow = True
            await self._engine.collective_rpc("rltop_demo_slow_down", args=(slow_ms / 1e3,))

    async def _midway(self) -> None:
        """Wait until some requests are in the middle of their answers, or no ticket is open.

        The trainer grants tickets before it sends an update; running requests always progress, so the wait ends.
        """

        def ready() -> bool:
            midway = sum(size >= MIDWAY_TOKENS for size in self._sizes.values())
            return not self._open or midway >= MIDWAY_REQUESTS

        async with self._progressed:
            await self._progressed.wait_for(ready)

    async def _sample(self, ticket: int, number: int, prompt: list[int]) -> messages.SampledAnswer:
        request = f"t{ticket}-{number}"
        params = _sampling(self._job, self._defaults, ticket, number)
        output = None
        self._versions.start(request)
        await self._set_size(request, 0)
        async for output in self._engine.generate(self._prompt(request, number, prompt), params, request):
            await self._set_size(request, len(output.outputs[0].token_ids))
        await self._set_size(request, None)
        assert output is not None
        completion = output.outputs[0]
        return as_answer(completion, self._versions.finish(request, len(completion.token_ids)))

    def _prompt(self, request: str, number: int, prompt: list[int]) -> dict[str, Any]:
        """The prompt; with a cache salt of its own, a request shares no KV with others."""
        inputs: dict[str, Any] = {"prompt_token_ids": prompt}
        return inputs | {"cache_salt": request} if number < self._job.fault.unshared else inputs

    async def _set_size(self, request: str, size: int | None) -> None:
        async with self._progressed:
            if size is None:
                del self._sizes[request]
            else:
                self._sizes[request] = size
            self._progressed.notify_all()


def as_answer(completion: Any, tracked: list[int]) -> messages.SampledAnswer:
    """A finished vLLM ``CompletionOutput`` as a message; ``tracked`` versions if vLLM reports none (before 0.32)."""
    tokens = list(completion.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(tokens, completion.logprobs, strict=True)]
    spans = getattr(completion, "weight_versions", None)
    versions = tracked if spans is None else token_versions(spans, len(tokens))
    return messages.SampledAnswer(tokens, logprobs, versions)


def token_versions(spans: Sequence[Any], size: int) -> list[int]:
    """The version of each token, from spans ``[start, end)``.

    Raises:
        ValueError: the spans do not cover the tokens once each, in order.
    """
    versions = [int(span.version) for span in spans for _ in range(span.start, span.end)]
    if len(versions) != size or [span.start for span in spans] != [0, *(span.end for span in spans)][:-1]:
        raise ValueError(f"weight version spans {spans} do not cover {size} tokens")
    return versions


def _sampling(job: EngineJob, defaults: Mapping[str, Any], ticket: int, number: int) -> Any:
    """Sampling parameters of a request; unset ones come from ``defaults``, as in vLLM's servers."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    own = {
        "temperature": job.temperature,
        "top_p": job.fault.during(ticket // GROUPS).top_p,
        "max_tokens": task.MAX_ANSWER,
        "stop_token_ids": [task.EOS],
        "logprobs": 0,
        "detokenize": False,
        "seed": random.Random(f"{job.seed}/{ticket}/{number}").getrandbits(31),  # noqa: S311 - sampling, not a secret
        "output_kind": RequestOutputKind.CUMULATIVE,
    }
    return SamplingParams(**{**defaults, **own})


def boot(job: EngineJob) -> Any:
    """Start the engine as an RL framework would."""
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=job.model,
            skip_tokenizer_init=True,
            max_model_len=128,
            max_num_seqs=SLOTS,
            block_size=task.PREFIX_SIZE,
            dtype=job.fault.dtype,
            hf_overrides={"head_dtype": job.fault.head_dtype} if job.fault.head_dtype else {},
            seed=job.seed,
            enforce_eager=True,
            logprobs_mode=job.fault.logprobs_mode,
            enable_prefix_caching=True,
            async_scheduling=True,
            worker_extension_cls="rltop.backend.demo.engines.weight_transfer.WorkerExtension",
            weight_transfer_config=WeightTransferConfig(backend="rltop_file"),
            **_gpu_share(),
        )
    )


def _gpu_share() -> dict[str, int | float]:
    """A fixed small part of a GPU: engines that boot at the same time can't measure free memory."""
    from vllm.platforms import current_platform

    return {} if current_platform.is_cpu() else {"kv_cache_memory_bytes": KV_BYTES, "gpu_memory_utilization": GPU_SHARE}


def take_gpu(engine: str) -> None:
    """Spread the engines over the GPUs of this machine, one each, unless ``CUDA_VISIBLE_DEVICES`` is set."""
    import torch

    if (gpus := torch.cuda.device_count()) > 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(int(engine.removeprefix("e")) % gpus))


async def serve(job: EngineJob) -> None:
    """Boot, then serve the trainer until SIGTERM.

    Raises:
        Exception: a rollout or an update failed; the process ends.
    """
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

    began = time.perf_counter()
    engine = boot(job)
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    try:
        await engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        await weights_of(engine).set_version(0)
        socket.setsockopt(zmq.ROUTING_ID, job.engine.encode())
        socket.connect(job.socket)

        async def send(message: messages.ToTrainer) -> None:
            await socket.send(messages.encode(message))

        await send(messages.Ready(job.engine, time.perf_counter() - began))
        defaults = engine.model_config.get_diff_sampling_param()
        await _until_terminated(_serve_messages(socket, TicketServer(engine, job, send, defaults)))
    finally:
        context.destroy(linger=0)
        engine.shutdown(timeout=SHUTDOWN_S)


async def _serve_messages(socket: Any, rollouts: TicketServer) -> None:
    updates: asyncio.Queue[messages.Update] = asyncio.Queue()

    async def update_in_order() -> None:
        while True:
            await rollouts.update(await updates.get())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(update_in_order())
        while True:
            message = messages.to_engine.decode(await socket.recv())
            if isinstance(message, messages.Update):
                updates.put_nowait(message)
                continue
            rollouts.open(message.tickets)
            for ticket in message.tickets:
                tasks.create_task(rollouts.answer(ticket))


async def _until_terminated(work: Any) -> None:
    worker = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await worker


if __name__ == "__main__":
    end_with_parent()
    engine_job = decode(sys.argv[1], EngineJob)
    take_gpu(engine_job.engine)
    asyncio.run(serve(engine_job))
