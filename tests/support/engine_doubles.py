"""Objects shaped like vLLM's, for tests without an engine: the collector reads attributes, not classes."""

from __future__ import annotations

import contextlib
import enum
import queue
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from rltop.collectors.vllm.workers import one_rank, weight_watch


class LogprobsLists(NamedTuple):
    logprob_token_ids: Any
    logprobs: Any


@dataclass
class Output:
    request_id: str
    new_token_ids: list[int]
    new_logprobs: LogprobsLists | None = None
    finish_reason: str | None = None
    prefill_stats: Any = None


@dataclass
class Outputs:
    outputs: list[Output]
    weight_version: str | None = None


def output(name: str, tokens: list[int], *, finish: str | None = None, cached: int | None = None) -> Output:
    """An output whose logprob of token t is -t/8 (exact in float32), beside one other candidate."""
    ids = np.array([[token, token + 1] for token in tokens], np.int32).reshape(-1, 2)
    logprobs = np.array([[-token / 8, -9.0] for token in tokens], np.float32).reshape(-1, 2)
    stats = None if cached is None else SimpleNamespace(num_cached_tokens=cached)
    return Output(name, tokens, LogprobsLists(ids, logprobs), finish, stats)


def runner_output(items: list[Output], idle: list[str]) -> Any:
    """The output of a model runner for a step with outputs ``items``; requests in ``idle`` took no token."""
    took = [item for item in items if item.new_token_ids]
    width = max((item.new_logprobs.logprobs.shape[1] for item in took if item.new_logprobs is not None), default=0)
    rows: list[list[Any]] = [[], []]
    for item in took:
        nothing = np.full((len(item.new_token_ids), width), 7, np.int32)
        told, values = item.new_logprobs or (nothing, nothing)
        rows[0] += [[*row, *[7] * width][:width] for row in told.tolist()]
        rows[1] += [[*row, *[7] * width][:width] for row in values.tolist()]
    for where, row in enumerate([[3] * width] * len(idle)):
        rows[0].insert(2 * where, row)
        rows[1].insert(2 * where, row)
    ids = [item.request_id for item in took]
    for where, name in enumerate(idle):
        ids.insert(2 * where, name)
    if not width:
        return SimpleNamespace(req_ids=ids, logprobs=None)
    told, values = np.array(rows[0], np.int32), np.array(rows[1], np.float32)
    return SimpleNamespace(req_ids=ids, logprobs=LogprobsLists(told.reshape(-1, width), values.reshape(-1, width)))


def request(name: str, prompt: list[int] | None = None, **params: Any) -> Any:
    sampling = SimpleNamespace(**{"logprobs": 0, "temperature": 1.0, "top_p": 1.0, "seed": None} | params)
    return SimpleNamespace(
        request_id=name,
        prompt_token_ids=prompt or [1, 2, 3],
        sampling_params=sampling,
        arrival_time=100.0,
        output_token_ids=[],
        num_tokens=len(prompt or [1, 2, 3]),
        num_computed_tokens=0,
        status="RUNNING",
        structured_output_request=None,
    )


class Block(SimpleNamespace):
    block_id: int
    ref_cnt: int
    block_hash: Any


class BlockPool:
    def __init__(self) -> None:
        self.enable_caching = True
        self.blocks = [Block(block_id=i, ref_cnt=i % 2, block_hash=None if i == 3 else i) for i in range(8)]
        self.evicted: list[int] = []

    def evict_blocks(self, block_ids: set[int]) -> None:
        self.evicted += sorted(block_ids)
        for block_id in block_ids:
            self.blocks[block_id].block_hash = None


class UnitaryKVCacheCoordinator:
    pass


class KVCacheCoordinatorNoPrefixCache:
    pass


class PauseState(enum.IntEnum):
    UNPAUSED = 0
    PAUSED_NEW = 1
    PAUSED_ALL = 2


