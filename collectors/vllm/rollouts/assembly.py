"""From a stream of references to whole rollouts. Runs on the sender's thread; works on duck-typed objects.

A request is published once, whole, or dropped whole and counted: after a hole in the stream every request that may be
part of it is dropped, so a rollout never misses a token it claims to have. ``added == published + dropped + alive``.

Steps wait as they came until ``settle`` reads them together, since reading many costs little more than reading one.
Whatever must not be read together with them (another version, another flag epoch) settles them first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np

from rltop.collectors.vllm.rollouts.columns import (
    Batch,
    Layout,
    RequestRows,
    by_request,
    columns_of,
    layout_of,
    rows_of,
)
from rltop.collectors.vllm.rollouts.request import TOKEN_BYTES, FinishedRollout, OpenRequest, packed
from rltop.collectors.vllm.rollouts.tap import (
    Noted,
    RequestAdded,
    RequestsEnded,
    RequestsScheduled,
    SampledTokens,
    StepOutputs,
    version_of,
)

ALIVE_LIMIT_BYTES = 256 << 20
"""Bound on what is kept of unfinished requests; beyond it the request that comes or grows is dropped whole."""

SALTS = 4096
"""Cache salts remembered, of the last requests that had one: a probe reads the cache as they did."""

UNSETTLED_LIMIT = 4096
"""Outputs that are kept as vLLM's objects; about 4 MiB of them."""

UNSETTLED_ROWS = 1 << 15
"""Rows that are kept as they were copied; half a MiB where only the sampled token's logprob is recorded."""


class _Origin(NamedTuple):
    """What all unsettled outputs have in common: flag epoch, what tells the policy version, layout of logprobs."""

    epoch: int
    label: Any
    inferred: int | None
    layout: Layout | None


class _End(NamedTuple):
    """How a request ended: its last output, and when that came."""

    output: Any
    time: float


