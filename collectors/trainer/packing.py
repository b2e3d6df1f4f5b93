"""Converts one ``TrainerCollector.sequences()`` call to messages. On the sender's thread."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract import wire
from rltop.collectors.contract.checked import ArgumentError
from rltop.collectors.trainer.arrays import Copy, short

MESSAGE_BYTES = 1 << 20
"""Target size of a message. A call is split between rows, so a single long row makes a larger message."""

CONVERT_BYTES = 8 << 20
"""Size of the rows that are converted together before they are split into messages. Every numpy operation on more than
a few hundred values releases the GIL; if the trainer computes in Python, each time costs up to 5 ms."""

VERSIONS = frozenset({"rollout_versions", "old_versions"})

Ints = NDArray[np.int64]

Level = Literal["all", "row", "token", "next"]
"""What an array has one value for: all tokens, each row, each token, or each token but the first, of every row or, if
rows are packed, of the whole array."""


@dataclass(frozen=True)
class PackedColumn:
    """A copied array and its level."""

    values: Copy
    level: Level


@dataclass(frozen=True)
class CopiedCall:
    """The copied arguments of one call.

    Attributes:
        head: the message without rows and arrays.
        rows: number of rows.
        sizes: entries per row [rows]; or the copy of cu_seqlens, if they are on a device.
        tokens: sum of the sizes.
        token_ids: [tokens]. mask: per token.
        prompt_ids: concatenated; None if not passed. prompt_sizes: entries per row.
        rewards: per row, or per token and then summed; or None.
        columns: keyed as ``wire.TOKEN_COLUMNS``.
        request_ids, environments: [rows], or None.
        packed: the rows are one array. shifted: the first token of a row has no logprob and is not trained on.
    """

    head: wire.Sequences
    rows: int
    sizes: Copy | Ints
    tokens: int
    token_ids: Copy
    mask: PackedColumn
    prompt_ids: Copy | None
    prompt_sizes: Ints
    rewards: PackedColumn | None
    columns: dict[str, PackedColumn]
    request_ids: list[str] | None = None
    environments: list[str] | None = None
    packed: bool = False
    shifted: bool = False

    @functools.cached_property
    def row_sizes(self) -> Ints:
        """Entries per row [rows]; raises ``ArgumentError`` if cu_seqlens on a device are invalid."""
        return self.sizes if isinstance(self.sizes, np.ndarray) else row_sizes(self.sizes.read(), self.tokens)

    def trained(self, name: str) -> NDArray[Any]:
        """A column's values of all trained tokens, in its own dtype."""
        block = Block(self, 0, self.rows, 0, self.tokens)
        return block.per_token(self.columns[name])[block.mask]


def pack(batch: CopiedCall) -> Iterator[tuple[wire.Sequences, wire.Arrays]]:
    """Yield the messages of one call.

    Raises:
        ArgumentError: cu_seqlens on a device are invalid, or an id does not fit int32.
    """
    sizes = batch.row_sizes
    starts, prompt_starts = _offsets(sizes), _offsets(batch.prompt_sizes)
    weights = 32 + 4 * batch.prompt_sizes + sizes * (5 + 4 * len(batch.columns))
    for names in (batch.request_ids, batch.environments):
        if names:
            weights += np.array([len(name) for name in names])
    for first, last in _blocks(weights, CONVERT_BYTES):
        block = Block(batch, first, last, int(starts[first]), int(starts[last]))
        converted, trained = _rows(batch, block)
        converted |= _prompts(batch, block, prompt_starts) | _columns(batch, block)
        if batch.rewards is not None:
            converted["rewards"] = _floats(block.per_row(batch.rewards))
        offsets = _row_offsets(converted, trained)
        for begin, end in _blocks(weights[first:last], MESSAGE_BYTES):
            arrays = {name: array[offsets[name][begin] : offsets[name][end]] for name, array in converted.items()}
            rows = slice(first + begin, first + end)
            body = msgspec.structs.replace(
                batch.head, rows=end - begin, arrays=wire.describe(arrays),
                request_ids=(batch.request_ids or [])[rows], environments=(batch.environments or [])[rows],
            )  # fmt: skip
            yield body, arrays


def row_sizes(cu_seqlens: NDArray[Any], tokens: int) -> Ints:
    """Row sizes from cumulative sizes.

    Raises:
        ArgumentError: they do not increase from 0 to ``tokens``.
    """
    sizes: Ints = np.diff(cu_seqlens.astype(np.int64))
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (sizes < 0).any():
        raise ArgumentError(
            f"cu_seqlens: {short(cu_seqlens)}; expected to increase from 0 to {tokens}, the number of tokens"
        )
    return sizes


