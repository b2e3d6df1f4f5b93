"""From a stream of references to whole rollouts. Runs on the sender's thread; works on duck-typed objects.

A request is published once, whole, or dropped whole and counted: after a hole in the stream every request that may be
part of it is dropped, so a rollout never misses a token it claims to have. ``added == published + dropped + alive``.

Steps wait as they came until ``settle`` reads them together, since reading many costs little more than reading one.
Whatever must not be read together with them (another version, another flag epoch) settles them first.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.vllm.columns import (
    Batch,
    Layout,
    Rows,
    by_request,
    columns_of,
    layout_of,
    layout_of_rows,
    rows_of,
)
from rltop.collectors.vllm.tap import Added, Ended, Noted, Sampled, Scheduled, Stepped, version_of
from rltop.collectors.wire import Rollout, VersionRun

ALIVE_LIMIT_BYTES = 256 << 20
"""Bound on what is kept of unfinished requests; beyond it the request that comes or grows is dropped whole."""

REQUEST_BYTES = 1024
"""What a request is taken to need beside its tokens."""

TOKEN_BYTES = 8

SALTS = 4096
"""Cache salts remembered, of the last requests that had one: a probe reads the cache as they did."""

UNSETTLED_LIMIT = 4096
"""Outputs that are kept as vLLM's objects; about 4 MiB of them."""

UNSETTLED_ROWS = 1 << 15
"""Rows that are kept as vLLM's arrays; under a MiB of them where only the sampled token's logprob is recorded."""

SAMPLING = {
    "temperature": None,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
}
"""Sampling parameters that shape the distribution, with the value at which each does nothing (None: always told)."""


class Finished(NamedTuple):
    """A whole rollout: its facts, and its arrays (i4, i4, f4; logprobs in nats, NaN where not recorded)."""

    rollout: Rollout
    prompt_ids: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
        return self.prompt_ids.nbytes + self.token_ids.nbytes + self.logprobs.nbytes + 1024


class _Origin(NamedTuple):
    """What all unsettled outputs have in common: flag epoch, what tells the policy version, layout of logprobs."""

    epoch: int
    label: Any
    inferred: int | None
    layout: Layout | None