class Scheduler:
    def __init__(self) -> None:
        self.pause_state: Any = PauseState.UNPAUSED
        self.requests: dict[str, Any] = {}
        self.running: list[Any] = []
        self.waiting: list[Any] = []
        self.connector: Any = None
        self.resets: list[bool] = []
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=SimpleNamespace())])
        self.kv_cache_manager = SimpleNamespace(
            enable_caching=True, block_pool=BlockPool(), coordinator=UnitaryKVCacheCoordinator(), usage=0.25
        )

    def add_request(self, request: Any) -> str:
        self.requests[request.request_id] = request
        return "added"

    def schedule(self, throttle_prefills: bool = False) -> Any:
        return SimpleNamespace(scheduled_new_reqs=[])

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Outputs]:
        return {}

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.resets.append(reset_running_requests)
        if reset_running_requests:
            self.waiting, self.running = self.running + self.waiting, []
        return True

    def has_requests(self) -> bool:
        return bool(self.requests)

    def set_pause_state(self, pause_state: PauseState) -> None:
        self.pause_state = pause_state

    def finish_requests(self, request_ids: Any, finished_status: Any) -> list[Any]:
        return [self.requests.pop(name) for name in request_ids if name in self.requests]


class AsyncScheduler(Scheduler):
    pass


@dataclass(frozen=True)
class Dtype:
    """Reads as torch's do."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


BFLOAT16, FLOAT32 = Dtype("bfloat16"), Dtype("float32")


class Torch:
    """As much of torch as the head needs."""

    float32 = FLOAT32
    inference_mode = contextlib.nullcontext

    @staticmethod
    def zeros(*shape: int, dtype: Dtype, device: Any) -> Any:
        return SimpleNamespace(shape=shape, dtype=dtype, device=device)


class UnquantizedEmbeddingMethod:
    def apply(self, layer: Any, x: Any, bias: Any = None) -> Any:
        return x


class LogitsProcessor:
    """Projects in ``head_dtype``, as vLLM 0.32 does; ``deaf`` ignores it."""

    def __init__(self, head_dtype: Dtype) -> None:
        self.head_dtype = head_dtype
        self.deaf = False

    def _apply_head(self, lm_head: Any, hidden_states: Any, embedding_bias: Any) -> Any:
        return SimpleNamespace(dtype=hidden_states.dtype if self.deaf else self.head_dtype)


class TopKTopPSampler:
    def __init__(self) -> None:
        self.logprobs_mode = "raw_logprobs"
        self.forward = self.forward_cuda

    def forward_cuda(self) -> str:
        assert self.logprobs_mode == "raw_logprobs"
        return "fused"

    def forward_native(self) -> str:
        return "native"


class Sampler:
    def __init__(self) -> None:
        self.logprobs_mode = "raw_logprobs"
        self.topk_topp_sampler = TopKTopPSampler()


class Parameter:
    """Counts changes in place, as torch does; its elements are elsewhere."""

    def __init__(self) -> None:
        self._version = 0

    def copy_(self) -> None:
        self._version += 1

    def numel(self) -> int:
        return 0


class Model:
    """Loads as vLLM's models do: a fused parameter from its parts, and returns the names of the parameters."""

    packed_modules_mapping: dict[str, list[str]] = {"qkv": ["q", "k", "v"]}  # noqa: RUF012 - as in vLLM

    def __init__(self, logits_processor: Any, lm_head: Any) -> None:
        self.logits_processor = logits_processor
        self.lm_head = lm_head
        self.loads: list[str] = []
        self.walks = 0
        self.parameters = {name: Parameter() for name in ("embed.weight", "qkv.weight", "norm.weight")}

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        self.walks += 1
        return list(self.parameters.items())

    def get_parameter(self, name: str) -> Parameter:
        if name not in self.parameters:
            raise AttributeError(name)
        return self.parameters[name]

    def load_weights(self, weights: Any) -> set[str]:
        filled = set()
        for name, value in weights:
            if value is None:
                raise ValueError(f"no value of {name}")
            self.loads.append(name)
            filled.add("qkv.weight" if name[0] in "qkv" else name)
        return filled


class Worker:
    """A rank: the methods that the collector gives it, on a model runner of vLLM's shape."""

    rltop_read_flags = one_rank.read_flags
    rltop_write_flag = one_rank.write_flag
    rltop_weights = weight_watch.report

    def __init__(self, dtype: Dtype = BFLOAT16) -> None:
        weight = SimpleNamespace(shape=(128, 64), device=SimpleNamespace(type="cpu"), numel=lambda: 128 * 64)
        self.model_runner = SimpleNamespace(
            use_async_scheduling=True,
            requests={},
            input_batch=SimpleNamespace(
                prev_sampled_token_ids=object(), prev_req_id_to_index={}, sampled_token_ids_cpu=object()
            ),
            sampler=Sampler(),
            prompt_logprobs_worker=SimpleNamespace(logprobs_mode="raw_logprobs"),
            model_config=SimpleNamespace(logprobs_mode="raw_logprobs", dtype=dtype, enable_sleep_mode=False),
            vllm_config=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=64)),
            model=Model(
                LogitsProcessor(dtype), SimpleNamespace(quant_method=UnquantizedEmbeddingMethod(), weight=weight)
            ),
        )


