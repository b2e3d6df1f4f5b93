"""One request from its arrival to its end, and the rollout made from it.

Token ids and logprobs are bytes throughout (little-endian on every machine that vLLM runs on), so that slicing,
comparing and joining cost no more than a copy. They become arrays when a message is encoded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract.wire import Rollout, VersionRun
from rltop.collectors.vllm.rollouts.tap import ENDED_BY_ID

REQUEST_BYTES = 1024
"""Estimated memory of a request without its tokens."""

TOKEN_BYTES = 8

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
"""Sampling parameters that shape the distribution, with the value at which each has no effect (None: always sent)."""


STOP_OR_ABORT = "stop_or_abort"
"""Finish reason of a request with stop strings that its front end ended: the engine core can't tell the two apart."""


class FinishedRollout(NamedTuple):
    """A complete rollout: metadata, and the bytes of its arrays (i4, i4, f4 in nats; NaN if not recorded)."""

    rollout: Rollout
    prompt: bytes
    tokens: bytes | bytearray
    values: bytes | bytearray

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return len(self.prompt) + len(self.tokens) + len(self.values) + 1024

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        """i4 [prompt tokens]."""
        return np.frombuffer(self.prompt, np.int32)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """i4 [tokens]."""
        return np.frombuffer(self.tokens, np.int32)

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """f4 [tokens], nats."""
        return np.frombuffer(self.values, np.float32)


def no_preemptions() -> int:
    """A request of a vLLM that does not count them."""
    return 0


def preemptions_of(request: Any, before: int = 0) -> Callable[[], int]:
    """How often a vLLM request has been preempted, apart from the first ``before`` times."""
    return (lambda: int(request.num_preemptions) - before) if hasattr(request, "num_preemptions") else no_preemptions


def _reason(reason: str, *, may_stop: bool) -> str:
    if reason != ENDED_BY_ID:
        return reason
    return STOP_OR_ABORT if may_stop else "abort"


