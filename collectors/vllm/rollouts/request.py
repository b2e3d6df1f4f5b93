"""One request from its arrival to its end: what is known of it, and the rollout that it becomes.

Token ids and logprobs are bytes throughout, little-endian on every machine that vLLM runs on: they are cut, held
against each other and joined at the price of a copy, and become arrays when a message is made of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract.wire import Rollout, VersionRun

REQUEST_BYTES = 1024
"""What a request is taken to need beside its tokens."""

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
"""Sampling parameters that shape the distribution, with the value at which each does nothing (None: always told)."""


class FinishedRollout(NamedTuple):
    """A whole rollout: its facts, and the bytes of its arrays (i4, i4, f4; nats, NaN where not recorded)."""

    rollout: Rollout
    prompt: bytes
    tokens: bytes | bytearray
    values: bytes | bytearray

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
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


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended.

    Attributes:
        prompt: bytes of its token ids. tokens, logprobs: likewise, of what it sampled so far.
        asked: it asked for logprobs. recorded: some came.
        truth: the request's own list of sampled tokens, None where it has none; by_rows: ``tokens`` were not read from
            its outputs, and are held against the truth at its end.
        origin: of the last tokens; see ``assemble``.
        others: as in ``Rollout``.
    """

    prompt: bytes
    arrived: float
    asked: bool
    skips_lookup: bool
    sampling: dict[str, float]
    truth: Any
    tokens: bytearray = field(default_factory=bytearray)
    logprobs: bytearray = field(default_factory=bytearray)
    runs: list[VersionRun] = field(default_factory=list)
    source: str = "unknown"
    cached: int | None = None
    lookup_off: bool = False
    scheduled: float = 0.0
    first_step: int = -1
    updated: float = 0.0
    recorded: bool = False
    by_rows: bool = False
    origin: Any = None

    @classmethod
    def of(cls, request: Any, params: Any, time: float) -> OpenRequest:
        """Of a request of vLLM's that came at ``time``."""
        prompt = request.prompt_token_ids
        asked = getattr(params, "num_logprobs", None) is not None or getattr(params, "logprobs", None) is not None
        return cls(
            prompt=packed(prompt if prompt is not None else ()),
            arrived=float(getattr(request, "arrival_time", time)),
            asked=asked,
            skips_lookup=bool(getattr(request, "skip_reading_prefix_cache", False)),
            sampling=sampling_of(params),
            truth=getattr(request, "output_token_ids", None),
        )

    @property
    def size(self) -> int:
        """Tokens so far."""
        return len(self.tokens) // 4

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
        return REQUEST_BYTES + len(self.prompt) + TOKEN_BYTES * self.size

    def run(self, version: int | None, source: str, epoch: int) -> None:
        """The next token is of this version and flag epoch."""
        if not self.runs or self.runs[-1].version != version or self.runs[-1].flag_epoch != epoch:
            self.runs.append(VersionRun(self.size, epoch, version))
            if source != "unknown" and self.source != "engine":
                self.source = source

    def correct(self, taken: bytes) -> int:
        """Its tokens are ``taken``, as many as before: a logprob of another token is none. How many there were."""
        told, ids = np.frombuffer(self.tokens, np.int32), np.frombuffer(taken, np.int32)
        logprobs = np.frombuffer(self.logprobs, np.float32)
        astray = (ids != told) & ~np.isnan(logprobs)
        self.tokens = bytearray(taken)
        self.logprobs = bytearray(np.where(astray, np.float32(np.nan), logprobs))
        return int(np.count_nonzero(astray))

    def end(self, request_id: str, reason: str, time: float, started: float) -> FinishedRollout:
        """What it has by now, as a rollout; see there."""
        rollout = Rollout(
            request_id=request_id,
            prompt_size=len(self.prompt) // 4,
            size=self.size,
            finish_reason=reason,
            runs=self.runs,
            version_source=self.source,
            has_logprobs=self.recorded or (self.asked and not self.tokens),
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
    """As i4; in less than half the time of np.array.

    Raises:
        struct.error: an id is beyond 32 bits.
    """
    return struct.pack(f"={len(token_ids)}i", *token_ids)


def sampling_of(params: Any) -> dict[str, float]:
    """The parameters of ``SAMPLING`` that are set to something that matters."""
    found = {}
    for name, idle in SAMPLING.items():
        value = getattr(params, name, None)
        if value != idle and isinstance(value, int | float) and math.isfinite(value):
            found[name] = float(value)
    return found