@dataclass
class Executor:
    """Two ranks by default."""

    workers: list[Any] = field(default_factory=lambda: [Worker(), Worker()])

    def collective_rpc(self, method: Any, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(w, method)(*args) if isinstance(method, str) else method(w, *args) for w in self.workers]


@dataclass
class EngineCore:
    """An engine core whose batches in flight are the outputs in ``batch_queue``."""

    scheduler: Any = field(default_factory=AsyncScheduler)

    def __post_init__(self) -> None:
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.output_queue: queue.Queue[Any] = queue.Queue()
        self.batch_queue_size = 2
        self.batch_queue: deque[Any] | None = deque(maxlen=2)
        self.async_scheduling = True
        self.request_block_hasher = object()
        self.updates: list[str] = []
        self.failing: set[str] = set()
        self._weight_version = "default"
        self.model_executor = Executor()
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(pipeline_parallel_size=1, data_parallel_size=1, data_parallel_index=0),
            max_concurrent_batches=2,
            speculative_config=None,
            lora_config=None,
            model_config=SimpleNamespace(
                enable_sleep_mode=False, is_multimodal_model=False, is_encoder_decoder=False, runner_type="generate"
            ),
            device_config=SimpleNamespace(device_type="cuda"),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=64, long_prefill_token_threshold=0),
        )
        self.step_fn = self.step_with_batch_queue

    def step_with_batch_queue(self) -> tuple[dict[int, Outputs] | None, bool]:
        assert self.batch_queue is not None
        if self.scheduler.has_requests():
            self.scheduler.schedule()
        if not self.batch_queue:
            return None, False
        outputs = self.batch_queue.pop()
        for of_client in outputs.values():
            for item in of_client.outputs:
                if item.finish_reason is not None:
                    del self.scheduler.requests[item.request_id]
        return outputs, True

    def _process_engine_step(self) -> bool:
        outputs, executed = self.step_fn()
        for item in outputs.items() if outputs else ():
            self.output_queue.put_nowait(item)
        return executed

    def _reject_add_while_paused(self, request: Any) -> bool:
        """As from vLLM 0.33 on; ``reject_new_requests`` while paused by ``abort`` or ``wait``."""
        return getattr(self, "reject_new_requests", False)

    def post_step(self, model_executed: bool) -> None:
        """vLLM's hook after each step."""

    def pause_scheduler(self, mode: str = "abort", clear_cache: bool = True) -> str:
        if clear_cache:
            self.reset_prefix_cache(reset_running_requests=True)
        return f"paused {mode} {clear_cache}"

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        return bool(self.scheduler.reset_prefix_cache(reset_running_requests, reset_connector))

    def _handle_client_request(self, request_type: Any, request: Any) -> str:
        return "handled"

    def collective_rpc(self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> list[str]:
        self.updates.append(method)
        if method in self.failing:
            raise RuntimeError(f"no {method} today")
        return [f"did {method}"]


class InProcessCore(EngineCore):
    """An engine core inside its caller's process: no queues, and no loop that runs its steps."""

    _process_engine_step = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        del self.input_queue, self.output_queue
        self.post_steps: list[bool] = []

    def post_step(self, model_executed: bool) -> None:
        self.post_steps.append(model_executed)

    def get_output(self) -> Outputs:
        """As ``InprocClient.get_output``."""
        outputs, executed = self.step_fn()
        self.post_step(model_executed=executed)
        return (outputs and outputs.get(0)) or Outputs([])


class ExecutorWithExternalLauncher(Executor):
    """The executor of an engine that torchrun started."""


def launched(engine: EngineCore, *, ranks: int, replicas: int = 1) -> EngineCore:
    """The engine as an external launcher starts it, with ``ranks`` that step together."""
    engine.model_executor = ExecutorWithExternalLauncher()
    engine.vllm_config.parallel_config.world_size = ranks
    engine.vllm_config.parallel_config.data_parallel_size = replicas
    return engine
