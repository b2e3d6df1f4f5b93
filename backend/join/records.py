"""A rollout as the hub keeps it, what a trainer's row asks for, and the keys by which one finds the other. Pure."""

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
"""Rollouts are found by so many first tokens of their completion."""

SURE_SIZE = 8
SURE_KINDS = 4
"""So many tokens, of so many different ones, tell a completion apart from others of a prompt whatever its logprobs are;
with logprobs that are not near 0, so many tell it from all others."""

_TELLING = 1e-3
_TELLING_TOKENS = 4
"""Logprobs beyond -0.001 have about 13 bits that depend on the whole context; 4 equal ones are no chance."""

_RECORD_BYTES = 2600  # rough cost of a record and its keys beside its arrays

_INTERNAL_ID = re.compile(r"^(?:\d+_)?(?P<given>.*?)(?:-[0-9a-f]{8})?$", re.DOTALL)
"""vLLM puts ``<n>_`` before the caller's id where n > 1, and appends 8 random hex digits."""

Ints = NDArray[np.int32]
Use = tuple[int, int]
"""(step, update): within it a rollout joins once."""


@dataclass(slots=True, eq=False)
class Record:
    """One rollout as the index keeps it. ``tokens`` i4 and ``logprobs`` f4 [size]; ``life`` of the engine's process.

    ``seq`` is the number of the message that brought it, and ``place`` its place there; ``arrival`` its place among
    all; ``trained``: a step that is done has it; ``old``: no step will train on it any more (``join.ageing``).
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
    arrival: int = 0
    trained: bool = False
    old: bool = False

    @property
    def versions(self) -> NDArray[np.int64]:
        """Policy version per token [size], ``wire.UNKNOWN_VERSION`` where the engine had none."""
        versions = np.full(self.tokens.size, wire.UNKNOWN_VERSION, np.int64)
        for run in self.rollout.runs:
            versions[max(run.start, 0) :] = wire.UNKNOWN_VERSION if run.version is None else run.version
        return versions

    @property
    def epochs(self) -> NDArray[np.int64]:
        """Flag epoch per token [size], ``wire.UNKNOWN_VERSION`` where the engine had none."""
        epochs = np.full(self.tokens.size, wire.UNKNOWN_VERSION, np.int64)
        for run in self.rollout.runs:
            epochs[max(run.start, 0) :] = run.flag_epoch
        return epochs

    def run_at(self, position: int) -> wire.VersionRun | None:
        """The run that the token at ``position`` belongs to."""
        return next((run for run in reversed(self.rollout.runs) if run.start <= position), None)

    def agrees(self, logprobs: NDArray[np.float32]) -> bool:
        """Whether the trainer's copy ``logprobs`` [n] is this record's beginning, perhaps rounded to fewer bits."""
        return not self.rollout.has_logprobs or agree(self.logprobs[: logprobs.size], logprobs)

    def starts(self, tokens: Ints) -> bool:
        """Whether the record's tokens start with ``tokens`` [n]."""
        return self.tokens.size >= tokens.size and np.array_equal(self.tokens[: tokens.size], tokens)


@dataclass(frozen=True, slots=True)
class RowQuery:
    """What a trainer says of trained tokens in a row: [n] each, and the id of the request, where it kept one."""

    tokens: Ints
    logprobs: NDArray[np.float32]
    use: Use
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A span belongs to ``record``, from its token ``offset`` on.

    ``way`` says how it was found (``unjoined.WAYS``); ``again``: another step has trained on it before.
    """

    record: Record
    offset: int
    way: str = ""
    again: bool = False


def prompt_key(prompt: Ints) -> bytes:
    """The 128-bit hash of prompt tokens [n] i4."""
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()


def given_id(request_id: str) -> str:
    """The id as the caller of vLLM gave it, of one as the engine core has it."""
    found = _INTERNAL_ID.match(request_id)
    return found["given"] if found else request_id


def keys(record: Record) -> Iterable[bytes | str]:
    """Prompt; prompt and head; the request's id; tokens and logprobs. All of different types or lengths."""
    yield record.prompt
    for size in HEADS:
        if record.tokens.size >= size:
            yield record.prompt + record.tokens[:size].tobytes()
    if record.rollout.request_id:
        yield from {record.rollout.request_id, given_id(record.rollout.request_id)}
    if key := fingerprint(record.tokens, record.logprobs):
        yield key


def fingerprint(tokens: Ints, logprobs: NDArray[np.float32]) -> bytes:
    """Of the first tokens and their logprobs; empty where these tell too little."""
    if tokens.size < SURE_SIZE or np.count_nonzero(np.abs(logprobs[:SURE_SIZE]) > _TELLING) < _TELLING_TOKENS:
        return b""
    return tokens[:SURE_SIZE].tobytes() + logprobs[:SURE_SIZE].tobytes()


def cost(record: Record) -> int:
    """Bytes that a record holds, roughly."""
    return _RECORD_BYTES + record.tokens.nbytes + record.logprobs.nbytes


def distance(record: Record, logprobs: NDArray[np.float32]) -> tuple[float, int, int]:
    """By logprobs, then by surplus tokens, then by how often it has joined."""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(record.logprobs[: logprobs.size] - logprobs)
    gaps = gaps[np.isfinite(gaps)]
    far = float(gaps.mean()) if gaps.size else np.inf
    return far, record.tokens.size - logprobs.size, len(record.uses)


def telling(tokens: Ints) -> bool:
    """Whether a completion is unlikely to come twice."""
    return tokens.size >= SURE_SIZE and np.unique(tokens).size >= SURE_KINDS


def is_beginning(record: Record, span: RowQuery) -> bool:
    """Whether the span goes on after all of the record, whose tokens and logprobs it starts with."""
    size = record.tokens.size
    return (
        size < span.tokens.size
        and np.array_equal(record.tokens, span.tokens[:size])
        and record.agrees(span.logprobs[:size])
    )
