"""Sketches of weights: small sums over some columns of every tensor, comparable between engines and a trainer.

A tensor is a list of rows along its last axis, as in ``digests``. Of the first ``COLUMNS`` columns, over all rows, a
sketch has: a 64-bit hash of the values, the sum of each column, and the sum of squares. All add up over tensors that
are concatenated along their first axis and over ranks that split them by rows; rows of zeros add nothing. So a fused
tensor compares with its parts. The hash tells whether values are equal; the sums tell how they differ: by a factor, by
rounding, by an update. Values are hashed as float32, a trainer's also as rounded to bfloat16 and float16. 16 bytes of
a row are one sector of memory on most devices, so reading costs little of what a pass over all weights does.

Pure; nothing here waits for a device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from rltop.collectors.contract.digests import as_hex, column_multipliers, mix

COLUMNS = 8
"""Columns of each tensor that are read."""

MAX_TENSORS = 8192
"""Tensors of a model that are sketched; of a model with more, evenly spaced ones."""

ROUNDED = ("float32", "bfloat16", "float16")
"""Types that a trainer's values are rounded to before they are hashed, in the order of ``hashes``."""

CHUNK_ROWS = 1 << 16
"""Rows of small tensors that are computed together: some 20 MB in addition to the weights."""

_SUMS = COLUMNS + 2
"""Numbers of one tensor: its columns' sums, the sum of squares, and how many values are not finite."""


class TensorSketch(NamedTuple):
    """The sketch of one tensor, or of one rank's part of it.

    Attributes:
        name: of the tensor.
        dtype: of its elements.
        rows: number of rows.
        hashes: of its values as they are (engine), or rounded to each of ``ROUNDED`` (trainer); 16 hex digits.
        square: sum of squares. sums: of each column. bad: number of values that are not finite.
        rank: of the engine.
    """

    name: str
    dtype: str
    rows: int
    hashes: list[str]
    square: float
    sums: list[float]
    bad: int
    rank: int = 0


class UnreadSketch(NamedTuple):
    """Sketches whose numbers may not be there yet: ``hashes`` int64 [n, kinds] and ``sums`` float64 [n, _SUMS]."""

    names: list[tuple[str, str, int]]
    hashes: Any
    sums: Any

    def read(self, rank: int = 0) -> list[TensorSketch]:
        """The sketches, from two arrays on the CPU."""
        return [
            TensorSketch(
                name, dtype, rows, [as_hex(int(value)) for value in hashes], *_numbers([float(v) for v in sums]), rank
            )
            for (name, dtype, rows), hashes, sums in zip(
                self.names, self.hashes.tolist(), self.sums.tolist(), strict=True
            )
        ]


def sketch(tensors: Iterable[tuple[str, Any]], *, rounded: bool = False) -> UnreadSketch | None:
    """Sketch torch tensors on their device, without waiting for it; None if there is none that can be read.

    Args:
        tensors: names and tensors; those that are empty, sparse or complex are left out.
        rounded: hash the values rounded to each of ``ROUNDED``, as a trainer does.
    """
    torch = sys.modules["torch"]
    found = spaced(tensors)
    if not found:
        return None
    with torch.no_grad():
        blocks = [columns_of(tensor) for _, tensor in found]
        device = blocks[0].device
        numbers = [_numbers_of(torch, chunk, rounded) for chunk in _chunks(blocks)]
        hashes, sums = (
            torch.cat([one.to(device, non_blocking=True) for one in each]) for each in zip(*numbers, strict=True)
        )
    names = [
        (name, str(tensor.dtype).removeprefix("torch."), int(block.shape[0]))
        for (name, tensor), block in zip(found, blocks, strict=True)
    ]
    return UnreadSketch(names, hashes, sums)


def _chunks(blocks: list[Any]) -> Iterator[list[Any]]:
    """The blocks in chunks of one device and about ``CHUNK_ROWS`` rows, which are computed together."""
    chunk: list[Any] = []
    for block in blocks:
        full = sum(int(one.shape[0]) for one in chunk) + int(block.shape[0]) > CHUNK_ROWS
        if chunk and (full or block.device != chunk[0].device):
            yield chunk
            chunk = []
        chunk.append(block)
    yield chunk


def _numbers_of(torch: Any, chunk: list[Any], rounded: bool) -> tuple[Any, Any]:
    """Hashes int64 [n, kinds] and sums float64 [n, _SUMS] of the blocks of a chunk."""
    sizes = [int(block.shape[0]) for block in chunk]
    rows = torch.cat([torch.nn.functional.pad(block, (0, COLUMNS - block.shape[1])) for block in chunk])
    kinds = [getattr(torch, kind) for kind in ROUNDED] if rounded else [torch.float32]
    hashes = torch.stack([_row_hashes(rows if k is torch.float32 else rows.to(k).float()) for k in kinds], 1)
    finite = torch.isfinite(rows)
    values = torch.where(finite, rows, 0).double()
    square, bad = (values * values).sum(1, keepdim=True), (~finite).sum(1, keepdim=True).double()
    each = torch.cat([values, square, bad], 1)
    return tuple(torch.stack([part.sum(0) for part in of_rows.split(sizes)]) for of_rows in (hashes, each))


def _row_hashes(rows: Any) -> Any:
    torch = sys.modules["torch"]
    bits = rows.contiguous().view(torch.int32).to(torch.int64)
    mixed = mix(torch.where(rows == 0, 0, bits))
    return (mixed * column_multipliers(COLUMNS, rows.device)).sum(1)


def is_sketchable(tensor: Any) -> bool:
    """Whether a tensor has elements in memory, each a number, and is no part of a distributed one."""
    if hasattr(tensor, "placements") or tensor.is_sparse or tensor.is_meta or tensor.is_complex():
        return False
    return bool(tensor.numel())


def spaced(tensors: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The tensors that can be sketched, evenly spaced if there are more than ``MAX_TENSORS``."""
    found = [(name, tensor.detach()) for name, tensor in tensors if is_sketchable(tensor)]
    step = -(-len(found) // MAX_TENSORS)
    return found[::step] if step else found


def columns_of(tensor: Any) -> Any:
    """The first columns of a tensor, float32 [rows, at most ``COLUMNS``]."""
    flat = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(-1, 1)
    return flat[:, :COLUMNS].float()


def _numbers(sums: list[float]) -> tuple[float, list[float], int]:
    return sums[COLUMNS], sums[:COLUMNS], int(sums[COLUMNS + 1])
