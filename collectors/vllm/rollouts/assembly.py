"""Assembles the tap's records into complete rollouts. Runs on the sender's thread; works on duck-typed objects.

A request is published once, complete, or dropped completely and counted: after a gap in the records every request that
the gap may have affected is dropped, so no rollout lacks a token that it claims to have. At all times
``added == published + dropped + alive``.

Steps are buffered until ``flush``, because reading many together costs little more than reading one. A step that can't
be read together with the buffered ones (another version or flag epoch) flushes them first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from rltop.collectors.vllm.rollouts.columns import (
    Layout,
    RequestRows,
    by_request,
    layout_of,
    read_batches,
    read_outputs,
)
from rltop.collectors.vllm.rollouts.request import TOKEN_BYTES, EarlierRequest, FinishedRollout, OpenRequest, packed
from rltop.collectors.vllm.rollouts.tap import (
    Record,
    RequestAdded,
    RequestsEnded,
    RequestsScheduled,
    SampledFields,
    StepOutputs,
    version_of,
)
from rltop.collectors.vllm.rollouts.weight_updates import PolicyVersion

ALIVE_LIMIT_BYTES = 256 << 20
"""Bound on the memory of unfinished requests; beyond it a request that arrives or grows is dropped completely."""

SALTS = 4096
"""Remembered cache salts, of the latest requests that had one; probes read the cache with the same salt."""

BUFFERED_OUTPUTS = 4096
"""Outputs buffered as vLLM's objects; about 4 MiB of them."""

BUFFERED_ROWS = 1 << 15
"""Rows buffered as bytes; half a MiB if only the sampled token's logprob is recorded."""


class _Context(NamedTuple):
    """Properties shared by all buffered steps: flag epoch, sources of the policy version, layout of the logprobs."""

    flag_epoch: int
    label: Any
    observed_version: PolicyVersion | None
    layout: Layout | None


class _End(NamedTuple):
    """A request's last output, and its wall clock in seconds."""

    output: Any
    time: float


