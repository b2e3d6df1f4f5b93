"""One message of trainer rows: validated, split into spans, and joined with the engines' rollouts. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.index import RolloutIndex, claim
from rltop.backend.join.reasons import NO_COMPLETION, PACKED, PADDED, RESUMED, TRUNCATED, WHOLE, more_unusual, nearer
from rltop.backend.join.records import Hit, Ints, RowQuery, prompt_key
from rltop.backend.join.versions import VersionScale
from rltop.collectors.contract import wire

_SPAN_BYTES = 1000  # rough cost of a span's objects, without the arrays

ATTEMPTS_PER_DELAY = 8
"""Failed attempts after which the next one waits for one more call."""

_REQUIRED = ("row_ids", "row_mask", "row_sizes", "rollout_logprobs", "trainer_logprobs")


@dataclass(frozen=True, slots=True)
class Span:
    """A maximal run of trained tokens: ``[start, end)`` in its row, from ``token`` on in the per-token arrays."""

    row: int
    start: int
    end: int
    token: int


class Batch:
    """The rows of one ``wire.Sequences``, and the rollouts that they came from.

    Attributes:
        body, arrays: the message.
        rows, tokens: number of rows and of trained tokens.
        token_rows: row of each trained token [tokens].
        spans: in row order; a span that several requests generated is split when their rollouts are found.
        hits: the rollout of each span, or None.
        waiting: rows that are not joined yet, each with the reason so far.
        first: rows that the rank sent earlier for the same step; set by the caller.
        scale: how its versions are read; set by the caller.
        index: the rollouts that its rows were looked up in, once they were.
        nbytes: approximate memory use.

    Raises:
        WireError: an array is missing, has another type, or its size does not fit the others.
    """

    def __init__(self, body: wire.Sequences, arrays: wire.Arrays) -> None:
        self.body = body
        self.arrays = arrays
        _check_types(arrays)
        self.rows = body.rows
        self._ids: Ints = arrays["row_ids"]
        self._edges = _edges(arrays["row_sizes"], self._ids.size, self.rows, "row_ids")
        self._prompts: Ints | None = arrays.get("prompt_ids")
        if self._prompts is not None:
            sizes = arrays.get("prompt_sizes")
            if sizes is None:
                raise wire.WireError("prompt_ids without prompt_sizes")
            self._prompt_edges = _edges(sizes, self._prompts.size, self.rows, "prompt_ids")
        mask = arrays["row_mask"] != 0
        if mask.size != self._ids.size:
            raise wire.WireError(f"row_mask: {mask.size} entries for {self._ids.size} row_ids")
        before = np.concatenate([[0], np.cumsum(mask)])  # trained tokens before each position
        self.tokens = int(before[-1])
        for name in wire.TOKEN_COLUMNS:
            if name in arrays and arrays[name].size != self.tokens:
                raise wire.WireError(f"{name}: {arrays[name].size} entries for {self.tokens} trained tokens")
        if "rewards" in arrays and arrays["rewards"].size != self.rows:
            raise wire.WireError(f"rewards: {arrays['rewards'].size} entries for {self.rows} rows")
        for name, entries in (("request_ids", body.request_ids), ("environments", body.environments)):
            if len(entries) not in (0, self.rows):
                raise wire.WireError(f"{name}: {len(entries)} entries for {self.rows} rows")
        self.token_rows = np.repeat(np.arange(self.rows), np.diff(before[self._edges]))
        self.spans = list(self._cut(mask, before))
        self.hits: list[Hit | None] = [None] * len(self.spans)
        self._row_spans: dict[int, list[int]] = {}
        self._number_spans()
        self._begins: list[int] = [-1] * len(self.spans)  # per joined span: where its prompt starts in the whole row
        self._keys: dict[tuple[int, int], _Keys] = {}
        self.waiting: dict[int, str] = dict.fromkeys(self._row_spans, "")
        columns = [*arrays.values(), self.token_rows]
        self.nbytes = sum(array.nbytes for array in columns) + len(self.spans) * _SPAN_BYTES
        self._generation = -1
        self._attempts = self._delay = 0
        self.first = 0
        self.scale = VersionScale(body.version_unit)
        self.index: RolloutIndex | None = None

    def _cut(self, mask: NDArray[np.bool_], before: NDArray[np.int64]) -> Iterator[Span]:
        first = np.zeros(mask.size + 1, bool)
        first[self._edges] = True  # the first position of each row, and the end
        padded = np.concatenate([mask, [False]])
        previous = np.concatenate([[False], mask])
        starts = np.flatnonzero(padded & (first | ~previous))
        ends = np.flatnonzero(previous & (first | ~padded))
        rows = np.searchsorted(self._edges, starts, side="right") - 1
        offsets = self._edges[rows]
        tokens = before[starts]
        for row, start, end, token in zip(rows, starts - offsets, ends - offsets, tokens, strict=True):
            yield Span(int(row), int(start), int(end), int(token))

    @property
    def is_first(self) -> bool:
        """Whether it is of the step's first update, whose rows the figures of the step are computed from."""
        return self.body.update <= self.body.first_update

    def lags(self, versions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Updates between each known version [n] and the trainer's: at least those that were made on these rows.

        The trainer's version must be stated.
        """
        assert self.body.policy_version is not None
        lags = self.scale.lags(self.body.policy_version, versions)
        return np.maximum(lags, self.body.update) if self.body.update else lags

    @property
    def joined(self) -> int:
        """Number of rows with all their rollouts."""
        return len(self._row_spans) - len(self.waiting)

    @property
    def joinable(self) -> int:
        """Number of rows with a trained token."""
        return len(self._row_spans)

    def is_joined(self, row: int) -> bool:
        """Whether the row has all its rollouts."""
        return row in self._row_spans and row not in self.waiting

    def unjoined(self) -> Counter[str]:
        """Number of waiting rows by reason."""
        return Counter(self.waiting.values())

    def row_of(self, row: int) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """Ids and mask of a row [n], and its prompt if the trainer passed it separately (else empty)."""
        prompt = self._ids[:0]
        if self._prompts is not None:
            prompt = self._prompts[self._prompt_edges[row] : self._prompt_edges[row + 1]]
        return self._row(row), self.arrays["row_mask"][self._edges[row] : self._edges[row + 1]] != 0, prompt

    def context(self, number: int) -> Ints:
        """The tokens before a span: its prompt, with all before it in its row [n]."""
        whole, start = self._whole(number)
        return whole[:start]

    def hits_of(self, row: int) -> list[tuple[Span, Hit | None]]:
        """The row's spans with their rollouts."""
        return [(self.spans[number], self.hits[number]) for number in self._row_spans.get(row, ())]

    def ways(self) -> Counter[str]:
        """Number of joined rows by the way they were found, the most unusual one of a row's spans."""
        rows: dict[int, str] = {}
        for number, (span, hit) in enumerate(zip(self.spans, self.hits, strict=True)):
            if hit is not None and span.row not in self.waiting:
                way = more_unusual(hit.way, TRUNCATED) if self.is_cut(number) else hit.way
                rows[span.row] = more_unusual(rows.get(span.row, ""), way)
        return Counter(rows.values())

    def reused(self) -> int:
        """Number of joined rows that an earlier step also trained on."""
        return len({span.row for span, hit in zip(self.spans, self.hits, strict=True) if hit and hit.again})

    def is_cut(self, number: int) -> bool:
        """Whether the joined span is the last of its rollout in its row, and the rollout has tokens after it."""
        span, hit = self.spans[number], self.hits[number]
        if hit is None or hit.offset + span.end - span.start == hit.record.tokens.size:
            return False
        if number + 1 == len(self.spans) or self.spans[number + 1].row != span.row:
            return True
        following = self.hits[number + 1]
        return following is None or following.record is not hit.record

    def join(self, index: RolloutIndex, *, strict: bool) -> bool:
        """Look up the rollouts of the waiting rows. Returns whether all rows are joined.

        ``strict`` accepts only unambiguous rollouts (see ``RolloutIndex.find``). A repeated strict attempt is skipped
        if no rollouts have arrived, else more and more often, so rows whose rollouts never arrive cost little.
        """
        self.index = index
        if strict:
            self._delay -= 1
            if self._generation == index.generation or self._delay > 0:
                return not self.waiting
            self._generation = index.generation
            self._attempts += 1
            self._delay = self._attempts // ATTEMPTS_PER_DELAY
        self._join_rows(index, strict=True)
        if not strict:
            self._join_rows(index, strict=False)
            for row in list(self.waiting):
                self._settle_row(row, self._find_by_fingerprint(row, index))
        return not self.waiting

    def _join_rows(self, index: RolloutIndex, *, strict: bool) -> None:
        for row in list(self.waiting):
            self._settle_row(row, self._join_row(row, index, strict))

    def _settle_row(self, row: int, reason: str) -> None:
        if reason:
            self.waiting[row] = reason
        else:
            del self.waiting[row]

    def _join_row(self, row: int, index: RolloutIndex, strict: bool) -> str:
        """Join the spans of a row. Returns the reason of the nearest miss; empty if all are joined."""
        reason, at = "", 0
        while at < len(self._row_spans[row]):  # splitting a span adds one
            number = self._row_spans[row][at]
            if self.hits[number] is None:
                reason = nearer(reason, self._join_span(number, index, strict))
            at += 1
        return reason

    def _join_span(self, number: int, index: RolloutIndex, strict: bool) -> str:
        """Join a span. Returns the reason why it is not joined; empty if it is.

        The tokens before a span are its prompt, possibly after padding or other sequences: a known prompt shows where
        it starts. A prompt that starts with a repeated token looks like a padded shorter one, whose rollout may be
        known first, so every possible start is tried each time, the simplest first.
        """
        if self._continue(number):
            return ""
        query = self._query(number)
        reason = ""
        for begin in self._prompt_starts(number, index):
            part = begin > self._default_start(number)
            key = self._key(number, begin)
            found = index.find(key, query, strict=strict, in_part=part)
            if isinstance(found, str) and found == NO_COMPLETION:
                found = self._resume(number, begin, index, query) or found
            if not isinstance(found, str):
                self.hits[number] = replace(found, way=more_unusual(found.way, self._way(number, begin)))
                self._begins[number] = begin
                return ""
            reason = nearer(reason, found)
        return reason

    def _default_start(self, number: int) -> int:
        """Start of the span's prompt in the whole row if nothing precedes it: that of the previous joined span."""
        row = self.spans[number].row
        joined = [n for n in self._row_spans[row] if n < number and self._begins[n] >= 0]
        return self._begins[joined[-1]] if joined else 0

    def _prompt_starts(self, number: int, index: RolloutIndex) -> Iterator[int]:
        """Possible starts of the span's prompt, in the order in which they are tried."""
        default = self._default_start(number)
        yield default
        whole, start = self._whole(number)
        span, before = self.spans[number], self.spans[number - 1]
        first = number == 0 or before.row != span.row
        gap = default + 1 if first else start - (span.start - before.end)
        for place in index.prompts_at_end(whole[gap:start]):
            yield gap + place

    def _way(self, number: int, begin: int) -> str:
        if begin == self._default_start(number):
            return WHOLE
        return PADDED if number == self._row_spans[self.spans[number].row][0] else PACKED

    def _query(self, number: int) -> RowQuery:
        span = self.spans[number]
        ids, versions = self.body.request_ids, self.arrays.get("rollout_versions")
        tokens = slice(span.token, span.token + span.end - span.start)
        return RowQuery(
            self._row(span.row)[span.start : span.end],
            self.arrays["rollout_logprobs"][tokens],
            (self.body.step, self.body.update),
            ids[span.row] if ids else "",
            None if versions is None else versions[tokens],
        )

    def _resume(self, number: int, begin: int, index: RolloutIndex, query: RowQuery) -> Hit | None:
        """Join a request that was stopped and resubmitted with its tokens: its rollout is a prefix of the span.

        Only if another rollout continues from there; the span is then split.
        """
        record = index.find_prefix(self._key(number, begin), query)
        if record is None:
            return None
        whole, start = self._whole(number)
        if not index.knows(prompt_key(whole[begin : start + record.tokens.size])):
            return None
        self._split_span(number, record.tokens.size)
        return claim(record, query, RESUMED)

    def _split_span(self, number: int, size: int) -> None:
        span = self.spans[number]
        rest = Span(span.row, span.start + size, span.end, span.token + size)
        self.spans[number : number + 1] = [replace(span, end=span.start + size), rest]
        self.hits.insert(number + 1, None)
        self._begins.insert(number + 1, -1)
        self._number_spans()
        self._keys = {place: keys for place, keys in self._keys.items() if place[0] != span.row}

    def _find_by_fingerprint(self, row: int, index: RolloutIndex) -> str:
        """Join the rest of a row by fingerprint, after all other rows. Returns the reason as ``_join_row`` does."""
        reason = self.waiting[row]
        missing = False
        for number in self._row_spans[row]:
            if self.hits[number] is None:
                query, (_, start) = self._query(number), self._whole(number)
                self.hits[number] = index.by_fingerprint(query, prompted=start > 0)
                if self.hits[number] is None:
                    missing = True
                    for begin in self._prompt_starts(number, index):
                        reason = nearer(reason, index.near_miss(self._key(number, begin), query))
        return reason if missing else ""

    def _continue(self, number: int) -> bool:
        """Join the span with the previous span's rollout if that continues through the masked gap to its end."""
        span, before = self.spans[number], self.spans[number - 1]
        hit = self.hits[number - 1] if number and before.row == span.row else None
        if hit is None:
            return False
        recorded = hit.record.tokens[hit.offset : hit.offset + span.end - before.start]
        if not np.array_equal(recorded, self._row(span.row)[before.start : span.end]):
            return False
        self.hits[number] = replace(hit, offset=hit.offset + span.start - before.start)
        self._begins[number] = self._begins[number - 1]
        return True

    def _row(self, row: int) -> Ints:
        return self._ids[self._edges[row] : self._edges[row + 1]]

    def _whole(self, number: int) -> tuple[Ints, int]:
        """The span's row after its prompt, and the start of the span in that."""
        span = self.spans[number]
        tokens, _, prompt = self.row_of(span.row)
        return np.concatenate([prompt, tokens]) if prompt.size else tokens, prompt.size + span.start

    def _key(self, number: int, begin: int) -> bytes:
        """Hash of the tokens before the span in its row, from ``begin`` on."""
        span = self.spans[number]
        keys = self._keys.get((span.row, begin))
        if keys is None:
            whole, start = self._whole(number)
            keys = self._keys[span.row, begin] = _Keys(whole, start - span.start, begin)
        return keys.before(span.start)

    def _number_spans(self) -> None:
        self._row_spans.clear()
        for number, span in enumerate(self.spans):
            self._row_spans.setdefault(span.row, []).append(number)


class _Keys:
    """Prompt hashes of a row's spans that share a start; each hash continues the previous one."""

    def __init__(self, whole: Ints, prompt: int, begin: int) -> None:
        self._whole, self._prompt = whole, prompt
        self._hasher = hashlib.blake2b(digest_size=16)
        self._done = begin
        self._hashes: dict[int, bytes] = {}

    def before(self, start: int) -> bytes:
        """Hash of the tokens before position ``start`` of the row; positions must rise from call to call."""
        if start not in self._hashes:
            end = self._prompt + start
            assert end >= self._done
            self._hasher.update(self._whole[self._done : end].tobytes())
            self._hashes[start], self._done = self._hasher.digest(), end
        return self._hashes[start]


def _check_types(arrays: wire.Arrays) -> None:
    for name in _REQUIRED:
        if name not in arrays:
            raise wire.WireError(f"{name}: missing")
    expected = wire.TOKEN_COLUMNS | wire.ROW_COLUMNS
    for name, array in arrays.items():
        if name in expected and array.dtype != wire.DTYPES[expected[name]]:
            raise wire.WireError(f"{name}: {array.dtype}, not {expected[name]}")


def _edges(sizes: NDArray[np.int32], total: int, rows: int, name: str) -> NDArray[np.int64]:
    if sizes.size != rows or (sizes < 0).any() or int(sizes.sum(dtype=np.int64)) != total:
        raise wire.WireError(f"{name}: {total} entries do not fit {sizes.size} sizes of {rows} rows")
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
