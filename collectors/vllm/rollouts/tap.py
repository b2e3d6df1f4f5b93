"""The engine thread's half of rollout recording: appends one record per event, and does nothing else.

Every method here runs inside vLLM's step and appends at most one tuple. ``Assembler`` interprets the records on the
sender's thread, which drains the queue a few times per second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from rltop.collectors.vllm.in_process import is_in_process
from rltop.collectors.vllm.rollouts.stated_version import version_in
from rltop.collectors.vllm.rollouts.weight_updates import Moment, Part, PolicyVersion, Source, WeightUpdates
from rltop.collectors.vllm.weight_journal import JOURNAL, label_version
from rltop.collectors.vllm.workers.rank_weights import Loaded, RankWeights
from rltop.collectors.vllm.workers.weight_watch import LOAD

BACKLOG_LIMIT = 1 << 16
"""Request outputs that may wait for the sender's thread: about 64 MiB of vLLM's objects, seconds of a fast engine."""

PENDING_S = 0.05
"""How often workers are asked at most whether their device has compared weights."""


class RequestAdded(NamedTuple):
    """A request entered the scheduler.

    Every record begins with ``drops_before``, the number of records dropped before this one, and ``weight``, its share
    of ``BACKLOG_LIMIT``.
    """

    drops_before: int
    weight: int
    request: Any
    time: float


class RequestsScheduled(NamedTuple):
    """Requests were scheduled, some for the first time.

    ``lookup``: whether the prefix cache was looked up. ``last_update``: see ``Tap``.
    """

    drops_before: int
    weight: int
    new_requests: list[Any]
    time: float
    step: int
    lookup: bool
    last_update: float = 0.0


class StepOutputs(NamedTuple):
    """The outputs of one step by client, as vLLM passes them to its front ends.

    ``observed_version``: see ``WeightUpdates.version``. ``label``: vLLM's weight label, for versions whose outputs do
    not carry it.
    """

    drops_before: int
    weight: int
    outputs: dict[int, Any]
    time: float
    flag_epoch: int
    observed_version: PolicyVersion | None
    label: Any = None


class SampledTokens(NamedTuple):
    """The accepted tokens of one step, from the model runner's arrays for the whole batch.

    The two arrays are copied to bytes because freeing them later costs more: they lie in pinned memory, and dropping
    the last reference waits for the driver. Steps are read together only if ``types`` and the last three fields are
    equal; see ``Assembler``.

    Attributes:
        request_ids: the batch, in the row order of the arrays.
        accepted: requests that took the token of their row; None: all of them.
        marked: outputs that are a request's first or last; None: there are none, and ``time`` is 0.
        id_bytes, logprob_bytes: two arrays [batch, width]; column 0 holds the sampled token's id and its logprob
            (nats). Empty if none are recorded.
        types: element types of the two; None if none are recorded.
        label: vLLM's weight label.
        observed_version: see ``WeightUpdates.version``.
    """

    drops_before: int
    weight: int
    request_ids: list[str]
    accepted: list[str] | None
    marked: list[Any] | None
    time: float
    id_bytes: bytes
    logprob_bytes: bytes
    types: Any
    flag_epoch: int
    label: Any
    observed_version: PolicyVersion | None


SampledFields = tuple[
    int,
    int,
    list[str],
    list[str] | None,
    list[Any] | None,
    float,
    bytes,
    bytes,
    Any,
    int,
    Any,
    PolicyVersion | None,
]
"""A ``SampledTokens`` or a plain tuple of its fields, which the engine's thread writes in every step: making an
instance of the class would take longer."""


class RequestsEnded(NamedTuple):
    """Requests were ended from outside a step: ``(request_id, finish reason)``. See ``ENDED_BY_ID``."""

    drops_before: int
    weight: int
    requests: list[tuple[str, str]]
    time: float


class BatchInFlight(NamedTuple):
    """A scheduler output, held so that no later one gets its id, and the version of the weights that sample it."""

    batch: Any
    version: PolicyVersion | None


Record = RequestAdded | RequestsScheduled | StepOutputs | RequestsEnded | SampledFields

ENDED_BY_ID = "ended by id"
"""Reason of a request that its front end ended: aborted by its caller, or the front end found a stop string."""

PROBE_PREFIX = "rltop-probe-"
"""Prefix of the ids of probe requests. They are not rollouts and are not recorded."""

DRAFT_OPENS = "start_draft_weight_update"
UPDATE_OPENS = frozenset({"start_weight_update", DRAFT_OPENS})
UPDATE_CLOSES = frozenset({"finish_weight_update"})
UPDATE_WHOLE = frozenset({"reload_weights", "update_weights"})
"""vLLM's own update calls: they count even if a worker reports no load. ``UPDATE_WHOLE`` outside an open update is a
complete update. Any other call is an update if the workers report that it loaded weights."""


class Tap:
    """The queue that the engine's thread writes, and the few numbers that the sender's thread reads from it.

    Attributes:
        records: for the sender's thread, oldest first.
        loop_count: times that the engine scheduled or its step function returned; rises as long as its loop runs.
        step: batches executed since the tap was installed.
        reads_batches: tokens are read from the model runner's arrays, not from each request's outputs; see
            ``samples_one_token_per_request``.
        array_types: element types of the runner's two arrays; None if unknown or unreadable.
        arrays_unreadable: the arrays are not laid out as expected; see ``disable_batch_reading``.
        flag_epoch: incremented by every applied switch.
        updates: the weight updates.
        last_update: wall clock of the last change of the weights, seconds; 0.0 before the first.
        paused: whether the caller has paused generation.
        in_flight: scheduler outputs that were in flight at the last update, with the version that samples them, by id.
        started: wall clock at which the tap was installed, seconds.
        dropped_records, dropped_requests: records, and arrivals of requests among them, that found the queue full.
        enqueued: total weight of the records appended; written by the engine's thread only.
        processed: total weight of the records processed; written by the sender's thread only.
        rejected: requests that the engine rejected because its caller had paused it.
        awaiting_output: requests that were scheduled and have no output yet.
        finished_ids: requests that finished while a switch drains the engine; None at any other time.
    """

    def __init__(
        self,
        engine: Any,
        backlog_limit: int = BACKLOG_LIMIT,
        on_weights: Callable[[], None] = lambda: None,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        self.records: deque[Record] = deque()
        self.loop_count = 0
        self.step = 0
        self.flag_epoch = 0
        self.updates = WeightUpdates(self._weights_changed)
        self.last_update = 0.0
        self.paused = paused
        self.started = time.time()
        self.dropped_records = 0
        self.dropped_requests = 0
        self.finished_ids: set[str] | None = None
        self.enqueued = 0
        self.processed = 0
        self.limit = backlog_limit
        self._on_weights = on_weights
        self._ranks = RankWeights(engine)
        self._scheduler = engine.scheduler
        self._in_process = is_in_process(engine)
        self._engine = engine
        self._counted = 0
        self.in_flight: dict[int, BatchInFlight] = {}
        self._manager = getattr(engine.scheduler, "kv_cache_manager", None)
        self.reads_batches = samples_one_token_per_request(engine)
        self.arrays_unreadable = False
        self.array_types: Any = None
        self.awaiting_output: set[str] = set()
        self.rejected = 0
        self._next_look = 0.0
        self.on_update = _update_hook(self, engine, engine.scheduler)

    @property
    def update_open(self) -> bool:
        """A weight update is in progress."""
        return self.updates.is_open(self._moment())

    @property
    def partial_update(self) -> str:
        """Why the weights are neither the old nor the new ones; empty unless the last update failed."""
        return self.updates.torn(self._moment())

    def close(self) -> None:
        """Stop watching the weights."""
        self._ranks.close()

    def _moment(self) -> Moment:
        return Moment(self.step, time.monotonic(), self.paused())

    def _enqueue(self, record: RequestAdded | RequestsScheduled | StepOutputs | RequestsEnded) -> bool:
        """Append a record, or drop and count it. The bound counts outputs, not records."""
        if self.enqueued - self.processed >= self.limit:
            self.dropped_records += 1
            return False
        self.enqueued += record.weight
        self.records.append(record)
        return True

    # --- hooks; see patches.PATCH_POINTS ----------------------------------------------------------------------------

    def on_add(self, _result: Any, request: Any) -> None:
        """``Scheduler.add_request(request)``."""
        if request.request_id.startswith(PROBE_PREFIX):
            return
        if not self._enqueue(RequestAdded(self.dropped_records, 1, request, time.time())):
            self.dropped_requests += 1
        if self._in_process and len(self._scheduler.requests) == 1:  # its caller may have copied weights meanwhile
            self._take(self._ranks.look(self.step), "a copy into the weights")

    def on_reject(self, rejected: Any, request: Any) -> None:  # noqa: ARG002 - host's name
        """``EngineCoreProc._reject_add_while_paused(request) -> bool``."""
        self.rejected += bool(rejected)

    def on_schedule(self, output: Any, *_args: Any, **_kwargs: Any) -> None:
        """``Scheduler.schedule() -> SchedulerOutput``."""
        if JOURNAL.number != self._ranks.journal:
            self.look()
        if new := output.scheduled_new_reqs:
            lookup = bool(getattr(self._manager, "enable_caching", False))
            self._enqueue(
                RequestsScheduled(self.dropped_records, len(new), new, time.time(), self.step, lookup, self.last_update)
            )
        if self.reads_batches:
            if self.awaiting_output:
                self.awaiting_output.difference_update(output.finished_req_ids)
            if new:
                self.awaiting_output.update([request.req_id for request in new])
            self.loop_count += 1
            if output.total_num_scheduled_tokens:
                self.step += 1

    def disable_batch_reading(self) -> None:
        """Record each request's outputs from now on: the arrays are not laid out as expected. From any thread."""
        self.arrays_unreadable, self.array_types = True, None

    def detect_types(self, sampled: Any) -> Any:
        """Set ``array_types`` from a model runner's output and return it; None if there are no readable arrays."""
        recorded = sampled.logprobs
        if recorded is not None and len(recorded.logprobs) != len(sampled.req_ids):
            self.disable_batch_reading()
        if recorded is not None and not self.arrays_unreadable:
            self.array_types = recorded.logprob_token_ids.dtype, recorded.logprobs.dtype
        return self.array_types

    def mark(self, outputs: list[Any]) -> tuple[list[str], list[Any]]:
        """Return the requests that took a token in this step, and the outputs that are a request's first or last."""
        awaiting = self.awaiting_output
        accepted = [output.request_id for output in outputs if output.new_token_ids]
        marked = [output for output in outputs if output.finish_reason is not None or output.request_id in awaiting]
        if awaiting:
            awaiting.difference_update([output.request_id for output in marked])
        if self.finished_ids is not None:
            self.finished_ids.update(output.request_id for output in marked if output.finish_reason is not None)
        return accepted, marked

    def on_step(self, result: Any) -> None:
        """``EngineCore.step_fn() -> (outputs by client or None, executed)``; used where ``on_update`` can't be."""
        self.loop_count += 1
        self.dropped_records += 1  # undone below: an exception in between must leave a visible gap
        outputs, executed = result
        if executed:
            self.step += 1
        size = 0
        for of_client in outputs.values() if outputs else ():
            size += len(of_client.outputs)
        self.dropped_records -= 1
        if size:
            self._enqueue(
                StepOutputs(self.dropped_records, size, outputs, time.time(), self.flag_epoch, self.updates.version)
            )
            if self.finished_ids is not None:
                self.finished_ids.update(
                    o.request_id for c in outputs.values() for o in c.outputs if o.finish_reason is not None
                )

    def on_finish(self, requests: Any, request_ids: Any, finished_status: Any) -> None:
        """``Scheduler.finish_requests(request_ids, finished_status) -> [Request]``, or ``[(id, client)]``."""
        if not requests:
            return
        failed = "ERROR" in str(getattr(finished_status, "name", finished_status))
        reason = "error" if failed else "abort" if request_ids is None else ENDED_BY_ID
        ended = [(_id_of(item), reason) for item in requests]
        if self.finished_ids is not None:
            self.finished_ids.update(request_id for request_id, _ in ended)
        self._enqueue(RequestsEnded(self.dropped_records, len(ended), ended, time.time()))

    def on_rpc(
        self,
        result: Any,
        method: Any,
        timeout: Any = None,  # noqa: ARG002 - vLLM's names: it may pass these by keyword
        args: Any = (),
        kwargs: Any = None,
    ) -> None:
        """``EngineCore.collective_rpc(method, timeout, args, kwargs)``, after it raised on no worker.

        A method that loads and returns False on a rank has failed: frameworks may catch what they report so.
        """
        now, loaded = self._moment(), self._ranks.ask(self.step)
        if loaded.loaded and isinstance(result, list) and any(answer is False for answer in result):
            loaded = loaded._replace(failed=loaded.failed or "it returned False")
        version = version_in(args, kwargs)
        if loaded.failed:
            self._take(loaded, name_of(method))
        elif method in UPDATE_OPENS:
            self.updates.started(draft=method == DRAFT_OPENS)
        elif method in UPDATE_CLOSES:
            self.updates.finished(now)
        elif method in UPDATE_WHOLE:
            self.updates.loaded(Part(version=version, alone=True), now)
        else:
            self._take(loaded, name_of(method), version)
            return
        for stated in loaded.stated:
            self.updates.stated(stated, self._moment())

    def on_rpc_failed(
        self,
        error: Exception,
        method: Any,
        timeout: Any = None,  # noqa: ARG002 - as above
        args: Any = (),  # noqa: ARG002
        kwargs: Any = None,  # noqa: ARG002
    ) -> None:
        """``EngineCore.collective_rpc(...)`` raised on a worker: an update is over, and loaded weights stay loaded.

        Commands stop waiting for it. A failed start has loaded nothing; after any later failure it is unknown which
        weights are new, until the next complete update. A call that timed out still occupies its workers.
        """
        loaded = Loaded() if isinstance(error, TimeoutError) else self._ranks.ask(self.step)
        if method in UPDATE_OPENS:
            self.updates.abandoned()
        elif method in UPDATE_CLOSES | UPDATE_WHOLE or loaded.loaded:
            self._fail(f"{name_of(method)} failed", f"{type(error).__name__}: {error}", loaded)

    def on_pause(self, _result: Any, pause_state: Any) -> None:
        """``Scheduler.set_pause_state(pause_state)``."""
        if getattr(pause_state, "name", "") == "UNPAUSED":
            self.updates.resumed()

    def look(self) -> None:
        """Apply what happened to the weights in this process without a call."""
        if JOURNAL.number != self._ranks.journal:
            self._take(self._ranks.look(self.step), LOAD)
        if self._ranks.pending and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + PENDING_S
            self._take(self._ranks.ask(self.step, compares=False), "a copy into the weights")

    @property
    def awaits_comparison(self) -> bool:
        """Whether ``look`` has to be called: a device compares weights. From any thread."""
        return self._ranks.pending

    def _take(self, loaded: Loaded, source: str, version: int | None = None) -> None:
        """Apply what happened to the weights; ``source``: the call that did it, by name."""
        if loaded.failed:
            self._fail(f"{source} failed", loaded.failed, loaded)
        elif loaded.loaded:
            self.updates.loaded(Part(loaded.whole, loaded.repeats, version, alone=loaded.replaced), self._moment())
        for stated in loaded.stated:
            self.updates.stated(stated, self._moment())

    def _fail(self, what: str, error: str, loaded: Loaded) -> None:
        reason = f"{what} at engine step {self.step} ({error})"
        self.updates.failed(reason, Part(repeats=loaded.repeats), self._moment())

    def _weights_changed(self) -> None:
        self.last_update = time.time()
        if self._counted != self.updates.count:
            self._counted = self.updates.count
            parts = (part for entry in getattr(self._engine, "batch_queue", None) or () for part in entry)
            batches = [part for part in parts if hasattr(part, "total_num_scheduled_tokens")]
            self.in_flight = {id(batch): BatchInFlight(batch, self.updates.before) for batch in batches}
        self._on_weights()