class Assembler:
    """Applies records in order; collects finished rollouts until ``pop_finished``.

    Call ``flush`` after the available records: only then are the counters and finished rollouts up to date.

    Args:
        alive_limit_bytes: bound on the memory of unfinished requests.
        started: wall clock at which the tap was installed, seconds.
        earlier: the requests that were in flight then, by id. Their tokens are counted; they are no rollouts, because
            their first tokens and prompts are unknown.

    Attributes:
        added, published, dropped: requests; ``added == published + dropped + alive`` at all times.
        misplaced: sampled tokens whose logprob was not in column 0 of vLLM's arrays; their logprob is NaN.
        earlier: number of requests that were in flight when the tap was installed.
        unmatched: dropped requests whose own token count differs from the tokens recorded for them.
        first_token_s, first_tokens, token_gap_s, token_gaps: sums of latencies; see ``wire.EngineState``.
        prompt_tokens, generated_tokens, cached_tokens, finished_count, aborted, without_logprobs: counters.
    """

    def __init__(
        self, alive_limit_bytes: int = ALIVE_LIMIT_BYTES, started: float = 0.0, earlier: Mapping[str, Any] | None = None
    ) -> None:
        self.added = self.published = self.dropped = 0
        self.misplaced = self.unmatched = 0
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0
        self.finished_count = self.aborted = self.without_logprobs = 0
        self._finished: list[FinishedRollout] = []
        self._alive: dict[str, OpenRequest] = {}
        self._alive_bytes = 0
        self._salts: OrderedDict[str, str] = OrderedDict()
        self._alive_limit = alive_limit_bytes
        self._started = started
        self._earlier = {name: EarlierRequest.from_vllm(request) for name, request in (earlier or {}).items()}
        self.earlier = len(self._earlier)
        self.first_token_s = self.token_gap_s = 0.0
        self.first_tokens = self.token_gaps = 0
        self._preemptions = 0
        self._drops = 0
        self._steps: list[list[Any]] = []
        self._batches: list[SampledFields] = []
        self._firsts: dict[str, Any] = {}
        self._buffered = 0
        self._ends: dict[str, _End] = {}
        self._context = _Context(0, None, None, None)

    @property
    def alive(self) -> int:
        """Requests that are neither published nor dropped."""
        return len(self._alive)

    def preemptions(self) -> int:
        """Preemptions since the tap was installed, of ended and of unfinished requests. On the sender's thread."""
        earlier = sum(request.preemptions() for request in self._earlier.values())
        return self._preemptions + earlier + sum(alive.preemptions() for alive in self._alive.values())

    def earlier_text(self) -> str:
        """What is done with the requests that were in flight when the tap was installed. From any thread."""
        return (
            f"{self.earlier} were in flight, {len(self._earlier)} still are: "
            "their tokens are counted, their rollouts can't be joined"
        )

    def salt_of(self, request_id: str) -> str | None:
        """The cache salt of a recent request; None if it had none or is too old. From any thread."""
        return self._salts.get(request_id)

    def _remember_salt(self, request_id: str, salt: str) -> None:
        self._salts[request_id] = salt
        if len(self._salts) > SALTS:
            self._salts.popitem(last=False)

    def pop_finished(self) -> list[FinishedRollout]:
        """Return and forget the rollouts finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def drop_alive(self) -> None:
        """Drop every unfinished request, after a gap in the records."""
        self._take_buffer()
        self.dropped += len(self._alive)
        self._alive.clear()
        self._alive_bytes = 0

    def count_dropped(self, count: int) -> None:
        """Count requests that are not followed: their arrival was dropped, or there is no room."""
        self.added += count
        self.dropped += count

    def check_gap(self, drops: int) -> None:
        """Compare the number of records dropped so far; if it rose, drop the requests that the gap may affect."""
        if drops != self._drops:
            self._drops = drops
            self.flush()  # requests that ended before the gap are complete
            self.drop_alive()

    def apply_all(self, records: Iterable[Record]) -> bool:
        """Apply records and flush. Returns True, to distinguish success from a contained exception (None)."""
        for record in records:
            self.apply(record)
        self.flush()
        return True

    def apply(self, record: Record) -> None:
        """Process the next record."""
        if record[0] != self._drops:
            self.check_gap(record[0])
        if isinstance(record, StepOutputs):
            self._buffer_outputs(record)
        elif isinstance(record, RequestAdded):
            self._add(record)
        elif isinstance(record, RequestsScheduled):
            self._schedule(record)
        elif isinstance(record, RequestsEnded):
            self.flush()
            for request_id, reason in record.requests:
                self._finish(request_id, reason, record.time)
        else:
            self._buffer_batch(record)

    def _add(self, record: RequestAdded) -> None:
        request = record.request
        params = getattr(request, "sampling_params", None)
        if request.request_id in self._ends:
            self.flush()  # finishes the earlier request with this id
        if params is None or getattr(request, "resumable", False) or request.request_id in self._alive:
            return  # pooling requests and multi-turn sessions are not rollouts
        if self._alive_bytes > self._alive_limit:
            self.count_dropped(1)
            return
        alive = OpenRequest.from_vllm(request, params, record.time)
        if salt := getattr(request, "cache_salt", None):
            self._remember_salt(request.request_id, str(salt))
        self.added += 1
        self._alive[request.request_id] = alive
        self._alive_bytes += alive.nbytes

    def _schedule(self, record: RequestsScheduled) -> None:
        for new in record.new_requests:
            alive = self._alive.get(new.req_id)
            if alive is not None and alive.first_step < 0:  # some runners list resumed requests here again
                alive.scheduled = record.time
                alive.first_step = record.step
                alive.updated = record.last_update
                alive.lookup_off = alive.skips_lookup or not record.lookup

    def _buffer_outputs(self, record: StepOutputs) -> None:
        for of_client in record.outputs.values():
            outputs = of_client.outputs
            label = record.label if record.label is not None else getattr(of_client, "weight_version", None)
            layout = layout_of(outputs) or self._context.layout
            context = _Context(record.flag_epoch, label, record.observed_version, layout)
            if context != self._context or self._batches or self._buffered >= BUFFERED_OUTPUTS:
                self.flush()
                self._context = context
            self._steps.append(outputs)
            self._buffered += len(outputs)
            for output in outputs:
                self._note_first(output, record.time)
                if output.finish_reason is not None:
                    self._ends.setdefault(output.request_id, _End(output, record.time))

    def _buffer_batch(self, record: SampledFields) -> None:
        """Unpacks the tuple, without making a ``SampledTokens``: this runs for every step."""
        _, weight, ids, _, marked, time, id_bytes, logprob_bytes, types, flag_epoch, label, observed_version = record
        layout = None
        if types is not None:
            layout = len(id_bytes) // len(ids), len(logprob_bytes) // len(ids), types
        context = flag_epoch, label, observed_version, layout
        if context != self._context or self._steps or self._buffered >= BUFFERED_ROWS:
            self.flush()
            self._context = _Context(*context)
        self._batches.append(record)
        self._buffered += weight
        for output in marked or ():
            self._firsts.setdefault(output.request_id, output)
            self._note_first(output, time)
            if output.finish_reason is not None:
                self._ends.setdefault(output.request_id, _End(output, time))

    def _note_first(self, output: Any, time: float) -> None:
        """Measure the time to the first token, if this output has it."""
        alive = self._alive.get(output.request_id)
        if alive is not None and not alive.first_token and output.new_token_ids:
            alive.first_token = time
            self.first_token_s += max(time - alive.arrived, 0.0)
            self.first_tokens += 1

    def flush(self) -> None:
        """Read the buffered steps, finish the requests that ended in them, and apply the memory bound."""
        steps, batches, firsts, ends = self._take_buffer()
        if batches:
            grown = self._append_rows(read_batches(batches, self._context.layout), firsts)
        elif steps:
            grown = self._append_outputs(by_request(steps), ends)
        else:
            return
        for request_id, end in ends.items():
            self._finish(request_id, str(end.output.finish_reason), end.time)
        for request_id in grown:
            if self._alive_bytes <= self._alive_limit:
                break
            if request_id in self._alive:
                self._drop(request_id)

    def _append_rows(self, rows: RequestRows, firsts: dict[str, Any]) -> list[str]:
        """Append its rows to each request; return the ids of these requests."""
        context = self._context
        version, source = version_of(context.label, context.observed_version)
        tokens, logprobs = rows.token_ids.tobytes(), rows.logprobs.tobytes()
        recorded = context.layout is not None
        grown = []
        stop = total = 0
        for request_id, size in zip(rows.request_ids, rows.sizes, strict=True):
            start, stop = stop, stop + size
            alive = self._alive.get(request_id)
            if alive is None or not size:
                self.generated_tokens += size if request_id in self._earlier else 0
                continue
            if not alive.tokens:
                self._count_prompt(alive, firsts.get(request_id))
            if alive.context is not context:
                alive.context = context
                alive.begin_run(version, source, context.flag_epoch)
                alive.from_batches = True
                alive.has_logprobs = alive.has_logprobs or (recorded and alive.wants_logprobs)
            alive.tokens += tokens[4 * start : 4 * stop]
            alive.logprobs += logprobs[4 * start : 4 * stop] if alive.wants_logprobs else _NAN * size
            total += size
            grown.append(request_id)
        self.generated_tokens += total
        self._alive_bytes += TOKEN_BYTES * total
        return grown

    def _append_outputs(self, grouped: dict[str, list[Any]], ends: dict[str, _End]) -> list[str]:
        """Append its outputs to each request; return the ids of these requests."""
        followed = []
        for request_id, outputs in grouped.items():
            alive = self._alive.get(request_id)
            if alive is not None:
                end = ends.get(request_id)
                if end is not None and end.output is not outputs[-1]:
                    outputs = _up_to(outputs, end.output)
                followed.append((request_id, alive, outputs))
            elif request_id in self._earlier:
                self.generated_tokens += sum(len(output.new_token_ids) for output in outputs)
        self._append(followed)
        return [request_id for request_id, _, _ in followed]

    def _take_buffer(self) -> tuple[list[list[Any]], list[SampledFields], dict[str, Any], dict[str, _End]]:
        """Empty the buffer and return it. It stays empty if processing its content raises."""
        buffered = self._steps, self._batches, self._firsts, self._ends
        self._steps, self._batches, self._firsts, self._ends, self._buffered = [], [], {}, {}, 0
        return buffered

    def _append(self, followed: list[tuple[str, OpenRequest, list[Any]]]) -> None:
        """Append the tokens of its outputs to each request."""
        columns = read_outputs([output for _, _, outputs in followed for output in outputs])
        self.misplaced += columns.misplaced
        self.generated_tokens += columns.token_ids.size
        self._alive_bytes += TOKEN_BYTES * columns.token_ids.size
        context = self._context
        version, source = version_of(context.label, context.observed_version)
        tokens, logprobs = columns.token_ids.tobytes(), columns.logprobs.tobytes()
        sizes = iter(columns.sizes)
        start = 0
        for _, alive, outputs in followed:
            stop = start + sum(islice(sizes, len(outputs)))
            if stop == start:
                continue
            if not alive.tokens:
                self._count_prompt(alive, next(output for output in outputs if output.new_token_ids))
            alive.context = context
            alive.begin_run(version, source, context.flag_epoch)
            alive.has_logprobs = alive.has_logprobs or any(
                o.new_logprobs is not None for o in outputs if o.new_token_ids
            )
            alive.tokens += tokens[4 * start : 4 * stop]
            alive.logprobs += logprobs[4 * start : 4 * stop]
            start = stop

    def _count_prompt(self, alive: OpenRequest, output: Any) -> None:
        """Count prompt and cached tokens at the first output: vLLM does not set them again after a preemption."""
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
            if request_id in self._earlier:
                earlier = self._earlier.pop(request_id)
                self._preemptions += earlier.preemptions()
                self._count_end(earlier.reason_of(reason))
            return
        self._preemptions += alive.preemptions()
        if alive.first_token and alive.size > 1:
            self.token_gap_s += max(time - alive.first_token, 0.0)
            self.token_gaps += alive.size - 1
        self._alive_bytes -= alive.nbytes
        if alive.own_tokens is not None and (alive.from_batches or not alive.tokens):
            accepted = packed(alive.own_tokens[:])
            if len(accepted) != len(alive.tokens):
                self.dropped += 1
                self.unmatched += 1
                return
            if accepted != alive.tokens:
                self.misplaced += alive.correct_tokens(accepted)
        reason = alive.reason_of(reason)
        finished = alive.finish(request_id, reason, time, self._started)
        self.published += 1
        self._count_end(reason)
        self.without_logprobs += not finished.rollout.has_logprobs
        self._finished.append(finished)

    def _count_end(self, reason: str) -> None:
        self.finished_count += reason != "abort"
        self.aborted += reason == "abort"


def _up_to(outputs: list[Any], last: Any) -> list[Any]:
    """Outputs up to ``last``: later ones belong to another request with the same id."""
    return outputs[: next(index for index, output in enumerate(outputs) if output is last) + 1]


_NAN = np.float32(np.nan).tobytes()
