"""Finds the rollout of a span of a trainer's row, by content or by request id, verified token by token. Pure.

A rollout is looked up by a 128-bit hash of its prompt, then by the first tokens of its completion, then its tokens are
compared with the span's. Equal completions of one prompt are a multiset: within one (step, update) each rollout joins
one span, chosen by the rollout logprobs (of which the trainer's copy may be cast).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.ageing import RolloutAgeing
from rltop.backend.join.pending import PendingMessages
from rltop.backend.join.reasons import (
    BY_ID,
    EVICTED,
    NO_COMPLETION,
    NO_PROMPT,
    OTHER_PROMPT,
    OVERLONG,
    RETOKENISED,
    TAKEN,
    UNSURE,
    WITHOUT_PROMPT,
    nearer,
)
from rltop.backend.join.records import (
    DISTINCTIVE_TOKENS,
    HEADS,
    Hit,
    Ints,
    Record,
    RowQuery,
    Use,
    cost,
    distance,
    fingerprint,
    given_id,
    is_distinctive,
    is_prefix,
    keys,
    logprobs_key,
    prompt_key,
)
from rltop.backend.join.versions import is_stated
from rltop.collectors.contract import wire

KEPT_BYTES, KEPT_STEPS, MAX_BYTES = 64 << 20, 64, 512 << 20
"""The index keeps the rollouts of the last KEPT_STEPS steps, and older ones for reuse up to KEPT_BYTES. Beyond
MAX_BYTES the oldest are evicted and counted."""

MAX_EVICTED_PROMPTS = 20_000
"""Prompts remembered after their last rollout was evicted, to report the reason of a failed join."""

_PROMPT_TRIES = 8
_NEAR_TRIES = 16
_NEAR_TOKENS = 1024
"""Bounds of the search for one span: prompts, rollouts, tokens of each."""

Origin = tuple[str, str, int, int]
"""Engine, epoch of its process, sequence number of the message, index in the message."""


class RolloutIndex:
    """Rollouts by content, bounded by bytes.

    Attributes:
        evicted: rollouts of the last steps that were evicted for lack of space.
        generation: rises with every message of rollouts.
        bytes: approximate memory use.
        needed: the messages of rollouts that may still be needed.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES, max_bytes: int = MAX_BYTES) -> None:
        self.evicted = 0
        self.generation = 0
        self.bytes = 0
        self._kept_bytes, self._max_bytes = kept_bytes, max_bytes
        self._removed = 0  # rollouts evicted for lack of space or as too old
        self._records: deque[Record] = deque()
        self._by: dict[bytes | str, list[Record]] = {}  # by every key of ``records.keys``
        self._lengths: Counter[int] = Counter()  # of prompts
        self._firsts: Counter[int] = Counter()  # first tokens of prompts
        self._evicted_prompts: OrderedDict[bytes, None] = OrderedDict()
        self._ageing = RolloutAgeing()
        self._step_ends: deque[int] = deque()  # arrivals by the end of each of the last steps
        self._unused: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self.needed = PendingMessages()
        self._uses: dict[Origin, Iterable[Use]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def expect(self, uses: Mapping[Origin, Iterable[Use]]) -> None:
        """Set the rollouts that may be resent, with the stored steps that trained on them."""
        self._uses = dict(uses)

    def add(self, body: wire.Rollouts, arrays: wire.Arrays, life: str = "", seq: int = -1) -> None:
        """Add finished requests from message ``seq`` of the engine process with epoch ``life``.

        Raises:
            WireError: an array is missing or does not have the size that the rollouts declare.
        """
        prompts, tokens = _checked(arrays, "prompt_ids", "i4"), _checked(arrays, "token_ids", "i4")
        logprobs = _checked(arrays, "logprobs", "f4")
        if any(r.prompt_size < 0 or r.size < 0 for r in body.rollouts):
            raise wire.WireError("a rollout of negative size")
        if sum(r.prompt_size for r in body.rollouts) != prompts.size:
            raise wire.WireError(f"prompt_ids: {prompts.size} entries do not fit the rollouts' prompt sizes")
        if not sum(r.size for r in body.rollouts) == tokens.size == logprobs.size:
            raise wire.WireError(f"{tokens.size} token_ids and {logprobs.size} logprobs do not fit the rollouts' sizes")
        self.needed.received(body.engine, life, seq, sum(rollout.size > 0 for rollout in body.rollouts))
        prompt_at = at = 0
        for place, rollout in enumerate(body.rollouts):
            prompt = prompts[prompt_at : prompt_at + rollout.prompt_size]
            end = at + rollout.size
            if rollout.size:
                first = int(prompt[0]) if prompt.size else -1
                key = prompt_key(prompt)
                uses = set(self._uses.pop((body.engine, life, seq, place), ()))
                record = Record(
                    body.engine, rollout, key, first, tokens[at:end], logprobs[at:end], life, uses, seq, place, prompt
                )
                if uses:
                    self.needed.mark_trained(record)
                self._insert(record)
            prompt_at, at = prompt_at + rollout.prompt_size, end
        self.generation += 1

    def _insert(self, record: Record) -> None:
        for key in keys(record):
            self._by.setdefault(key, []).append(record)
        self._records.append(record)
        self._ageing.add(record)
        self._lengths[record.rollout.prompt_size] += 1
        self._firsts[record.starts_with] += 1
        if record.rollout.has_logprobs and not np.isfinite(record.logprobs).all():
            self._broken[record.engine] += 1
        self.bytes += cost(record)
        while self.bytes > self._max_bytes:
            self._evict()
            self.evicted += 1

    def _evict(self) -> None:
        record = self._records.popleft()
        for key in keys(record):
            found = self._by[key]
            found.remove(record)
            if not found:
                del self._by[key]
        if record.prompt not in self._by:
            self._evicted_prompts[record.prompt] = None
            if len(self._evicted_prompts) > MAX_EVICTED_PROMPTS:
                self._evicted_prompts.popitem(last=False)
        _lower(self._lengths, record.rollout.prompt_size)
        _lower(self._firsts, record.starts_with)
        if self._ageing.remove(record):
            self._mark_old(record)
        self.bytes -= cost(record)
        self._removed += 1

    def _mark_old(self, record: Record) -> None:
        self.needed.mark_old(record)
        if not record.uses:
            self._unused[record.engine] += 1

    def step_done(self, trained: Collection[Record] = (), *, in_turn: bool = True) -> Counter[str]:
        """Close a step that trained on ``trained``. Returns the number of newly unused rollouts by engine.

        ``in_turn``: the step has rows, and no rollouts have arrived that are much later than those it could train on.
        """
        for record in trained:
            self.needed.mark_trained(record)
        for record in self._ageing.step_done(trained, in_turn=in_turn):
            self._mark_old(record)
        if not in_turn:
            return Counter()
        self._step_ends.append(self._removed + len(self._records))
        if len(self._step_ends) > KEPT_STEPS:
            old = self._step_ends.popleft()
            while self._removed < old and self.bytes > self._kept_bytes:
                self._evict()
        unused, self._unused = self._unused, Counter()
        return unused

    def take_broken(self) -> Counter[str]:
        """Rollouts with NaN or infinity among their logprobs that arrived since the last call, by engine."""
        broken, self._broken = self._broken, Counter()
        return broken

    def with_logprobs(self, copy: NDArray[np.float32]) -> list[Record]:
        """Rollouts whose first logprobs are those of ``copy`` [n]."""
        key = logprobs_key(copy)
        return self._by.get(key, []) if key else []

    def knows(self, prompt: bytes) -> bool:
        """Whether the index holds a rollout of this prompt."""
        return prompt in self._by

    def prompts_at_end(self, context: Ints) -> list[int]:
        """Starts of known prompts that extend to the end of ``context`` [n]; the longest first, 8 at most."""
        if not context.size:
            return []
        places = np.flatnonzero(np.isin(context, np.fromiter(self._firsts, np.int64, len(self._firsts))))
        likely = (place for place in places.tolist() if context.size - place in self._lengths)
        tries = [place for place, _ in zip(likely, range(_PROMPT_TRIES), strict=False)]
        return [place for place in tries if prompt_key(context[place:]) in self._by]

    def find(self, prompt: bytes, span: RowQuery, *, strict: bool, in_part: bool) -> Hit | str:
        """The rollout of this prompt whose tokens start with the span's, or the reason why there is none.

        Of several free rollouts the one with the nearest logprobs. The reason is ``UNSURE`` if it may be the wrong one.
        With ``strict``: it has more tokens, or other logprobs (beyond a rounding to fewer bits), or another step
        trained on it and the trainer states other versions than its engine. (Where an update had no effect, the row's
        own rollout may be equal and still to come.) Without: it has more
        tokens and other logprobs, or it is short with other logprobs and the prompt is only part (``in_part``) of the
        tokens before the span. The returned rollout is claimed for the span's use.
        """
        named = self._named(span.request_id)
        found = [record for record in named if record.starts(span.tokens)]
        way = BY_ID if found else ""
        if not found:
            if prompt not in self._by:
                return EVICTED if prompt in self._evicted_prompts else NO_PROMPT
            head = span.tokens[: next(h for h in HEADS if h <= span.tokens.size)]
            found = [r for r in self._by.get(prompt + head.tobytes(), ()) if r.starts(span.tokens)]
        if not found:
            return NO_COMPLETION
        free = [record for record in found if span.use not in record.uses]
        if not free:
            return TAKEN
        best = free[0] if len(free) == 1 else min(free, key=lambda r: distance(r, span.logprobs))
        if not (way and len(found) == 1) and not _acceptable(best, span, strict=strict, in_part=in_part):
            return UNSURE
        return claim(best, span, "" if prompt == best.prompt else way)

    def find_prefix(self, prompt: bytes, span: RowQuery) -> Record | None:
        """The longest free rollout of this prompt whose tokens and logprobs are a prefix of the span."""
        free = [r for r in self._by.get(prompt, ()) if span.use not in r.uses and is_prefix(r, span)]
        return max(free, key=lambda record: record.tokens.size, default=None)

    def by_fingerprint(self, span: RowQuery, *, prompted: bool) -> Hit | None:
        """A free rollout with exactly these tokens and logprobs, if all such rollouts have the same prompt.

        ``prompted``: the row has a prompt, which is another one; then the tokens must be distinctive.
        """
        if prompted and span.tokens.size < DISTINCTIVE_TOKENS:
            return None
        key = fingerprint(span.tokens, span.logprobs)
        same = [
            record
            for record in (self._by.get(key, ()) if key else ())
            if record.tokens.size == span.tokens.size
            and np.array_equal(record.tokens, span.tokens)
            and np.array_equal(record.logprobs, span.logprobs)
            and span.use not in record.uses
        ]
        way = OTHER_PROMPT if prompted else WITHOUT_PROMPT
        return claim(same[0], span, way) if len({record.prompt for record in same}) == 1 else None

    def near_miss(self, prompt: bytes, span: RowQuery) -> str:
        """A more specific reason for a span without a rollout; empty if there is none."""
        named = self._named(span.request_id)
        reason = RETOKENISED if named else ""
        free = (record for record in (*named, *self._by.get(prompt, ())) if span.use not in record.uses)
        for record, _ in zip(free, range(_NEAR_TRIES), strict=False):
            if is_prefix(record, span):
                reason = nearer(reason, OVERLONG)
            elif not reason and _shared(record.tokens, span.tokens) >= 0.5:
                reason = RETOKENISED
        return reason

    def _named(self, request_id: str) -> list[Record]:
        """Rollouts of the request with this id, as the engine names it or an OpenAI server (its first prompt)."""
        if not request_id:
            return []
        ids = (request_id, given_id(request_id), f"{request_id}-0")
        return next((self._by[name] for name in ids if name in self._by), [])


def claim(record: Record, span: RowQuery, way: str) -> Hit:
    """Claim the record for the span."""
    again = _is_again(record, span)
    record.uses.add(span.use)
    return Hit(record, 0, way, again)


def _is_again(record: Record, span: RowQuery) -> bool:
    """Whether another step trained on the record."""
    return any(step != span.use[0] for step, _ in record.uses)


def _acceptable(record: Record, span: RowQuery, *, strict: bool, in_part: bool) -> bool:
    same_size = record.tokens.size == span.tokens.size
    if record.agrees(span.logprobs):
        return not strict or (same_size and not (_is_again(record, span) and _has_other_versions(record, span)))
    return not strict and same_size and (not in_part or is_distinctive(span.tokens))


def _has_other_versions(record: Record, span: RowQuery) -> bool:
    """Whether engine and trainer both state which versions sampled the span, and differ."""
    stated, own = span.versions, record.versions[: span.tokens.size]
    if stated is None or not is_stated(record.rollout.version_source):
        return False
    return bool(((stated != own) & (stated != wire.UNKNOWN_VERSION) & (own != wire.UNKNOWN_VERSION)).any())


def _shared(ours: Ints, theirs: Ints) -> float:
    """Share of common 3-grams among the first ``_NEAR_TOKENS`` tokens of both."""
    trigrams = [_trigrams(ids[:_NEAR_TOKENS]) for ids in (ours, theirs)]
    longer = max(found.size for found in trigrams)
    return np.intersect1d(trigrams[0], trigrams[1], assume_unique=True).size / longer if longer else 0.0


def _trigrams(ids: Ints) -> NDArray[np.int64]:
    wide = ids.astype(np.int64)
    if ids.size < DISTINCTIVE_TOKENS:
        return wide[:0]
    return np.unique(wide[:-2] * 1_000_003 + wide[1:-1] * 10_007 + wide[2:])


def _lower(counter: Counter[int], key: int) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _checked(arrays: wire.Arrays, name: str, dtype_name: str) -> NDArray[Any]:
    dtype = wire.DTYPES[dtype_name]
    array = arrays.get(name)
    if array is None or array.dtype != dtype:
        raise wire.WireError(f"{name}: missing, or not {dtype}")
    return array
