"""One message of trainer rows: checked, cut into spans, and joined with the engines' rollouts. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join import NO_PROMPT, Hit, Index, Ints
from rltop.collectors import wire

_SPAN_BYTES = 1000  # rough cost of a span's objects beside the arrays

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
        spans: in row order. hits: per span, its rollout or None.
        waiting: rows not yet joined, with the reason so far.
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
        self.token_rows = np.repeat(np.arange(self.rows), np.diff(before[self._edges]))
        self.spans = list(self._cut(mask, before))
        self.hits: list[Hit | None] = [None] * len(self.spans)
        self._row_spans: dict[int, list[int]] = {}
        for number, span in enumerate(self.spans):
            self._row_spans.setdefault(span.row, []).append(number)
        self._keys: dict[tuple[int, int], list[bytes]] = {}
        self._skips: dict[int, int] = {}
        self.waiting: dict[int, str] = dict.fromkeys(self._row_spans, "")
        held = [*arrays.values(), self.token_rows]
        self.nbytes = sum(array.nbytes for array in held) + len(self.spans) * _SPAN_BYTES
        self._generation = -1

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

    def join(self, index: Index, *, surely: bool) -> bool:
        """Look for the rollouts of the rows that wait. Returns whether none waits any more.

        ``surely`` takes only what cannot be mistaken (see ``Index.find``). A repeated sure look with no new rollouts
        costs nothing.
        """
        if self.waiting and not (surely and self._generation == index.generation):
            self._generation = index.generation
            for row in list(self.waiting):
                reason = self._join_row(row, index, surely)
                if reason:
                    self.waiting[row] = reason
                else:
                    del self.waiting[row]
        return not self.waiting

    def _join_row(self, row: int, index: Index, surely: bool) -> str:
        """Why the row does not join yet; empty if it does.

        A prompt that starts with a repeated token looks like a padded shorter one, and the shorter one's rollout may
        be known first. So a row is read as it stands and without each padding that a known prompt shows, every time
        anew, until one reading finds a rollout; it is then read so for good.
        """
        found = ""
        for skip in self._readings(row, index):
            reason = self._join_as(row, skip, index, surely)
            if any(self.hits[number] is not None for number in self._row_spans[row]):
                self._skips[row] = skip
                return reason
            found = found if found and reason == NO_PROMPT else reason
        return found

    def _readings(self, row: int, index: Index) -> list[int]:
        """How many leading tokens of the row may be padding, in order of trial."""
        if row in self._skips:
            return [self._skips[row]]
        return [0, *index.paddings(self._prefix(row))]

    def _join_as(self, row: int, skip: int, index: Index, surely: bool) -> str:
        """Join the row without its first ``skip`` tokens; where there are some, only where the logprobs agree."""
        tokens = self._ids[self._edges[row] : self._edges[row + 1]]
        logprobs = self.arrays["rollout_logprobs"]
        use = (self.body.step, self.body.update)
        reason = ""
        for number, key in zip(self._row_spans[row], self._hashes(row, skip), strict=True):
            if self.hits[number] is not None:
                continue
            span = self.spans[number]
            hit = self._continued(number, tokens)
            if hit is None:
                recorded = logprobs[span.token : span.token + span.end - span.start]
                found = index.find(
                    key, tokens[span.start : span.end], recorded, use,
                    same_length=surely, same_logprobs=surely or skip > 0,
                )  # fmt: skip
                if isinstance(found, str):
                    reason = reason or found
                    continue
                hit = Hit(found, 0)
            self.hits[number] = hit
        return reason

    def _continued(self, number: int, tokens: Ints) -> Hit | None:
        """The previous span's rollout, if it goes on through the gap (a token masked out) and all of this span."""
        span, before = self.spans[number], self.spans[number - 1]
        hit = self.hits[number - 1] if number and before.row == span.row else None
        if hit is None:
            return None
        recorded = hit.record.tokens[hit.offset : hit.offset + span.end - before.start]
        if not np.array_equal(recorded, tokens[before.start : span.end]):
            return None
        return Hit(hit.record, hit.offset + span.start - before.start)

    def _whole(self, row: int) -> tuple[Ints, int]:
        """Prompt and row in one, and the size of the prompt."""
        tokens = self._ids[self._edges[row] : self._edges[row + 1]]
        if self._prompts is None:
            return tokens, 0
        prompt = self._prompts[self._prompt_edges[row] : self._prompt_edges[row + 1]]
        return np.concatenate([prompt, tokens]), prompt.size

    def _prefix(self, row: int) -> Ints:
        whole, prompt = self._whole(row)
        return whole[: prompt + self.spans[self._row_spans[row][0]].start]

    def _hashes(self, row: int, skip: int) -> list[bytes]:
        """The prompt hash of each span of the row without its first ``skip`` tokens."""
        if keys := self._keys.get((row, skip)):
            return keys
        whole, prompt = self._whole(row)
        hasher = hashlib.blake2b(digest_size=16)
        keys, done = [], skip
        for number in self._row_spans[row]:
            start = prompt + self.spans[number].start
            hasher.update(whole[done:start].tobytes())
            keys.append(hasher.copy().digest())
            done = start
        self._keys[row, skip] = keys
        return keys


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
