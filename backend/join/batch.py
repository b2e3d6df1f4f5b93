"""One message of trainer rows: checked, cut into spans, and joined with the engines' rollouts. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.index import RolloutIndex, claim
from rltop.backend.join.reasons import NO_COMPLETION, PACKED, PADDED, RESUMED, TRUNCATED, WHOLE, nearer, odder
from rltop.backend.join.records import Hit, Ints, RowQuery, prompt_key
from rltop.collectors.contract import wire

_SPAN_BYTES = 1000  # rough cost of a span's objects beside the arrays

PATIENT_LOOKS = 8
"""For every so many looks in vain, the next is put off for one call more."""

_REQUIRED = ("row_ids", "row_mask", "row_sizes", "rollout_logprobs", "trainer_logprobs")


@dataclass(frozen=True, slots=True)
class Span:
    """A maximal run of trained tokens: ``[start, end)`` in its row, from ``token`` on in the per-token arrays."""

    row: int
    start: int
    end: int
    token: int


class Batch:
    """The rows of one ``wire.Sequences``, and what is known of the rollouts they came from.

    Attributes:
        body, arrays: the message.
        rows, tokens: how many rows and trained tokens.
        token_rows: row of each trained token [tokens].
        spans: in row order; one that several requests wrote is cut in two when their rollouts are found.
        hits: per span, its rollout or None.
        waiting: rows not yet joined, with the reason so far.
        first: how many rows its rank had sent of the step before; set by whoever knows.
        nbytes: what all this holds, roughly.

    Raises:
        WireError: arrays missing, of other types, or of sizes that do not fit each other.
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
        if len(body.request_ids) not in (0, self.rows):
            raise wire.WireError(f"request_ids: {len(body.request_ids)} entries for {self.rows} rows")
        self.token_rows = np.repeat(np.arange(self.rows), np.diff(before[self._edges]))
        self.spans = list(self._cut(mask, before))
        self.hits: list[Hit | None] = [None] * len(self.spans)
        self._row_spans: dict[int, list[int]] = {}
        self._number_spans()
        self._begins: list[int] = [-1] * len(self.spans)  # per joined span: where its prompt starts in the whole row
        self._keys: dict[tuple[int, int], _Keys] = {}
        self.waiting: dict[int, str] = dict.fromkeys(self._row_spans, "")
        held = [*arrays.values(), self.token_rows]
        self.nbytes = sum(array.nbytes for array in held) + len(self.spans) * _SPAN_BYTES
        self._generation = -1
        self._looks = self._put_off = 0
        self.first = 0

    def _cut(self, mask: NDArray[np.bool_], before: NDArray[np.int64]) -> Iterator[Span]:
        first = np.zeros(mask.size + 1, bool)
        first[self._edges] = True  # a row's first position; the end counts too
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
    def joined(self) -> int:
        """Rows that have all their rollouts."""
        return len(self._row_spans) - len(self.waiting)

    @property
    def joinable(self) -> int:
        """Rows with a trained token."""
        return len(self._row_spans)

    def is_joined(self, row: int) -> bool:
        """Whether the row has all its rollouts."""
        return row in self._row_spans and row not in self.waiting

    def unjoined(self) -> Counter[str]:
        """The rows that are waiting, by reason."""
        return Counter(self.waiting.values())

    def row_of(self, row: int) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """Ids and mask of a row [n], and the prompt that goes before it, where the trainer passed that apart."""
        prompt = self._ids[:0]
        if self._prompts is not None:
            prompt = self._prompts[self._prompt_edges[row] : self._prompt_edges[row + 1]]
        return self._row(row), self.arrays["row_mask"][self._edges[row] : self._edges[row + 1]] != 0, prompt

    def hits_of(self, row: int) -> list[tuple[Span, Hit | None]]:
        """The row's spans with their rollouts."""
        return [(self.spans[number], self.hits[number]) for number in self._row_spans.get(row, ())]

    def ways(self) -> Counter[str]:
        """How the joined rows were found: the oddest way of each row's spans."""
        rows: dict[int, str] = {}
        for number, (span, hit) in enumerate(zip(self.spans, self.hits, strict=True)):
            if hit is not None and span.row not in self.waiting:
                way = odder(hit.way, TRUNCATED) if self.is_cut(number) else hit.way
                rows[span.row] = odder(rows.get(span.row, ""), way)
        return Counter(rows.values())

    def reused(self) -> int:
        """Joined rows that an earlier step has trained on too."""
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

    def join(self, index: RolloutIndex, *, surely: bool) -> bool:
        """Look for the rollouts of the rows that wait. Returns whether none waits any more.

        ``surely`` takes only what cannot be mistaken (see ``RolloutIndex.find``). A repeated sure look costs nothing where no
        rollouts have come, and is put off ever longer, so that rows whose rollouts never come cost little.
        """
        if surely:
            self._put_off -= 1
            if self._generation == index.generation or self._put_off > 0:
                return not self.waiting
            self._generation = index.generation
            self._looks += 1
            self._put_off = self._looks // PATIENT_LOOKS
        self._look(index, surely=True)
        if not surely:
            self._look(index, surely=False)
            for row in list(self.waiting):
                self._settle_row(row, self._last_look(row, index))
        return not self.waiting

    def _look(self, index: RolloutIndex, *, surely: bool) -> None:
        for row in list(self.waiting):
            self._settle_row(row, self._join_row(row, index, surely))

    def _settle_row(self, row: int, reason: str) -> None:
        if reason:
            self.waiting[row] = reason
        else:
            del self.waiting[row]

    def _join_row(self, row: int, index: RolloutIndex, surely: bool) -> str:
        """Why the row does not join yet, the nearest miss of its spans; empty if it does."""
        reason, at = "", 0
        while at < len(self._row_spans[row]):  # a span that is cut in two makes them more
            number = self._row_spans[row][at]
            if self.hits[number] is None:
                reason = nearer(reason, self._join_span(number, index, surely))
            at += 1
        return reason

    def _join_span(self, number: int, index: RolloutIndex, surely: bool) -> str:
        """Why the span does not join; empty if it does.

        What stands before a span in its row is its prompt, or has padding or other sequences before that: a known
        prompt shows where it starts. One that starts with a repeated token looks like a padded shorter one, and the
        shorter one's rollout may be known first, so every reading is tried each time, the plainest first.
        """
        if self._continue(number):
            return ""
        asked = self._asked(number)
        reason = ""
        for begin in self._readings(number, index):
            part = begin > self._plain(number)
            key = self._key(number, begin)
            found = index.find(key, asked, surely=surely, in_part=part)
            if isinstance(found, str) and found == NO_COMPLETION:
                found = self._resume(number, begin, index, asked) or found
            if not isinstance(found, str):
                self.hits[number] = replace(found, way=odder(found.way, self._way(number, begin)))
                self._begins[number] = begin
                return ""
            reason = nearer(reason, found)
        return reason

    def _plain(self, number: int) -> int:
        """Where the span's prompt starts in the whole row, if nothing stands before: as with the span before it."""
        row = self.spans[number].row
        joined = [n for n in self._row_spans[row] if n < number and self._begins[n] >= 0]
        return self._begins[joined[-1]] if joined else 0

    def _readings(self, number: int, index: RolloutIndex) -> Iterator[int]:
        """Where the span's prompt may start, in order of trial."""
        plain = self._plain(number)
        yield plain
        whole, start = self._whole(number)
        span, before = self.spans[number], self.spans[number - 1]
        first = number == 0 or before.row != span.row
        gap = plain + 1 if first else start - (span.start - before.end)
        for place in index.prompts_at_end(whole[gap:start]):
            yield gap + place

    def _way(self, number: int, begin: int) -> str:
        if begin == self._plain(number):
            return WHOLE
        return PADDED if number == self._row_spans[self.spans[number].row][0] else PACKED

    def _asked(self, number: int) -> RowQuery:
        span = self.spans[number]
        ids = self.body.request_ids
        return RowQuery(
            self._row(span.row)[span.start : span.end],
            self.arrays["rollout_logprobs"][span.token : span.token + span.end - span.start],
            (self.body.step, self.body.update),
            ids[span.row] if ids else "",
        )

    def _resume(self, number: int, begin: int, index: RolloutIndex, asked: RowQuery) -> Hit | None:
        """A request that was stopped, and sent again with what it had: its rollout is the beginning of the span.

        Only if a rollout goes on from there; the span is then cut in two.
        """
        record = index.beginning(self._key(number, begin), asked)
        if record is None:
            return None
        whole, start = self._whole(number)
        if not index.knows(prompt_key(whole[begin : start + record.tokens.size])):
            return None
        self._cut_span(number, record.tokens.size)
        return claim(record, asked, RESUMED)

    def _cut_span(self, number: int, size: int) -> None:
        span = self.spans[number]
        rest = Span(span.row, span.start + size, span.end, span.token + size)
        self.spans[number : number + 1] = [replace(span, end=span.start + size), rest]
        self.hits.insert(number + 1, None)
        self._begins.insert(number + 1, -1)
        self._number_spans()
        self._keys = {place: keys for place, keys in self._keys.items() if place[0] != span.row}

    def _last_look(self, row: int, index: RolloutIndex) -> str:
        """What else is to be found, or said, once all other rows have theirs."""
        reason = self.waiting[row]
        missing = False
        for number in self._row_spans[row]:
            if self.hits[number] is None:
                asked = self._asked(number)
                self.hits[number] = index.by_fingerprint(asked)
                if self.hits[number] is None:
                    missing = True
                    for begin in self._readings(number, index):
                        reason = nearer(reason, index.near_miss(self._key(number, begin), asked))
        return reason if missing else ""

    def _continue(self, number: int) -> bool:
        """Give the span the previous one's rollout, if that goes on through the gap (tokens masked out) to its end."""
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
        """The span's row with its prompt before it, and where the span starts in that."""
        span = self.spans[number]
        tokens, _, prompt = self.row_of(span.row)
        return np.concatenate([prompt, tokens]) if prompt.size else tokens, prompt.size + span.start

    def _key(self, number: int, begin: int) -> bytes:
        """The hash of what stands before the span in its row, from ``begin`` on."""
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
    """Prompt hashes of a row's spans, all read from one beginning; each goes on from the one before."""

    def __init__(self, whole: Ints, prompt: int, begin: int) -> None:
        self._whole, self._prompt = whole, prompt
        self._hasher = hashlib.blake2b(digest_size=16)
        self._done = begin
        self._made: dict[int, bytes] = {}

    def before(self, start: int) -> bytes:
        """Of the tokens before position ``start`` of the row; positions are asked for in rising order."""
        if start not in self._made:
            end = self._prompt + start
            assert end >= self._done
            self._hasher.update(self._whole[self._done : end].tobytes())
            self._made[start], self._done = self._hasher.digest(), end
        return self._made[start]


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
