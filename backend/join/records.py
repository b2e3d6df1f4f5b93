"""Rollouts in the index, queries for the spans of trainer rows, and the keys that match them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.rounding import agree
from rltop.collectors.contract import wire

HEADS = (8, 4, 2, 1)
"""Rollouts are indexed by these numbers of first tokens of their completion."""

DISTINCTIVE_TOKENS, DISTINCT_IDS = 8, 4
"""A completion with this many tokens and distinct ids is unlikely to occur twice for a prompt. With logprobs that are
not near 0, this many tokens identify it among all rollouts."""

_NEAR_ZERO = 1e-3
_MIN_LOGPROBS = 4
"""Logprobs below -0.001 have about 13 bits that depend on the whole context; 4 equal ones are no coincidence. A shorter
completion needs one: it is used only for rows without a prompt, of which nothing else is known."""

_RECORD_BYTES = 2600  # rough cost of a record and its keys, without its arrays

_INTERNAL_ID = re.compile(r"^(?:\d+_)?(?P<given>.*?)(?:-[0-9a-f]{8})?$", re.DOTALL)
"""vLLM prefixes the caller's id with ``<n>_`` if n > 1, and appends 8 random hex digits."""

Ints = NDArray[np.int32]
Use = tuple[int, int]
"""(step, update), within which a rollout joins at most once."""


@dataclass(slots=True, eq=False)
class Record:
    """A rollout in the index. ``tokens`` i4 and ``logprobs`` f4 [size]; ``life`` is the epoch of the engine process.

    ``prompt`` is the hash of ``prompt_ids``, a view of the message, which ``tokens`` keep in memory anyway.
    ``seq`` is the number of its message and ``place`` its index there; ``arrival`` its number among all rollouts.
    ``trained``: a finished step trained on it. ``old``: no later step will train on it (``join.ageing``).
    """

    engine: str
    rollout: wire.Rollout
    prompt: bytes
    starts_with: int
    tokens: Ints
    logprobs: NDArray[np.float32]
    life: str = ""
    uses: set[Use] = field(default_factory=set)
    seq: int = -1
    place: int = 0
    prompt_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    arrival: int = 0
    trained: bool = False
    old: bool = False

    @property
    def versions(self) -> NDArray[np.int64]:
        """Policy version per token [size], ``wire.UNKNOWN_VERSION`` if the engine had none."""
        versions = np.full(self.tokens.size, wire.UNKNOWN_VERSION, np.int64)
        for run in self.rollout.runs:
            versions[max(run.start, 0) :] = wire.UNKNOWN_VERSION if run.version is None else run.version
        return versions

    @property
    def epochs(self) -> NDArray[np.int64]:
        """Flag epoch per token [size], ``wire.UNKNOWN_VERSION`` if the engine had none."""
        epochs = np.full(self.tokens.size, wire.UNKNOWN_VERSION, np.int64)
        for run in self.rollout.runs:
            epochs[max(run.start, 0) :] = run.flag_epoch
        return epochs

    def run_at(self, position: int) -> wire.VersionRun | None:
        """The run of the token at ``position``."""
        return next((run for run in reversed(self.rollout.runs) if run.start <= position), None)

    def agrees(self, logprobs: NDArray[np.float32]) -> bool:
        """Whether the trainer's copy ``logprobs`` [n] equals the record's first n logprobs, up to a cast.

        Any copy agrees with a record of NaN or infinity.
        """
        own = self.logprobs[: logprobs.size]
        known = np.isfinite(own)
        return not self.rollout.has_logprobs or agree(own[known], logprobs[known])

    def starts(self, tokens: Ints) -> bool:
        """Whether the record's tokens start with ``tokens`` [n]."""
        return self.tokens.size >= tokens.size and np.array_equal(self.tokens[: tokens.size], tokens)


@dataclass(frozen=True, slots=True)
class RowQuery:
    """Trained tokens of a row, their rollout logprobs and the versions that the trainer states [n], if it states any.

    ``request_id``: of the rollout, if the trainer kept it.
    """

    tokens: Ints
    logprobs: NDArray[np.float32]
    use: Use
    request_id: str = ""
    versions: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """The match of a span with ``record``, from its token ``offset`` on.

    ``way``: how it was found (``reasons.WAYS``). ``again``: another step trained on it before.
    """

    record: Record
    offset: int
    way: str = ""
    again: bool = False


def prompt_key(prompt: Ints) -> bytes:
    """The 128-bit hash of prompt tokens [n] i4."""
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()


def given_id(request_id: str) -> str:
    """The id that the caller gave to vLLM, from the id in the engine core."""
    found = _INTERNAL_ID.match(request_id)
    return found["given"] if found else request_id


LOOKUP_TOKENS, LOOKUP_DISTINCT = 4, 2
"""First logprobs that a copy is looked up by, and how many of them must differ from each other and from 0."""


def logprobs_key(logprobs: NDArray[np.float32]) -> bytes:
    """Key of a rollout's first logprobs; empty if these are too few, or too much alike."""
    first = logprobs[:LOOKUP_TOKENS]
    distinct = np.unique(first[np.isfinite(first) & (first != 0)]).size
    return b"ll" + first.tobytes() if first.size == LOOKUP_TOKENS and distinct >= LOOKUP_DISTINCT else b""


def keys(record: Record) -> Iterable[bytes | str]:
    """Index keys: prompt; prompt and head; request id; tokens and logprobs; logprobs. They differ in type or length."""
    yield record.prompt
    for size in HEADS:
        if record.tokens.size >= size:
            yield record.prompt + record.tokens[:size].tobytes()
    if record.rollout.request_id:
        yield from {record.rollout.request_id, given_id(record.rollout.request_id)}
    if key := fingerprint(record.tokens, record.logprobs):
        yield key
    if key := logprobs_key(record.logprobs):
        yield key


def fingerprint(tokens: Ints, logprobs: NDArray[np.float32]) -> bytes:
    """Key of the first tokens and their logprobs; empty if these identify too little. Its length is odd."""
    first = logprobs[:DISTINCTIVE_TOKENS]
    least = _MIN_LOGPROBS if tokens.size >= DISTINCTIVE_TOKENS else 1
    if np.count_nonzero(np.abs(first) > _NEAR_ZERO) < least:
        return b""
    return b"f" + tokens[:DISTINCTIVE_TOKENS].tobytes() + first.tobytes()


def cost(record: Record) -> int:
    """Approximate memory use of a record in bytes."""
    return _RECORD_BYTES + record.tokens.nbytes + record.logprobs.nbytes


def distance(record: Record, logprobs: NDArray[np.float32]) -> tuple[float, int, int]:
    """Sort key: mean |difference| of logprobs, surplus tokens, times it has joined."""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(record.logprobs[: logprobs.size] - logprobs)
    gaps = gaps[np.isfinite(gaps)]
    far = float(gaps.mean()) if gaps.size else np.inf
    return far, record.tokens.size - logprobs.size, len(record.uses)


def is_distinctive(tokens: Ints) -> bool:
    """Whether a completion is unlikely to occur twice."""
    return tokens.size >= DISTINCTIVE_TOKENS and np.unique(tokens).size >= DISTINCT_IDS


def is_prefix(record: Record, span: RowQuery) -> bool:
    """Whether the record's tokens and logprobs are a proper prefix of the span."""
    size = record.tokens.size
    return (
        size < span.tokens.size
        and np.array_equal(record.tokens, span.tokens[:size])
        and record.agrees(span.logprobs[:size])
    )