class Block:
    """Rows ``first`` to ``last`` of a call: tokens ``start`` to ``stop``, and the mask of the trained ones."""

    def __init__(self, batch: CopiedCall, first: int, last: int, start: int, stop: int) -> None:
        self.first, self.last, self.start, self.stop = first, last, start, stop
        self.sizes = batch.row_sizes[first:last]
        self._batch = batch
        self.mask: NDArray[np.bool_] = self.per_token(batch.mask) != 0
        if batch.shifted:
            self.mask &= ~self._begins

    def per_token(self, column: PackedColumn) -> NDArray[Any]:
        """One value per token of the block. The first tokens of shifted rows get any value: they are not trained on."""
        values = column.values
        if column.level == "token":
            return values.read(self.start, self.stop)
        if column.level == "row":
            return np.repeat(values.read(self.first, self.last), self.sizes)
        if column.level == "all":
            return np.repeat(values.read(), self.stop - self.start)
        if self._batch.packed:
            before = values.read(max(self.start - 1, 0), max(self.stop - 1, 0))
            return np.concatenate([np.zeros(self.stop - self.start - before.size, before.dtype), before])
        return self._spread(values)

    def per_row(self, column: PackedColumn) -> NDArray[Any]:
        """One value per row of the block; values per token are summed."""
        if column.level == "row":
            return column.values.read(self.first, self.last)
        values = self.per_token(column).astype(np.float64)
        if column.level == "next":
            values[self._begins] = 0
        return np.bincount(np.repeat(np.arange(self.sizes.size), self.sizes), values, self.sizes.size)

    @functools.cached_property
    def _begins(self) -> NDArray[np.bool_]:
        """Whether each token is the first of its row [tokens]."""
        begins = np.zeros(self.stop - self.start, bool)
        begins[_offsets(self.sizes)[:-1][self.sizes > 0]] = True
        return begins

    def _spread(self, values: Copy) -> NDArray[Any]:
        """Values of all tokens but the rows' first ones, at their tokens."""
        start = self.start - int(np.count_nonzero(self._batch.row_sizes[: self.first]))
        found = values.read(start, start + int(np.count_nonzero(~self._begins)))
        spread = np.zeros(self._begins.size, found.dtype)
        spread[~self._begins] = found
        return spread


def _blocks(weights: Ints, limit: int) -> Iterator[tuple[int, int]]:
    """Yield row ranges of at most ``limit`` bytes, or of one row."""
    ends = np.cumsum(weights)
    first, base = 0, 0
    while first < len(weights):
        last = max(int(np.searchsorted(ends, base + limit, side="right")), first + 1)
        yield first, last
        first, base = last, int(ends[last - 1])


def _rows(batch: CopiedCall, block: Block) -> tuple[wire.Arrays, Ints]:
    """Ids and mask of the rows, each cut after its last trained token; and the number of trained tokens per row."""
    trained = np.flatnonzero(block.mask)
    edges = _offsets(block.sizes)
    ends = np.searchsorted(trained, edges)
    last = np.append(trained, 0)[ends[1:] - 1]  # per row; unused for rows without a trained token
    count = np.diff(ends)
    cut = np.where(count > 0, last - edges[:-1] + 1, 0)
    keep = np.repeat(np.tile([True, False], cut.size), np.stack([cut, block.sizes - cut], axis=1).ravel())
    ids = batch.token_ids.read(block.start, block.stop)
    arrays: wire.Arrays = {
        "row_sizes": _ints("row_sizes", cut),
        "row_ids": _ints("token_ids", ids[keep]),
        "row_mask": block.mask[keep].view("u1"),
    }
    return arrays, count


def _row_offsets(arrays: wire.Arrays, trained: Ints) -> dict[str, Ints]:
    """Offsets of the block's rows in every array: [rows + 1]."""
    rows = np.arange(trained.size + 1)
    offsets = dict.fromkeys(arrays, _offsets(trained)) | dict.fromkeys(("row_sizes", "prompt_sizes", "rewards"), rows)
    offsets |= dict.fromkeys(("row_ids", "row_mask"), _offsets(arrays["row_sizes"].astype(np.int64)))
    if "prompt_sizes" in arrays:
        offsets["prompt_ids"] = _offsets(arrays["prompt_sizes"].astype(np.int64))
    return offsets


def _prompts(batch: CopiedCall, block: Block, starts: Ints) -> wire.Arrays:
    if batch.prompt_ids is None:
        return {}
    ids = batch.prompt_ids.read(int(starts[block.first]), int(starts[block.last]))
    sizes = batch.prompt_sizes[block.first : block.last]
    return {"prompt_sizes": _ints("prompt_sizes", sizes), "prompt_ids": _ints("prompt_ids", ids)}


def _columns(batch: CopiedCall, block: Block) -> wire.Arrays:
    arrays: wire.Arrays = {}
    for name, column in batch.columns.items():
        values = block.per_token(column)[block.mask]
        if wire.TOKEN_COLUMNS[name] == "f4":
            arrays[name] = _floats(values)
        elif name in VERSIONS:
            arrays[name] = _versions(name, values)
        else:
            arrays[name] = (values != 0).astype("u1")
    return arrays


def _offsets(sizes: Ints) -> Ints:
    """Start of each row, and the end of the last: [rows + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # values beyond float32 become inf, which the hub counts
        return np.ascontiguousarray(values, "<f4")


def _versions(name: str, values: NDArray[Any]) -> NDArray[np.int32]:
    if values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values, wire.UNKNOWN_VERSION)
    return _ints(name, np.where(values < 0, wire.UNKNOWN_VERSION, values))


def _ints(name: str, values: NDArray[Any]) -> NDArray[np.int32]:
    limits = np.iinfo(np.int32)
    if values.size and (float(values.min()) < limits.min or float(values.max()) > limits.max):  # float16 has no int32
        raise ArgumentError(f"{name}: values from {values.min()} to {values.max()}; the wire carries int32")
    return np.ascontiguousarray(values, "<i4")
