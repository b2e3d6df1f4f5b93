"""Requests of our own in an engine core: put in at a step boundary, taken out before the front end sees them.

They go the way of every request, through the core's own ``preprocess_add_request`` and ``add_request``: admission,
scheduling, the KV cache and the model are vLLM's, untouched. Their client is the front end that is there (index 0): of
an output that we should fail to take out it knows no request, and lets it go. A client index of our own would be safe
only as long as nothing fails, since vLLM's output thread indexes its sockets by it. A client from outside was no
choice: nothing can be sent to an ``AsyncLLM`` inside somebody's process, and a server may not let one choose how the
cache is read.

The update of the scheduler is followed by our look at it only while requests of ours are out.
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import numpy as np

from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.patches import UPDATE, restore
from rltop.collectors.vllm.probes.scoring import Got, ScoringRequest
from rltop.collectors.vllm.rollouts.tap import PROBE_PREFIX

NOTHING = np.empty(0, np.float32)


class Injection:
    """The requests of one probe. On the engine's thread only.

    Attributes:
        sent, tokens: requests, and tokens of their prompts, so far.
    """

    def __init__(self, engine: Any, guard: ErrorBoundary, command: str) -> None:
        self.sent = self.tokens = 0
        self._engine = engine
        self._guard = guard
        self._prefix = f"{PROBE_PREFIX}{command}-"
        self._out: dict[str, ScoringRequest] = {}
        self._got: dict[str, Got] = {}
        self._before: tuple[Any] | None = None

    def send(self, wanted: list[ScoringRequest]) -> None:
        """Put requests in. Nothing of an earlier lot may be out."""
        self._out, self._got = {f"{self._prefix}{self.sent + at}": one for at, one in enumerate(wanted)}, {}
        self._listen()
        for name, one in self._out.items():
            self._engine.add_request(*self._request(name, one))
            self.sent += 1
            self.tokens += len(one.ids)

    def answers(self) -> list[Got] | None:
        """What came of the last lot, in its order; None while some are out."""
        return [self._got[name] for name in self._out] if self.complete else None

    @property
    def out(self) -> int:
        """How many of the last lot have not come back. From any thread."""
        return len(self._out) - len(self._got)

    @property
    def complete(self) -> bool:
        """Whether all of the last lot has come back. From any thread."""
        return self.out <= 0

    @property
    def lost(self) -> bool:
        """Whether somebody else ended one of the requests."""
        return any(name not in self._got and name not in self._engine.scheduler.requests for name in self._out)

    def end(self) -> None:
        """Abort what is out, and listen no more. Idempotent."""
        left = [name for name in self._out if name not in self._got and name in self._engine.scheduler.requests]
        if left:
            kinds = sys.modules["vllm.v1.request"].RequestStatus
            self._engine.scheduler.finish_requests(left, kinds.FINISHED_ABORTED)
        self._out, self._got = {}, {}
        if self._before is not None:
            restore(self._engine.scheduler, UPDATE.method, self._before[0])
            self._before = None

    def _listen(self) -> None:
        if self._before is None:
            scheduler = self._engine.scheduler
            self._before = (vars(scheduler).get(UPDATE.method),)
            followed = self._guard.after("probe", getattr(scheduler, UPDATE.method), self._take_out)
            setattr(scheduler, UPDATE.method, followed)

    def _take_out(self, result: Any, *_args: Any) -> None:
        """``Scheduler.update_from_output(...) -> outputs by client``: after everybody else has seen it."""
        for client, of_client in list(result.items()):
            mine = [output for output in of_client.outputs if output.request_id in self._out]
            if not mine:
                continue
            of_client.outputs = [output for output in of_client.outputs if output.request_id not in self._out]
            finished = getattr(of_client, "finished_requests", None)
            if finished:
                of_client.finished_requests = {name for name in finished if name not in self._out} or None
            if not any(getattr(of_client, name, None) for name in ("outputs", "finished_requests", "scheduler_stats")):
                del result[client]
            for output in mine:
                if output.finish_reason is not None:
                    self._got[output.request_id] = _got(output, self._out[output.request_id])

    def _request(self, name: str, wanted: ScoringRequest) -> tuple[Any, int]:
        engine, modules = self._engine, sys.modules
        params = modules["vllm.sampling_params"].SamplingParams(
            max_tokens=1,
            temperature=1.0,
            prompt_logprobs=0 if wanted.scores else None,
            detokenize=False,
            ignore_eos=True,
            skip_reading_prefix_cache=not wanted.reads,
        )
        kind = modules["vllm.v1.engine"].EngineCoreRequest
        fields = {
            "request_id": name,
            "prompt_token_ids": list(wanted.ids),
            "sampling_params": params,
            "arrival_time": time.time(),
            "cache_salt": wanted.salt,
            "client_index": 0,
            "current_wave": getattr(engine, "current_wave", 0),
        }
        known = kind.__struct_fields__
        required = known[: len(known) - len(kind.__struct_defaults__)]
        given = dict.fromkeys(required) | {field: value for field, value in fields.items() if field in known}
        request, wave = engine.preprocess_add_request(kind(**given))
        return request, wave


def fresh_salt() -> str:
    """A cache salt that nobody else has."""
    return f"{PROBE_PREFIX}{uuid.uuid4().hex}"


def _got(output: Any, wanted: ScoringRequest) -> Got:
    stats = getattr(output, "prefill_stats", None)
    cached = getattr(stats, "num_cached_tokens", None) if stats is not None else None
    if cached is None:
        cached = getattr(output, "num_cached_tokens", None)
    tensors = output.new_prompt_logprobs_tensors
    if tensors is None or not wanted.scores:
        return Got(cached, NOTHING)
    # V1's tensors have a row for every token but the first, and leave those of the hit as they were allocated; V2's
    # have the rows that were computed. The last ones are the same in both.
    size = min(len(wanted.ids) - 1 - (cached or 0), int(tensors.logprobs.shape[0]))
    values = tensors.logprobs[-size:, 0] if size > 0 else tensors.logprobs[:0, 0]
    return Got(cached, np.asarray(values, np.float32).copy())