def _update_hook(tap: Tap, engine: Any, scheduler: Any) -> Callable[[Any, Any, Any], None]:
    """Make the hook of ``Scheduler.update_from_output(scheduler_output, model_runner_output) -> outputs by client``.

    Hot path: it runs in every step, when its objects and code are not in the CPU's caches. So it is a closure instead
    of a method, appends a plain tuple, and reads individual requests only on steps where one starts, finishes or emits
    no token.
    """
    append, now, has_label = tap.records.append, time.time, hasattr(engine, "_weight_version")
    updates = tap.updates

    def on_update(result: Any, scheduled: Any, sampled: Any) -> None:
        try:
            version = updates.version
            if tap.in_flight:
                version = tap.in_flight.pop(id(scheduled), BatchInFlight(scheduled, version)).version
            size = 0
            for of_client in result.values():
                size += len(of_client.outputs)
            request_ids, arrays = sampled.req_ids, sampled.logprobs

            accepted = marked = None
            at = 0.0
            if size != len(request_ids) or scheduler.finished_req_ids or tap.awaiting_output:
                if not size:
                    return
                accepted, marked = tap.mark([output for of_client in result.values() for output in of_client.outputs])
                at = now()

            drops = tap.dropped_records
            if tap.enqueued - tap.processed >= tap.limit:
                tap.dropped_records = drops + 1
                return

            label = engine._weight_version if has_label else None
            types = tap.array_types or tap.detect_types(sampled)
            id_bytes = logprob_bytes = b""
            if arrays is None:
                types = None
            elif types is not None:
                id_bytes, logprob_bytes = arrays.logprob_token_ids.tobytes(), arrays.logprobs.tobytes()
            record: Record
            if arrays is not None and types is None:  # unreadable: leave the outputs to the assembler
                record = StepOutputs(drops, size, result, now(), tap.flag_epoch, version, label)
            else:
                record = (
                    drops, size, request_ids, accepted, marked, at, id_bytes, logprob_bytes, types,
                    tap.flag_epoch, label, version,
                )  # fmt: skip
            tap.enqueued += size
            append(record)
        except BaseException:
            tap.dropped_records += 1  # the assembler sees a gap and drops the requests it may affect
            raise

    return on_update


def samples_one_token_per_request(engine: Any) -> bool:
    """Whether a step samples exactly one token per request of its batch, and the engine reports when a request ends."""
    speculative = getattr(engine.vllm_config, "speculative_config", None)
    per_step = getattr(engine.scheduler, "num_sampled_tokens_per_step", 1)
    return speculative is None and per_step == 1 and hasattr(engine.scheduler, "finished_req_ids")


def _id_of(item: Any) -> str:
    return str(item[0] if isinstance(item, tuple) else item.request_id)


def name_of(method: Any) -> str:
    """The name of a method of workers, which may be passed as a function."""
    return method if isinstance(method, str) else str(getattr(method, "__name__", type(method).__name__))


def version_of(label: Any, observed: PolicyVersion | None) -> tuple[int | None, Source]:
    """The policy version and its source: vLLM's label if it has a number, else what was stated or inferred."""
    version = label_version(label)
    if version is not None:
        return version, "engine"
    return observed or (None, "unknown")
