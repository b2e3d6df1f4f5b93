"""Which rollout is this span of a trainer's row? By content, verified token by token; never a guess. Pure.

A rollout is found by a 128-bit hash of its prompt, then by the first tokens of its completion, then its tokens are
compared with the span's. Equal completions of one prompt are a multiset: within one (step, update) each rollout
answers for one span, and the recorded logprobs say which (the trainer's copy may be cast).
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.collectors import wire

MAX_ROLLOUTS = 200_000
MAX_BYTES = 512 << 20
"""What the index keeps for reuse in later steps; the oldest go first and are counted."""

MAX_EVICTED_PROMPTS = 100_000
"""Prompts remembered after their last rollout was evicted, to name the reason of a failed join."""

_HEADS = (8, 4, 2, 1)
_PADDING_TRIES = 8  # shortest first, which is right unless the prompt itself starts with the padding's token
_CAST = 2.0**-7
"""Relative error of a logprob cast to bfloat16, twice over."""

_RECORD_BYTES = 1000  # rough cost of a record beside its arrays

Ints = NDArray[np.int32]
Use = tuple[int, int]
"""(step, update): within it a rollout joins once."""

NO_PROMPT = "no_prompt"
NO_COMPLETION = "no_completion_match"
EVICTED = "evicted"
TAKEN = "already_joined"
UNSURE = "unsure"
"""A rollout has these tokens, but more of them or other logprobs: the right one may still come."""


@dataclass(slots=True, eq=False)
class Record:
    """One rollout as the index keeps it. ``tokens`` i4 and ``logprobs`` f4 [size]; ``life`` of the engine's process."""

    engine: str
    rollout: wire.Rollout
    prompt: bytes
    tokens: Ints
    logprobs: NDArray[np.float32]
    life: str = ""
    uses: set[Use] = field(default_factory=set)

    @property
    def versions(self) -> NDArray[np.int64]:
        """Policy version per token [size], ``wire.UNKNOWN_VERSION`` where the engine had none."""
        versions = np.full(self.tokens.size, wire.UNKNOWN_VERSION, np.int64)
        for run in self.rollout.runs:
            versions[max(run.start, 0) :] = wire.UNKNOWN_VERSION if run.version is None else run.version
        return versions


@dataclass(frozen=True, slots=True)
class Hit:
    """A span belongs to ``record``, from its token ``offset`` on."""

    record: Record
    offset: int


def prompt_key(prompt: Ints) -> bytes:
    """The 128-bit hash of prompt tokens [n] i4."""
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()