@dataclass(slots=True)
class _Alive:
    prompt_ids: NDArray[np.int32]
    arrived: float
    asked: bool
    skips_lookup: bool
    sampling: dict[str, float]
    tokens: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    runs: list[VersionRun] = field(default_factory=list)
    source: str = "unknown"
    cached: int | None = None
    lookup_off: bool = False
    scheduled: float = 0.0
    first_step: int = -1
    updated: float = 0.0
    recorded: bool = False
    truth: Any = None
    by_rows: bool = False
    origin: _Origin | None = None

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
        return REQUEST_BYTES + self.prompt_ids.nbytes + TOKEN_BYTES * len(self.tokens)


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
        self.finished: list[Finished] = []
        self.added = self.published = self.dropped = 0
        self.misplaced = self.unmatched = 0
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0
        self.finished_count = self.aborted = self.without_logprobs = 0
        self._alive: dict[str, _Alive] = {}
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

    def take(self) -> list[Finished]:
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
        self.catch_up(noted[0])
        if type(noted) is tuple or isinstance(noted, Sampled):
            self._sampled(noted)
            return
        record = cast("Added | Scheduled | Stepped | Ended", noted)
        if isinstance(record, Stepped):
            self._stepped(record)
        elif isinstance(record, Added):
            self._add(record)
        elif isinstance(record, Scheduled):
            self._schedule(record)
        else:
            self.settle()
            for request_id, reason in record.requests:
                self._finish(request_id, reason, record.time)

    def _add(self, record: Added) -> None:
        request = record.request
        params = getattr(request, "sampling_params", None)
        if request.request_id in self._ends:
            self.settle()  # the name is free again
        if params is None or getattr(request, "resumable", False) or request.request_id in self._alive:
            return  # pooling, or a session fed in turns: not rollouts
        if self._alive_bytes > self._alive_limit:
            self.lost_requests(1)
            return
        prompt = request.prompt_token_ids
        asked = getattr(params, "num_logprobs", None) is not None or getattr(params, "logprobs", None) is not None
        alive = _Alive(
            prompt_ids=np.asarray(prompt if prompt is not None else [], np.int32),
            arrived=float(getattr(request, "arrival_time", record.time)),
            asked=asked,
            skips_lookup=bool(getattr(request, "skip_reading_prefix_cache", False)),
            sampling=sampling_of(params),
            truth=getattr(request, "output_token_ids", None),
        )
        if salt := getattr(request, "cache_salt", None):
            self._remember(request.request_id, str(salt))
        self.added += 1
        self._alive[request.request_id] = alive
        self._alive_bytes += alive.nbytes

    def _schedule(self, record: Scheduled) -> None:
        for new in record.new_requests:
            alive = self._alive.get(new.req_id)
            if alive is not None and alive.first_step < 0:  # some runners list resumed requests here again
                alive.scheduled = record.time
                alive.first_step = record.step
                alive.updated = record.updated
                alive.lookup_off = alive.skips_lookup or not record.lookup

    def _stepped(self, record: Stepped) -> None:
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
        _, weight, ids, accepted, marked, logprobs, label, time, epoch, inferred = record
        layout = layout_of_rows(logprobs)
        if (epoch, label, inferred, layout) != self._origin or self._steps or self._unsettled >= UNSETTLED_ROWS:
            self.settle()
            self._origin = _Origin(epoch, label, inferred, layout)
        self._batches.append((ids, accepted, logprobs))
        self._unsettled += weight
        for output in marked or ():
            self._firsts.setdefault(output.request_id, output)
            if output.finish_reason is not None:
                self._ends.setdefault(output.request_id, _End(output, time))

    def settle(self) -> bool:
        """Read the steps that wait. True, so that a guard can tell it from a contained fault."""
        steps, batches, firsts, ends = self._forget_steps()
        if batches:
            grown = self._append_rows(rows_of(batches), firsts)
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

    def _append_rows(self, rows: Rows, firsts: dict[str, Any]) -> list[str]:
        """Append to each request its rows; who it was."""
        version, source = version_of(self._origin.label, self._origin.inferred)
        token_bytes, logprob_bytes = rows.told.tobytes(), rows.logprobs.tobytes()
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
                self._run(alive, version, source)
                alive.by_rows = True
                alive.recorded = alive.recorded or (recorded and alive.asked)
            alive.tokens.frombytes(token_bytes[4 * start : 4 * stop])
            alive.logprobs.frombytes(logprob_bytes[4 * start : 4 * stop] if alive.asked else _NAN * size)
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

    def _append(self, followed: list[tuple[str, _Alive, list[Any]]]) -> None:
        """Append to each request what its outputs sampled."""
        columns = columns_of([output for _, _, outputs in followed for output in outputs])
        self.misplaced += columns.misplaced
        self.generated_tokens += columns.token_ids.size
        self._alive_bytes += TOKEN_BYTES * columns.token_ids.size
        version, source = version_of(self._origin.label, self._origin.inferred)
        token_bytes, logprob_bytes = columns.token_ids.tobytes(), columns.logprobs.tobytes()
        of_each = iter(columns.sizes)
        start = 0
        for _, alive, outputs in followed:
            stop = start + sum(islice(of_each, len(outputs)))
            if stop == start:
                continue
            if not alive.tokens:
                self._first(alive, next(output for output in outputs if output.new_token_ids))
            self._run(alive, version, source)
            alive.recorded = alive.recorded or any(o.new_logprobs is not None for o in outputs if o.new_token_ids)
            alive.tokens.frombytes(token_bytes[4 * start : 4 * stop])
            alive.logprobs.frombytes(logprob_bytes[4 * start : 4 * stop])
            start = stop

    def _run(self, alive: _Alive, version: int | None, source: str) -> None:
        """The next token is of this version and of the flag epoch that is being read."""
        alive.origin = self._origin
        if not alive.runs or alive.runs[-1].version != version or alive.runs[-1].flag_epoch != self._origin.epoch:
            alive.runs.append(VersionRun(len(alive.tokens), self._origin.epoch, version))
            if source != "unknown" and alive.source != "engine":
                alive.source = source

    def _first(self, alive: _Alive, output: Any) -> None:
        """Cached tokens as of the first scheduling: vLLM does not set them again after a preemption."""
        stats = getattr(output, "prefill_stats", None)
        cached = getattr(stats, "num_cached_tokens", None) if stats is not None else None
        if cached is None:
            cached = getattr(output, "num_cached_tokens", None)
        alive.cached = None if cached is None or cached < 0 else int(cached)
        self.prompt_tokens += alive.prompt_ids.size
        self.cached_tokens += alive.cached or 0

    def _drop(self, request_id: str) -> None:
        alive = self._alive.pop(request_id)
        self._alive_bytes -= alive.nbytes
        self.dropped += 1

    def _finish(self, request_id: str, reason: str, time: float) -> None:
        alive = self._alive.pop(request_id, None)
        if alive is None:
            return
        size = len(alive.tokens)
        self._alive_bytes -= alive.nbytes
        arrays = (np.frombuffer(alive.tokens, np.int32), np.frombuffer(alive.logprobs, np.float32)) if size else _NONE
        if alive.truth is not None and (alive.by_rows or not size):
            taken = alive.truth[:]
            if len(taken) != size:
                self.dropped += 1
                self.unmatched += 1
                return
            packed = struct.pack(f"={size}i", *taken)  # in less than half the time of np.array
            if packed != alive.tokens.tobytes():
                token_ids = np.frombuffer(packed, np.int32)
                arrays = token_ids, self._placed(token_ids, *arrays)
        rollout = Rollout(
            request_id=request_id,
            prompt_size=alive.prompt_ids.size,
            size=size,
            finish_reason=reason,
            runs=alive.runs,
            version_source=alive.source,
            has_logprobs=alive.recorded or (alive.asked and not size),
            cached_tokens=alive.cached,
            lookup_off=alive.lookup_off,
            sampling=alive.sampling,
            arrived=alive.arrived,
            scheduled=alive.scheduled,
            finished=time,
            first_step=alive.first_step,
            updated=alive.updated,
            started=self._started,
        )
        self.published += 1
        self.finished_count += reason != "abort"
        self.aborted += reason == "abort"
        self.without_logprobs += not rollout.has_logprobs
        self.finished.append(Finished(rollout, alive.prompt_ids, *arrays))

    def _placed(
        self, taken: NDArray[np.int32], told: NDArray[np.int32], logprobs: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The logprobs, without those that are recorded for another token than the request took."""
        astray = (taken != told) & ~np.isnan(logprobs)
        if not (misplaced := int(np.count_nonzero(astray))):
            return logprobs
        self.misplaced += misplaced
        return np.where(astray, np.float32(np.nan), logprobs)


def _up_to(outputs: list[Any], last: Any) -> list[Any]:
    """What comes after the end of a request is not its own."""
    return outputs[: next(place for place, output in enumerate(outputs) if output is last) + 1]


_NAN = np.float32(np.nan).tobytes()

_NONE = (np.empty(0, np.int32), np.empty(0, np.float32))


def sampling_of(params: Any) -> dict[str, float]:
    """The parameters of ``SAMPLING`` that are set to something that matters."""
    found = {}
    for name, idle in SAMPLING.items():
        value = getattr(params, name, None)
        if value != idle and isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found
