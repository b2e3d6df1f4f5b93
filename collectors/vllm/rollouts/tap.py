"""The engine's own thread: what it notes down, and nothing more.

Every method here runs inside vLLM's step. Each appends at most one tuple; what it means is worked out
by ``Assembler`` on the sender's thread, which drains the queue some times a second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

BACKLOG_LIMIT = 1 << 16
"""Request outputs that may wait for the sender's thread: about 64 MiB of vLLM's objects, seconds of a fast engine."""


class RequestAdded(NamedTuple):
    """A request entered the scheduler.

    Here and below, ``shed`` is the number of records lost before this one, ``weight`` what it counts for in the bound.
    """

    shed: int
    weight: int
    request: Any
    time: float


class RequestsScheduled(NamedTuple):
    """Requests were scheduled, some for the first time.

    ``lookup``: whether the prefix cache was looked up; ``updated``: see ``Tap``.
    """

    shed: int
    weight: int
    new_requests: list[Any]
    time: float
    step: int
    lookup: bool
    updated: float = 0.0


class StepOutputs(NamedTuple):
    """One step's outputs by client, as vLLM hands them to its front ends.

    ``inferred``: see ``Tap.inferred``; ``label``: vLLM's own for the weights, where the outputs may not bear it yet.
    """

    shed: int
    weight: int
    outputs: dict[int, Any]
    time: float
    epoch: int
    inferred: int | None
    label: Any = None


class SampledTokens(NamedTuple):
    """One step's accepted tokens, as the model runner put them out for all its requests at once.

    The two arrays are copied, since that costs less than to free them later: a runner's arrays lie in memory that its
    GPU writes to, and who drops the last reference waits for the driver. The last four fields are what must be equal
    for steps that are read together: see ``assemble``.

    Attributes:
        ids: the batch, in the order of the rows of the arrays.
        accepted: requests that took the token of their row; None: all of them.
        marked: the outputs that are a request's first or last; None: there are none, and ``time`` is not told.
        told, logprobs: bytes of two arrays [batch, width], of which column 0 has the sampled token's id and its logprob
            (nats). Empty where none are recorded.
        types: of the elements of the two; None where none are recorded.
        label: vLLM's own for the weights.
    """

    shed: int
    weight: int
    ids: list[str]
    accepted: list[str] | None
    marked: list[Any] | None
    time: float
    told: bytes
    logprobs: bytes
    types: Any
    epoch: int
    label: Any
    inferred: int | None


class RequestsEnded(NamedTuple):
    """Requests were ended from outside a step: ``(request_id, finish reason)``."""

    shed: int
    weight: int
    requests: list[tuple[str, str]]
    time: float


PROBE_PREFIX = "rltop-probe-"
"""Requests of probes are named so: they are no rollouts, and are not followed."""

Record = RequestAdded | RequestsScheduled | StepOutputs | SampledTokens | RequestsEnded

Noted = Record | tuple[Any, ...]
"""A plain tuple is a ``SampledTokens``: the engine's thread writes one in every step, and the class takes its time."""

UPDATE_OPENS = frozenset({"start_weight_update", "start_draft_weight_update"})
UPDATE_CLOSES = frozenset({"finish_weight_update"})
UPDATE_WHOLE = frozenset({"reload_weights"})
UPDATE_PART = frozenset({"update_weights"})
"""Methods of ``collective_rpc`` by which weights change. ``update_weights`` with none open is a whole update."""

VERSION_KEYS = ("weight_version", "policy_version", "version", "step")
"""Where a caller's own number may stand in ``update_info``."""