class Index:
    """Rollouts by content, bounded by number and bytes."""

    def __init__(self, max_rollouts: int = MAX_ROLLOUTS, max_bytes: int = MAX_BYTES) -> None:
        self.evicted = 0
        self.generation = 0
        self.bytes = 0
        self._max_rollouts, self._max_bytes = max_rollouts, max_bytes
        self._records: deque[Record] = deque()
        self._prompts: dict[bytes, dict[bytes, list[Record]]] = {}
        self._lengths: Counter[int] = Counter()
        self._gone: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, body: wire.Rollouts, arrays: wire.Arrays, life: str = "") -> None:
        """Take in finished requests, of the engine's process with this epoch.

        Raises:
            WireError: the arrays do not have the sizes that the rollouts say, or one is missing.
        """
        prompts, tokens = _take(arrays, "prompt_ids", "i4"), _take(arrays, "token_ids", "i4")
        logprobs = _take(arrays, "logprobs", "f4")
        if any(r.prompt_size < 0 or r.size < 0 for r in body.rollouts):
            raise wire.WireError("a rollout of negative size")
        if sum(r.prompt_size for r in body.rollouts) != prompts.size:
            raise wire.WireError(f"prompt_ids: {prompts.size} entries do not fit the rollouts' prompt sizes")
        if not sum(r.size for r in body.rollouts) == tokens.size == logprobs.size:
            raise wire.WireError(f"{tokens.size} token_ids and {logprobs.size} logprobs do not fit the rollouts' sizes")
        prompt_at = at = 0
        for rollout in body.rollouts:
            key = prompt_key(prompts[prompt_at : prompt_at + rollout.prompt_size])
            end = at + rollout.size
            if rollout.size:
                self._insert(Record(body.engine, rollout, key, tokens[at:end], logprobs[at:end], life))
            prompt_at, at = prompt_at + rollout.prompt_size, end
        self.generation += 1

    def _insert(self, record: Record) -> None:
        heads = self._prompts.setdefault(record.prompt, {})
        for size in _HEADS:
            if record.tokens.size >= size:
                heads.setdefault(record.tokens[:size].tobytes(), []).append(record)
        self._records.append(record)
        self._lengths[record.rollout.prompt_size] += 1
        self.bytes += _cost(record)
        while len(self._records) > self._max_rollouts or self.bytes > self._max_bytes:
            self._evict()

    def _evict(self) -> None:
        record = self._records.popleft()
        heads = self._prompts[record.prompt]
        for size in _HEADS:
            head = record.tokens[:size].tobytes()
            if record.tokens.size >= size:
                heads[head].remove(record)
                if not heads[head]:
                    del heads[head]
        if not heads:
            del self._prompts[record.prompt]
            self._gone[record.prompt] = None
            if len(self._gone) > MAX_EVICTED_PROMPTS:
                self._gone.popitem(last=False)
        length = record.rollout.prompt_size
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
        self.bytes -= _cost(record)
        self.evicted += 1

    def paddings(self, prefix: Ints) -> list[int]:
        """How many leading tokens of ``prefix`` [n] may be padding: a known prompt is found without them.

        Padding is a run of one token at the start. Its length is not guessed: what is left must be the prompt of a
        rollout.
        """
        if prefix.size < 2:
            return []
        other = np.flatnonzero(prefix != prefix[0])
        run = int(other[0]) if other.size else prefix.size - 1
        lengths = sorted(length for length in self._lengths if prefix.size - run <= length < prefix.size)
        return [
            prefix.size - length
            for length in lengths[:_PADDING_TRIES]
            if prompt_key(prefix[prefix.size - length :]) in self._prompts
        ]

    def find(
        self,
        prompt: bytes,
        tokens: Ints,
        logprobs: NDArray[np.float32],
        use: Use,
        *,
        same_length: bool,
        same_logprobs: bool,
    ) -> Record | str:
        """The rollout of this prompt whose tokens start with ``tokens`` [n], or the reason why there is none.

        Of several free ones the nearest by logprobs [n]. It is ``UNSURE`` if that has more tokens and ``same_length``
        is asked for, or other logprobs (beyond a cast to bfloat16) and ``same_logprobs`` is. A record that is returned
        is claimed for ``use``.
        """
        heads = self._prompts.get(prompt)
        if heads is None:
            return EVICTED if prompt in self._gone else NO_PROMPT
        size = tokens.size
        head = tokens[: next(h for h in _HEADS if h <= size)].tobytes()
        equal = [r for r in heads.get(head, ()) if r.tokens.size >= size and np.array_equal(r.tokens[:size], tokens)]
        if not equal:
            return NO_COMPLETION
        free = [r for r in equal if use not in r.uses]
        if not free:
            return TAKEN
        best = free[0] if len(free) == 1 else min(free, key=lambda r: _distance(r, logprobs))
        if (same_length and best.tokens.size != size) or (same_logprobs and not _agree(best, logprobs)):
            return UNSURE
        best.uses.add(use)
        return best


def _take(arrays: wire.Arrays, name: str, dtype_name: str) -> NDArray[Any]:
    dtype = wire.DTYPES[dtype_name]
    array = arrays.get(name)
    if array is None or array.dtype != dtype:
        raise wire.WireError(f"{name}: missing, or not {dtype}")
    return array


def _cost(record: Record) -> int:
    return _RECORD_BYTES + record.tokens.nbytes + record.logprobs.nbytes


def _distance(record: Record, logprobs: NDArray[np.float32]) -> tuple[float, int, int]:
    """By logprobs, then by surplus tokens, then by how often it has joined."""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(record.logprobs[: logprobs.size] - logprobs)
    gaps = gaps[np.isfinite(gaps)]
    far = float(gaps.mean()) if gaps.size else np.inf
    return far, record.tokens.size - logprobs.size, len(record.uses)


def _agree(record: Record, logprobs: NDArray[np.float32]) -> bool:
    """The trainer's copy is the engine's record, perhaps cast to bfloat16."""
    if not record.rollout.has_logprobs:
        return True
    ours = record.logprobs[: logprobs.size]
    with np.errstate(invalid="ignore"):
        close = np.abs(ours - logprobs) <= _CAST * np.abs(ours) + 1e-6
    return bool(np.all(close | (ours == logprobs) | (np.isnan(ours) & np.isnan(logprobs))))
