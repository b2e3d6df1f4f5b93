"""Sends a probe's requests from inside the engine core, and removes their outputs before the front end receives them.

They are added at a step boundary through the core's own ``preprocess_add_request`` and ``add_request``, so admission,
scheduling, the KV cache and the model are vLLM's, unchanged. Their client index is that of the existing front end (0):
if an output is not removed, the front end ignores it, because it does not know the request. With another client index
the same failure would crash vLLM's output thread, which indexes its sockets by it. Sending requests from outside is not
possible in general: there is no way into an ``AsyncLLM`` in another process, and a server may not allow choosing how
the cache is read.

``Scheduler.update_from_output`` is wrapped only while requests of a probe are in flight.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import numpy as np

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.patches import UPDATE, remove
from rltop.collectors.vllm.probes.scoring import ScoringRequest, ScoringResult
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX

NO_LOGPROBS = np.empty(0, np.float32)


class Injection:
    """The requests of one probe. On the engine's thread only, unless stated otherwise.

    Attributes:
        sent, tokens: number of requests sent so far, and of tokens in their prompts.
    """

    def __init__(self, engine: Any, guard: ErrorBoundary, command: str) -> None:
        self.sent = self.tokens = 0
        self._engine = engine
        self._guard = guard
        self._prefix = f"{PROBE_PREFIX}{command}-"
        self._batch: dict[str, ScoringRequest] = {}
        self._results: dict[str, ScoringResult] = {}
        self._unwrapped: tuple[Any, Any] | None = None  # our wrapper, and what it shadows on the instance

    def send(self, batch: list[ScoringRequest]) -> None:
        """Send requests. The previous batch must be complete."""
        self._batch, self._results = {f"{self._prefix}{self.sent + at}": one for at, one in enumerate(batch)}, {}
        self._wrap()
        for name, one in self._batch.items():
            self._engine.add_request(*self._vllm_request(name, one))
            self.sent += 1
            self.tokens += len(one.ids)

    def results(self) -> list[ScoringResult] | None:
        """The results of the last batch, in its order; None while some requests are in flight."""
        return [self._results[name] for name in self._batch] if self.complete else None

    @property
    def in_flight(self) -> int:
        """Number of requests of the last batch without a result. From any thread."""
        return len(self._batch) - len(self._results)

    @property
    def complete(self) -> bool:
        """Whether all requests of the last batch have results. From any thread."""
        return self.in_flight <= 0

    @property
    def lost(self) -> bool:
        """Whether another caller aborted one of the requests."""
        return any(name not in self._results and name not in self._engine.scheduler.requests for name in self._batch)

    def stop(self) -> None:
        """Abort the requests in flight and unwrap the method. Idempotent."""
        requests = self._engine.scheduler.requests
        remaining = [name for name in self._batch if name not in self._results and name in requests]
        if remaining:
            kinds = sys.modules["vllm.v1.request"].RequestStatus
            self._engine.scheduler.finish_requests(remaining, kinds.FINISHED_ABORTED)
        self._batch, self._results = {}, {}
        if self._unwrapped is not None:
            remove(self._engine.scheduler, UPDATE.method, *self._unwrapped)
            self._unwrapped = None

    def _wrap(self) -> None:
        if self._unwrapped is None:
            scheduler = self._engine.scheduler
            wrapped = self._guard.after("probe", getattr(scheduler, UPDATE.method), self._remove_outputs)
            self._unwrapped = wrapped, vars(scheduler).get(UPDATE.method)
            setattr(scheduler, UPDATE.method, wrapped)

    def _remove_outputs(self, result: Any, *_args: Any) -> None:
        """``Scheduler.update_from_output(...) -> outputs by client``; runs after all other hooks."""
        for client, of_client in list(result.items()):
            own = [output for output in of_client.outputs if output.request_id in self._batch]
            if not own:
                continue
            of_client.outputs = [output for output in of_client.outputs if output.request_id not in self._batch]
            finished = getattr(of_client, "finished_requests", None)
            if finished:
                of_client.finished_requests = {name for name in finished if name not in self._batch} or None
            if not any(getattr(of_client, name, None) for name in ("outputs", "finished_requests", "scheduler_stats")):
                del result[client]
            for output in own:
                if output.finish_reason is not None:
                    self._results[output.request_id] = _result(output, self._batch[output.request_id])

    def _vllm_request(self, name: str, request: ScoringRequest) -> tuple[Any, int]:
        engine, modules = self._engine, sys.modules
        params = modules["vllm.sampling_params"].SamplingParams(
            max_tokens=1,
            temperature=1.0,
            prompt_logprobs=0 if request.scores else None,
            detokenize=False,
            ignore_eos=True,
            skip_reading_prefix_cache=not request.reads_cache,
        )
        kind = modules["vllm.v1.engine"].EngineCoreRequest
        fields = {
            "request_id": name,
            "prompt_token_ids": list(request.ids),
            "sampling_params": params,
            "arrival_time": time.time(),
            "cache_salt": request.salt,
            "client_index": 0,
            "current_wave": getattr(engine, "current_wave", 0),
        }
        known = kind.__struct_fields__
        required = known[: len(known) - len(kind.__struct_defaults__)]
        values = dict.fromkeys(required) | {field: value for field, value in fields.items() if field in known}
        prepared, wave = engine.preprocess_add_request(kind(**values))
        return prepared, wave


def fresh_salt() -> str:
    """A unique cache salt."""
    return f"{PROBE_PREFIX}{uuid.uuid4().hex}"


def _result(output: Any, request: ScoringRequest) -> ScoringResult:
    stats = getattr(output, "prefill_stats", None)
    cached = getattr(stats, "num_cached_tokens", None) if stats is not None else None
    if cached is None:
        cached = getattr(output, "num_cached_tokens", None)
    tensors = output.new_prompt_logprobs_tensors
    if tensors is None or not request.scores:
        return ScoringResult(cached, NO_LOGPROBS)
    # V1's tensors have a row for every token but the first, with uninitialised rows for cached tokens; V2's have only
    # computed rows. The last rows are the same in both.
    size = min(len(request.ids) - 1 - (cached or 0), int(tensors.logprobs.shape[0]))
    values = tensors.logprobs[-size:, 0] if size > 0 else tensors.logprobs[:0, 0]
    return ScoringResult(cached, np.asarray(values, np.float32).copy())