class Tap:
    """What the engine's thread writes, and the few numbers that the sender's thread reads from it.

    Attributes:
        records: for the sender's thread, oldest first.
        turns: times that the engine scheduled, or that its step function returned; rises as long as its loop does.
        step: batches executed since the tap was put in.
        by_rows: tokens are read from the model runner's arrays, else from each request's outputs; see ``fits_rows``.
        types: of the elements of the runner's two arrays, None: not known, or ``misread``.
        misread: the arrays can't be read; see ``distrust``.
        epoch: flag epoch; raised by an applied switch.
        update_open: a weight update is under way.
        updates: weight updates that were finished. updated: wall clock of the last one; 0.0 before the first.
        started: wall clock at which the tap was put in.
        torn: why the weights are neither the old nor the new ones; empty unless the last update failed halfway.
        inferred: version of the weights as far as the update calls tell; None before the first.
        shed, shed_requests: records, and whole requests among them, that found the queue full.
        put, taken: weight that went in (written by the engine's thread only) and was dealt with (sender's thread only).
        fresh: requests that were scheduled and have put out nothing yet.
        finished_ids: while a switch drains, the requests that finished meanwhile; else None.
    """

    def __init__(
        self, engine: Any, backlog_limit: int = BACKLOG_LIMIT, on_weights: Callable[[], None] | None = None
    ) -> None:
        self.records: deque[Noted] = deque()
        self.turns = 0
        self.step = 0
        self.epoch = 0
        self.update_open = False
        self.updates = 0
        self.torn = ""
        self.updated = 0.0
        self.started = time.time()
        self.inferred: int | None = None
        self.shed = 0
        self.shed_requests = 0
        self.finished_ids: set[str] | None = None
        self.put = 0
        self.taken = 0
        self.limit = backlog_limit
        self._on_weights = on_weights
        self._manager = getattr(engine.scheduler, "kv_cache_manager", None)
        self.by_rows = fits_rows(engine)
        self.misread = False
        self.types: Any = None
        self.fresh: set[str] = set()
        self.on_update = _updater(self, engine, engine.scheduler)
        self._next_version: int | None = None

    def _put(self, record: Record) -> bool:
        """Bounded by outputs, not records: a step's weight is the requests in it."""
        if self.put - self.taken >= self.limit:
            self.shed += 1
            return False
        self.put += record.weight
        self.records.append(record)
        return True

    # --- hooks; see seams.SEAMS -----------------------------------------------------------------------------------

    def on_add(self, _result: Any, request: Any) -> None:
        """``Scheduler.add_request(request)``."""
        if request.request_id.startswith(PROBE_PREFIX):
            return
        if not self._put(RequestAdded(self.shed, 1, request, time.time())):
            self.shed_requests += 1

    def on_schedule(self, output: Any, *_args: Any, **_kwargs: Any) -> None:
        """``Scheduler.schedule() -> SchedulerOutput``."""
        if new := output.scheduled_new_reqs:
            lookup = bool(getattr(self._manager, "enable_caching", False))
            self._put(RequestsScheduled(self.shed, len(new), new, time.time(), self.step, lookup, self.updated))
        if self.by_rows:
            if self.fresh:
                self.fresh.difference_update(output.finished_req_ids)
            if new:
                self.fresh.update([request.req_id for request in new])
            self.turns += 1
            if output.total_num_scheduled_tokens:
                self.step += 1

    def distrust(self) -> None:
        """Hand out the outputs from now on, since the arrays are not what we think they are. From any thread."""
        self.misread, self.types = True, None

    def types_of(self, sampled: Any) -> Any:
        """Of the arrays of a runner's output: ``types``; None where there are none, or they have other rows."""
        recorded = sampled.logprobs
        if recorded is not None and len(recorded.logprobs) != len(sampled.req_ids):
            self.distrust()
        if recorded is not None and not self.misread:
            self.types = recorded.logprob_token_ids.dtype, recorded.logprobs.dtype
        return self.types

    def mark(self, outputs: list[Any]) -> tuple[list[str], list[Any]]:
        """Of one step: who took a token, and the outputs that are the first or the last of a request."""
        fresh = self.fresh
        accepted = [output.request_id for output in outputs if output.new_token_ids]
        marked = [output for output in outputs if output.finish_reason is not None or output.request_id in fresh]
        if fresh:
            fresh.difference_update([output.request_id for output in marked])
        if self.finished_ids is not None:
            self.finished_ids.update(output.request_id for output in marked if output.finish_reason is not None)
        return accepted, marked

    def on_step(self, result: Any) -> None:
        """``EngineCore.step_fn() -> (outputs by client or None, executed)``; where ``on_update`` can't be used."""
        self.turns += 1
        self.shed += 1  # taken back below: a fault in between leaves a hole that is seen
        outputs, executed = result
        if executed:
            self.step += 1
        size = 0
        for of_client in outputs.values() if outputs else ():
            size += len(of_client.outputs)
        self.shed -= 1
        if size:
            self._put(StepOutputs(self.shed, size, outputs, time.time(), self.epoch, self.inferred))
            if self.finished_ids is not None:
                self.finished_ids.update(
                    o.request_id for c in outputs.values() for o in c.outputs if o.finish_reason is not None
                )

    def on_finish(self, requests: Any, request_ids: Any, finished_status: Any) -> None:  # noqa: ARG002 - host's names
        """``Scheduler.finish_requests(request_ids, finished_status) -> [Request]``, or ``[(id, client)]``."""
        if not requests:
            return
        reason = "error" if "ERROR" in str(getattr(finished_status, "name", finished_status)) else "abort"
        ended = [(_id_of(item), reason) for item in requests]
        if self.finished_ids is not None:
            self.finished_ids.update(request_id for request_id, _ in ended)
        self._put(RequestsEnded(self.shed, len(ended), ended, time.time()))

    def on_rpc(
        self,
        _result: Any,
        method: Any,
        timeout: Any = None,  # noqa: ARG002 - the host's names, by which it may be called
        args: Any = (),  # noqa: ARG002
        kwargs: Any = None,
    ) -> None:
        """``EngineCore.collective_rpc(method, timeout, args, kwargs)``, after it succeeded on every worker."""
        if method in UPDATE_OPENS:
            self.update_open = True
        elif method in UPDATE_PART:
            self._next_version = _version_in(kwargs)
            if not self.update_open:
                self._updated()
        elif method in UPDATE_CLOSES:
            self.update_open = False
            self._updated()
        elif method in UPDATE_WHOLE:
            self._updated()

    def on_rpc_failed(
        self,
        error: Exception,
        method: Any,
        timeout: Any = None,  # noqa: ARG002 - as above
        args: Any = (),  # noqa: ARG002
        kwargs: Any = None,  # noqa: ARG002
    ) -> None:
        """The same where it raised on a worker: that update is over, and what it had loaded stays loaded.

        Nothing waits for it any longer. A start that failed has loaded nothing; of everything later it can't be known
        which weights are the new ones, until an update comes through whole.
        """
        if method not in UPDATE_OPENS | UPDATE_PART | UPDATE_CLOSES | UPDATE_WHOLE:
            return
        self.update_open = False
        self._next_version = None
        if method not in UPDATE_OPENS:
            self.torn = f"{method} failed at engine step {self.step} ({type(error).__name__}: {error})"
            self._changed()

    def _changed(self) -> None:
        if self._on_weights is not None:
            self._on_weights()

    def _updated(self) -> None:
        self.updates += 1
        self.updated = time.time()
        self.torn = ""
        self._changed()
        self.inferred = self._next_version if self._next_version is not None else self.updates
        self._next_version = None