class EarlierRequest(NamedTuple):
    """A request that was in flight when the collector attached: counted, but no rollout.

    Attributes:
        preemptions: since then, as a function.
        has_stop_strings: as in ``OpenRequest``.
    """

    preemptions: Callable[[], int]
    has_stop_strings: bool

    @classmethod
    def from_vllm(cls, request: Any) -> EarlierRequest:
        """Make one for a vLLM request in flight."""
        params = getattr(request, "sampling_params", None)
        before = preemptions_of(request)()
        return cls(preemptions_of(request, before), bool(getattr(params, "stop", None)))

    def reason_of(self, reason: str) -> str:
        """As ``OpenRequest.reason_of``."""
        return _reason(reason, may_stop=self.has_stop_strings)


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended.

    Attributes:
        prompt: bytes of the prompt's token ids.
        tokens, logprobs: bytes of the token ids and logprobs sampled so far.
        wants_logprobs: the request asked for logprobs. has_logprobs: some were recorded.
        own_tokens: vLLM's list of the request's sampled tokens; None if it has none.
        from_batches: ``tokens`` were read from batch arrays, and are verified against ``own_tokens`` at the end.
        preemptions: vLLM's count of its preemptions, as a function. From any thread.
        first_token: wall clock of the first output, seconds; 0.0 before it.
        has_stop_strings: its front end ends it where one appears in the text.
        context: flag epoch, version and layout of the last tokens; see ``assembly``.
        others: as in ``Rollout``.
    """

    prompt: bytes
    arrived: float
    wants_logprobs: bool
    skips_lookup: bool
    sampling: dict[str, float]
    own_tokens: Any
    preemptions: Callable[[], int] = no_preemptions
    first_token: float = 0.0
    tokens: bytearray = field(default_factory=bytearray)
    logprobs: bytearray = field(default_factory=bytearray)
    runs: list[VersionRun] = field(default_factory=list)
    source: str = "unknown"
    cached: int | None = None
    lookup_off: bool = False
    scheduled: float = 0.0
    first_step: int = -1
    updated: float = 0.0
    has_logprobs: bool = False
    from_batches: bool = False
    has_stop_strings: bool = False
    context: Any = None

    @classmethod
    def from_vllm(cls, request: Any, params: Any, time: float) -> OpenRequest:
        """Make one for a vLLM request that arrived at ``time`` (wall clock, seconds)."""
        prompt = request.prompt_token_ids
        counts = getattr(params, "num_logprobs", None), getattr(params, "logprobs", None)
        wants_logprobs = counts != (None, None)
        return cls(
            prompt=packed(prompt if prompt is not None else ()),
            arrived=float(getattr(request, "arrival_time", time)),
            wants_logprobs=wants_logprobs,
            skips_lookup=bool(getattr(request, "skip_reading_prefix_cache", False)),
            sampling=sampling_of(params),
            own_tokens=getattr(request, "output_token_ids", None),
            preemptions=preemptions_of(request),
            has_stop_strings=bool(getattr(params, "stop", None)),
        )

    @property
    def size(self) -> int:
        """Tokens so far."""
        return len(self.tokens) // 4

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return REQUEST_BYTES + len(self.prompt) + TOKEN_BYTES * self.size

    def begin_run(self, version: int | None, source: str, epoch: int) -> None:
        """Start a new run at the next token, unless the current one has the same version and flag epoch."""
        if not self.runs or self.runs[-1].version != version or self.runs[-1].flag_epoch != epoch:
            self.runs.append(VersionRun(self.size, epoch, version))
            if source != "unknown" and self.source != "engine":
                self.source = source

    def correct_tokens(self, accepted: bytes) -> int:
        """Replace the token ids by ``accepted``, of equal size, and set logprobs of other tokens to NaN.

        Returns:
            How many logprobs that were.
        """
        recorded, ids = np.frombuffer(self.tokens, np.int32), np.frombuffer(accepted, np.int32)
        logprobs = np.frombuffer(self.logprobs, np.float32)
        misplaced = (ids != recorded) & ~np.isnan(logprobs)
        self.tokens = bytearray(accepted)
        self.logprobs = bytearray(np.where(misplaced, np.float32(np.nan), logprobs))
        return int(np.count_nonzero(misplaced))

    def reason_of(self, reason: str) -> str:
        """The finish reason of a rollout that ended for ``reason``, as recorded."""
        return _reason(reason, may_stop=self.has_stop_strings and bool(self.tokens))

    def finish(self, request_id: str, reason: str, time: float, started: float) -> FinishedRollout:
        """Make the rollout; for ``reason``, ``time`` and ``started`` see ``Rollout``."""
        rollout = Rollout(
            request_id=request_id,
            prompt_size=len(self.prompt) // 4,
            size=self.size,
            finish_reason=reason,
            runs=self.runs,
            version_source=self.source,
            has_logprobs=self.has_logprobs or (self.wants_logprobs and not self.tokens),
            cached_tokens=self.cached,
            lookup_off=self.lookup_off,
            sampling=self.sampling,
            arrived=self.arrived,
            scheduled=self.scheduled,
            finished=time,
            first_step=self.first_step,
            updated=self.updated,
            started=started,
        )
        return FinishedRollout(rollout, self.prompt, self.tokens, self.logprobs)


def packed(token_ids: Sequence[int]) -> bytes:
    """Pack ids as i4, in less than half the time of np.array.

    Raises:
        struct.error: an id is beyond 32 bits.
    """
    return struct.pack(f"={len(token_ids)}i", *token_ids)


def sampling_of(params: Any) -> dict[str, float]:
    """The parameters in ``SAMPLING`` that are set and have an effect."""
    found = {}
    for name, neutral in SAMPLING.items():
        value = getattr(params, name, None)
        if value != neutral and isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found
