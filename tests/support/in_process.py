"""An ``LLM`` inside a process of its own, driven from a test: the process is the engine's caller, as a trainer is."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import wait_for
from tests.support.live_engine import ENVIRONMENT


@dataclass(frozen=True)
class Returned:
    """What a caller received for one completion. ``logprobs``: of the sampled tokens; None if it asked for none."""

    request: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float] | None
    finish_reason: str | None


def returned(outputs: list[Any]) -> list[Returned]:
    """vLLM's ``RequestOutput``s, one item for each completion."""
    return [
        Returned(
            output.request_id,
            list(output.prompt_token_ids),
            list(item.token_ids),
            None
            if item.logprobs is None
            else [row[t].logprob for t, row in zip(item.token_ids, item.logprobs, strict=True)],
            item.finish_reason,
        )
        for output in outputs
        for item in output.outputs
    ]


class InProcessEngine:
    """A context manager, which waits for the boot and ends the process. Its process has one thread for calls.

    So the engine runs no step during any other call.
    """

    def __init__(self, model: str, rundir: RunDir, environment: dict[str, str], **launch: Any) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        environ = ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "RLTOP_HUB": str(rundir.path)} | environment
        self._process = context.Process(target=_serve, args=(other, model, environ, launch))
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        try:
            self.wait()
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._process.kill()

    def wait(self) -> Any:
        """The result of the call before; raises what it raised."""
        wait_for(lambda: self._pipe.poll() or not self._process.is_alive(), "the engine's caller")
        ok, value = self._pipe.recv()
        if not ok:
            raise RuntimeError(value)
        return value

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run ``function(held, *args)``, a function of a module, in the engine's process. Its result is pickled."""
        self.start(function, *args, **options)
        return self.wait()

    def start(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Begin it; see ``wait``."""
        self._pipe.send((function, args, options))

    def close(self) -> None:
        """End the process as a caller's program ends."""
        self._pipe.send(None)
        wait_for(lambda: not self._process.is_alive(), "the engine's caller ends")
        self._process.join()
        assert self._process.exitcode == 0


@dataclass
class Held:
    """The engine of this process, as its caller holds it."""

    llm: Any
    kept: dict[str, Any] = field(default_factory=dict)


def _serve(pipe: Connection, model: str, environ: dict[str, str], launch: dict[str, Any]) -> None:
    os.environ.update(environ)
    try:
        held = Held(_boot(model, launch))
        pipe.send((True, None))
        while (message := pipe.recv()) is not None:
            function, args, options = message
            pipe.send((True, function(held, *args, **options)))
        if held.llm is not None:  # else an engine in another process would be waited for, which waits for its front end
            held.llm.llm_engine.engine_core.shutdown()
    except Exception:  # noqa: BLE001 - for the test, which waits
        pipe.send((False, traceback.format_exc()))


def _boot(model: str, launch: dict[str, Any]) -> Any:
    from vllm import LLM

    if "WORLD_SIZE" in os.environ:  # a trainer of several ranks has its process group before it starts its engine
        import torch

        torch.distributed.init_process_group("gloo")
    common: dict[str, Any] = {
        "model": model,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "dtype": "float32",
        "block_size": 32,
        "enforce_eager": True,
        "async_scheduling": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    return LLM(**common | launch)


# --- calls --------------------------------------------------------------------------------------------------------


def generate(
    held: Held,
    prompts: list[list[int]],
    *,
    regex: str | None = None,
    adapter: str | None = None,
    priorities: bool = False,
    **params: Any,
) -> list[Returned]:
    """One call of ``LLM.generate``. ``priorities``: each request precedes the one before it."""
    options: dict[str, Any] = {}
    if adapter is not None:  # for every other request
        from vllm.lora.request import LoRARequest

        options["lora_request"] = [LoRARequest("policy", 1, adapter) if at % 2 else None for at in range(len(prompts))]
    if priorities:
        options["priority"] = [-at for at in range(len(prompts))]
    outputs = held.llm.generate(_tokens(prompts), _sampling(params, regex), use_tqdm=False, **options)
    return returned(outputs)


def generate_and_abort(held: Held, prompts: list[list[int]], steps: int) -> list[Returned]:
    """Abort all requests after some steps; what the caller had received by then."""
    engine, found = held.llm.llm_engine, dict[str, Any]()
    for at, prompt in enumerate(_tokens(prompts)):
        engine.add_request(f"aborted{at}", prompt, _sampling({"max_tokens": 400}, None))
    for _ in range(steps):
        found |= {output.request_id: output for output in engine.step()}
    engine.abort_request(list(found))
    while engine.has_unfinished_requests():
        engine.step()
    return returned(list(found.values()))


def search_beams(held: Held, prompts: list[list[int]], width: int) -> list[Returned]:
    """``LLM.beam_search``; the tokens of each beam after its prompt."""
    from vllm.sampling_params import BeamSearchParams

    outputs = held.llm.beam_search(_tokens(prompts), BeamSearchParams(beam_width=width, max_tokens=6, ignore_eos=True))
    return [
        Returned("", prompt, list(beam.tokens[len(prompt) :]), None, beam.finish_reason)
        for prompt, output in zip(prompts, outputs, strict=True)
        for beam in output.sequences
    ]


def count_preemptions(held: Held) -> None:
    """Count them from now on; see ``preemptions``."""
    scheduler = held.llm.llm_engine.engine_core.engine_core.scheduler
    preempt, held.kept["preemptions"] = scheduler._preempt_request, 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        held.kept["preemptions"] += 1
        return preempt(*args, **kwargs)

    scheduler._preempt_request = counting


def preemptions(held: Held) -> int:
    """How many there were."""
    return int(held.kept["preemptions"])


def load_directly(held: Held, path: str, version: int | None) -> None:
    """Load a checkpoint past every call of vLLM, one tensor after the other, as TRL does for its colocated engine.

    TRL has no layerwise reload around it: vLLM's CPU build packs linear layers, which can't be loaded otherwise.
    """
    from safetensors.torch import load_file
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from rltop.collectors import weights_updated

    runner = held.llm.llm_engine.model_executor.driver_worker.model_runner
    initialize_layerwise_reload(runner.model)
    for item in load_file(path).items():
        runner.model.load_weights([item])
    finalize_layerwise_reload(runner.model, runner.model_config)
    if version is not None:
        weights_updated(version)


def copy_directly(held: Held) -> None:
    """Change a parameter in place, past everything."""
    model = held.llm.llm_engine.model_executor.driver_worker.model_runner.model
    model.get_parameter("model.norm.weight").data.mul_(1.01)


def drop(held: Held) -> bool:
    """Delete the ``LLM`` as a trainer does, without a garbage collection; whether its client is gone."""
    import weakref

    client = weakref.ref(held.llm.llm_engine.engine_core)
    held.llm = None
    return client() is None


def _tokens(prompts: list[list[int]]) -> list[Any]:
    from vllm import TokensPrompt

    return [TokensPrompt(prompt_token_ids=ids) for ids in prompts]


def _sampling(params: dict[str, Any], regex: str | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structured = {} if regex is None else {"structured_outputs": StructuredOutputsParams(regex=regex)}
    common = {"temperature": 1.0, "max_tokens": 32, "logprobs": 0, "ignore_eos": True}
    return SamplingParams(**common | params | structured)