def _updater(tap: Tap, engine: Any, scheduler: Any) -> Callable[[Any, Any, Any], None]:
    """``Scheduler.update_from_output(scheduler_output, model_runner_output) -> outputs by client``, its hook.

    Nothing is read of single requests but in a step in which one begins, ends, or takes no token: then the outputs,
    which vLLM made just now, say which. A function of its own, and a plain tuple: this runs in every step, with its
    objects and its own code out of the caches.
    """
    append, now, labelled = tap.records.append, time.time, hasattr(engine, "_weight_version")

    def on_update(result: Any, _scheduled: Any, sampled: Any) -> None:
        try:
            size = 0
            for of_client in result.values():
                size += len(of_client.outputs)
            ids, recorded = sampled.req_ids, sampled.logprobs
            accepted = marked = None
            at = 0.0
            if size != len(ids) or scheduler.finished_req_ids or tap.fresh:
                if not size:
                    return
                accepted, marked = tap.mark([output for of_client in result.values() for output in of_client.outputs])
                at = now()
            if tap.put - tap.taken >= tap.limit:
                tap.shed += 1
                return
            label = engine._weight_version if labelled else None
            types = tap.types or tap.types_of(sampled)
            record: Noted
            if recorded is None:
                record = (tap.shed, size, ids, accepted, marked, at, b"", b"", None, tap.epoch, label, tap.inferred)
            elif types is None:
                record = StepOutputs(tap.shed, size, result, now(), tap.epoch, tap.inferred, label)
            else:
                told, logprobs = recorded.logprob_token_ids.tobytes(), recorded.logprobs.tobytes()
                record = (
                    tap.shed, size, ids, accepted, marked, at, told, logprobs, types, tap.epoch, label, tap.inferred
                )  # fmt: skip
            tap.put += size
            append(record)
        except BaseException:
            tap.shed += 1  # a hole that is seen
            raise

    return on_update


def fits_rows(engine: Any) -> bool:
    """Whether a step samples one token for each request of its batch, and the engine says when a request ends."""
    speculative = getattr(engine.vllm_config, "speculative_config", None)
    per_step = getattr(engine.scheduler, "num_sampled_tokens_per_step", 1)
    return speculative is None and per_step == 1 and hasattr(engine.scheduler, "finished_req_ids")


def _id_of(item: Any) -> str:
    return str(item[0] if isinstance(item, tuple) else item.request_id)


def _version_in(kwargs: Any) -> int | None:
    info = kwargs.get("update_info") if isinstance(kwargs, dict) else None
    for key in VERSION_KEYS:
        value = info.get(key) if isinstance(info, dict) else None
        if isinstance(value, int | str):
            return label_version(str(value))
    return None


def label_version(label: Any) -> int | None:
    """The number at the end of vLLM's opaque weight label; None for ``default`` or where there is none.

    >>> label_version("step-12"), label_version("default"), label_version(None)
    (12, None, None)
    """
    text = str(label) if label is not None else ""
    digits = text[len(text.rstrip("0123456789")) :]
    return int(digits) if digits and len(digits) < 10 else None


Source = Literal["engine", "inferred", "unknown"]


def version_of(label: Any, inferred: int | None) -> tuple[int | None, Source]:
    """Version and where it comes from: vLLM's own label first, then the observed update calls."""
    version = label_version(label)
    if version is not None:
        return version, "engine"
    return inferred, "unknown" if inferred is None else "inferred"