class Assembler:
    """Applies records in order; collects finished rollouts in ``finished`` until they are taken.

    Call ``settle`` after the records at hand: only then are the counters and ``finished`` up to date.

    Args:
        alive_limit_bytes: bound on unfinished requests. started: wall clock at which the engine was first watched.

    Attributes:
        added, published, dropped: requests, so that ``added == published + dropped + alive`` at all times.
        misplaced: sampled tokens whose logprob was not in column 0 of what vLLM recorded; their logprob is NaN.
        unmatched: requests, dropped, that did not take as many tokens as were sampled for them.
        prompt_tokens, generated_tokens, cached_tokens, finished_count, aborted, without_logprobs: counters.
    """

    def __init__(self, alive_limit_bytes: int = ALIVE_LIMIT_BYTES, started: float = 0.0) -> None:
        self.finished: list[FinishedRollout] = []
        self.added = self.published = self.dropped = 0
        self.misplaced = self.unmatched = 0
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0
        self.finished_count = self.aborted = self.without_logprobs = 0
        self._alive: dict[str, OpenRequest] = {}
        self._alive_bytes = 0
        self._salts: OrderedDict[str, str] = OrderedDict()
        self._alive_limit = alive_limit_bytes
        self._started = started
        self._shed = 0
        self._steps: list[list[Any]] = []
        self._batches: list[Batch] = []
        self._firsts: dict[str, Any] = {}
        self._unsettled = 0
        self._ends: dict[str, _End] = {}
        self._origin = _Origin(0, None, None, None)

    @property
    def alive(self) -> int:
        """Requests that are neither published nor dropped."""
        return len(self._alive)

    def salt_of(self, request_id: str) -> str | None:
        """The cache salt of one of the last requests that had one. From any thread."""
        return self._salts.get(request_id)

    def _remember(self, request_id: str, salt: str) -> None:
        self._salts[request_id] = salt
        if len(self._salts) > SALTS:
            self._salts.popitem(last=False)

    def take(self) -> list[FinishedRollout]:
        """What was finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def hole(self) -> None:
        """Something of the stream was lost: drop whatever may have been part of it."""
        self._forget_steps()
        self.dropped += len(self._alive)
        self._alive.clear()
        self._alive_bytes = 0

    def lost_requests(self, count: int) -> None:
        """Requests that are not followed: their arrival was shed, or there is no room."""
        self.added += count
        self.dropped += count

    def catch_up(self, shed: int) -> None:
        """Note how many records had been lost by now."""
        if shed != self._shed:
            self._shed = shed
            self.settle()  # what ended before the hole is whole
            self.hole()

    def take_in(self, records: Iterable[Noted]) -> bool:
        """Apply records, and settle. True, so that a guard can tell it from a contained fault."""
        for record in records:
            self.apply(record)
        self.settle()
        return True

    def apply(self, noted: Noted) -> None:
        """Take in the next record."""
        if noted[0] != self._shed:
            self.catch_up(noted[0])
        if type(noted) is tuple or isinstance(noted, SampledTokens):
            self._sampled(noted)
            return
        record = cast("RequestAdded | RequestsScheduled | StepOutputs | RequestsEnded", noted)
        if isinstance(record, StepOutputs):
            self._stepped(record)
        elif isinstance(record, RequestAdded):
            self._add(record)
        elif isinstance(record, RequestsScheduled):
            self._schedule(record)
        else:
            self.settle()
            for request_id, reason in record.requests:
                self._finish(request_id, reason, record.time)

    def _add(self, record: RequestAdded) -> None:
        request = record.request
        params = getattr(request, "sampling_params", None)
        if request.request_id in self._ends:
            self.settle()  # the name is free again
        if params is None or getattr(request, "resumable", False) or request.request_id in self._alive:
            return  # pooling, or a session fed in turns: not rollouts
        if self._alive_bytes > self._alive_limit:
            self.lost_requests(1)
            return
        alive = OpenRequest.of(request, params, record.time)
        if salt := getattr(request, "cache_salt", None):
            self._remember(request.request_id, str(salt))
        self.added += 1
        self._alive[request.request_id] = alive
        self._alive_bytes += alive.nbytes

    def _schedule(self, record: RequestsScheduled) -> None:
        for new in record.new_requests:
            alive = self._alive.get(new.req_id)
            if alive is not None and alive.first_step < 0:  # some runners list resumed requests here again
                alive.scheduled = record.time
                alive.first_step = record.step
                alive.updated = record.updated
                alive.lookup_off = alive.skips_lookup or not record.lookup

    def _stepped(self, record: StepOutputs) -> None:
        for of_client in record.outputs.values():
            outputs = of_client.outputs
            label = record.label if record.label is not None else getattr(of_client, "weight_version", None)
            origin = _Origin(record.epoch, label, record.inferred, layout_of(outputs) or self._origin.layout)
            if origin != self._origin or self._batches or self._unsettled >= UNSETTLED_LIMIT:
                self.settle()
                self._origin = origin
            self._steps.append(outputs)
            self._unsettled += len(outputs)
            for output in outputs:
                if output.finish_reason is not None:
                    self._ends.setdefault(output.request_id, _End(output, record.time))

    def _sampled(self, record: tuple[Any, ...]) -> None:
        """A ``tap.Sampled``, or a tuple of its fields, of which none is made: this runs for every step."""
        _, weight, ids, _, marked, time, told, logprobs, types, epoch, label, inferred = record
        layout = None
        if types is not None:
            layout = len(told) // len(ids), len(logprobs) // len(ids), types
        if (epoch, label, inferred, layout) != self._origin or self._steps or self._unsettled >= UNSETTLED_ROWS:
            self.settle()
            self._origin = _Origin(epoch, label, inferred, layout)
        self._batches.append(record)
        self._unsettled += weight
        for output in marked or ():
            self._firsts.setdefault(output.request_id, output)
            if output.finish_reason is not None:
                self._ends.setdefault(output.request_id, _End(output, time))

    def settle(self) -> bool:
        """Read the steps that wait. True, so that a guard can tell it from a contained fault."""
        steps, batches, firsts, ends = self._forget_steps()
        if batches:
            grown = self._append_rows(rows_of(batches, self._origin.layout), firsts)
        elif steps:
            grown = self._append_outputs(by_request(steps), ends)
        else:
            return True
        for request_id, end in ends.items():
            self._finish(request_id, str(end.output.finish_reason), end.time)
        for request_id in grown:
            if self._alive_bytes <= self._alive_limit:
                break
            if request_id in self._alive:
                self._drop(request_id)
        return True

    def _append_rows(self, rows: RequestRows, firsts: dict[str, Any]) -> list[str]:
        """Append to each request its rows; who it was."""
        version, source = version_of(self._origin.label, self._origin.inferred)
        tokens, logprobs = rows.told.tobytes(), rows.logprobs.tobytes()
        recorded = self._origin.layout is not None
        grown = []
        stop = taken = 0
        for request_id, size in zip(rows.ids, rows.sizes, strict=True):
            start, stop = stop, stop + size
            alive = self._alive.get(request_id)
            if alive is None or not size:
                continue
            if not alive.tokens:
                self._first(alive, firsts.get(request_id))
            if alive.origin is not self._origin:
                alive.origin = self._origin
                alive.run(version, source, self._origin.epoch)
                alive.by_rows = True
                alive.recorded = alive.recorded or (recorded and alive.asked)
            alive.tokens += tokens[4 * start : 4 * stop]
            alive.logprobs += logprobs[4 * start : 4 * stop] if alive.asked else _NAN * size
            taken += size
            grown.append(request_id)
        self.generated_tokens += taken
        self._alive_bytes += TOKEN_BYTES * taken
        return grown

    def _append_outputs(self, found: dict[str, list[Any]], ends: dict[str, _End]) -> list[str]:
        """Append to each request its outputs; who it was."""
        followed = []
        for request_id, outputs in found.items():
            alive = self._alive.get(request_id)
            if alive is not None:
                end = ends.get(request_id)
                if end is not None and end.output is not outputs[-1]:
                    outputs = _up_to(outputs, end.output)
                followed.append((request_id, alive, outputs))
        self._append(followed)
        return [request_id for request_id, _, _ in followed]

    def _forget_steps(self) -> tuple[list[list[Any]], list[Batch], dict[str, Any], dict[str, _End]]:
        """What waited; nothing of it does from now on, also if a fault stops what is done with it."""
        waited = self._steps, self._batches, self._firsts, self._ends
        self._steps, self._batches, self._firsts, self._ends, self._unsettled = [], [], {}, {}, 0
        return waited

    def _append(self, followed: list[tuple[str, OpenRequest, list[Any]]]) -> None:
        """Append to each request what its outputs sampled."""
        columns = columns_of([output for _, _, outputs in followed for output in outputs])
        self.misplaced += columns.misplaced
        self.generated_tokens += columns.token_ids.size
        self._alive_bytes += TOKEN_BYTES * columns.token_ids.size
        version, source = version_of(self._origin.label, self._origin.inferred)
        tokens, logprobs = columns.token_ids.tobytes(), columns.logprobs.tobytes()
        of_each = iter(columns.sizes)
        start = 0
        for _, alive, outputs in followed:
            stop = start + sum(islice(of_each, len(outputs)))
            if stop == start:
                continue
            if not alive.tokens:
                self._first(alive, next(output for output in outputs if output.new_token_ids))
            alive.origin = self._origin
            alive.run(version, source, self._origin.epoch)
            alive.recorded = alive.recorded or any(o.new_logprobs is not None for o in outputs if o.new_token_ids)
            alive.tokens += tokens[4 * start : 4 * stop]
            alive.logprobs += logprobs[4 * start : 4 * stop]
            start = stop

    def _first(self, alive: OpenRequest, output: Any) -> None:
        """Cached tokens as of the first scheduling: vLLM does not set them again after a preemption."""
        stats = getattr(output, "prefill_stats", None)
        cached = getattr(stats, "num_cached_tokens", None) if stats is not None else None
        if cached is None:
            cached = getattr(output, "num_cached_tokens", None)
        alive.cached = None if cached is None or cached < 0 else int(cached)
        self.prompt_tokens += len(alive.prompt) // 4
        self.cached_tokens += alive.cached or 0

    def _drop(self, request_id: str) -> None:
        alive = self._alive.pop(request_id)
        self._alive_bytes -= alive.nbytes
        self.dropped += 1

    def _finish(self, request_id: str, reason: str, time: float) -> None:
        alive = self._alive.pop(request_id, None)
        if alive is None:
            return
        self._alive_bytes -= alive.nbytes
        if alive.truth is not None and (alive.by_rows or not alive.tokens):
            taken = packed(alive.truth[:])
            if len(taken) != len(alive.tokens):
                self.dropped += 1
                self.unmatched += 1
                return
            if taken != alive.tokens:
                self.misplaced += alive.correct(taken)
        finished = alive.end(request_id, reason, time, self._started)
        self.published += 1
        self.finished_count += reason != "abort"
        self.aborted += reason == "abort"
        self.without_logprobs += not finished.rollout.has_logprobs
        self.finished.append(finished)


def _up_to(outputs: list[Any], last: Any) -> list[Any]:
    """What comes after the end of a request is not its own."""
    return outputs[: next(place for place, output in enumerate(outputs) if output is last) + 1]


_NAN = np.float32(np.nan).tobytes()
