"""Checksums of weights that engines and a trainer can compare, however each has cut, fused or padded its tensors. Pure.

A tensor is rows of its last axis; one of a single axis is rows of one element. With v the bits of an element as a
signed integer (-0.0 as 0), ``mix`` a bijection of 64-bit integers with mix(0) = 0, and m odd multipliers by position,
all mod 2**64:

    r_i   = mix(sum_j mix(v_ij) m_j)
    c_j = mix(sum_i mix(v_ij) m_i)
    rows    = sum_i r_i          # of tensors concatenated along their first axis, the sum; rows of zeros add nothing
    columns = sum_j c_j          # the same along the last axis
    whole   = sum_i r_i m_i      # depends on the order of rows too

``whole`` compares replicas. ``rows`` compares with a trainer whose q, k and v are three tensors where the engine has
one, whose vocabulary is not padded, and whose tensors the engine's ranks cut by rows; ``columns`` where they cut them
by columns. Integers are summed, so devices and chunks do not matter. This finds accidents;
it is no cryptographic hash.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_ELEMENTS, DEVICE_ELEMENTS = 1 << 16, 1 << 22
"""Elements that are read at once: on a CPU what its caches hold, on a device what makes launches worth while (some
100 MiB beside the weights)."""

_ONE, _TWO, _POSITION = -7046029254386353131, -4658895280553007687, -7723592293110705685  # odd; of splitmix64
_FULL = 1 << 64

Bits = Any
"""int64, of numpy or torch."""


@dataclass
class Checksum:
    """All checksums of one tensor, from its rows or its columns in any chunks. Not both ways at once."""

    rows: int = 0
    columns: int = 0
    whole: int = 0
    _rows: Any = field(default=None, compare=False)
    _columns: Any = field(default=None, compare=False)

    def add_rows(self, first: int, bits: Bits) -> None:
        """Rows [n, width] from row ``first`` on; ``end`` after the last."""
        mixed = _mix(bits)
        self._take(first, (mixed * _multipliers(0, bits.shape[1], bits)).sum(1))
        part = (mixed * _multipliers(first, bits.shape[0], bits)[:, None]).sum(0)
        self._columns = part if self._columns is None else self._columns + part

    def add_columns(self, first: int, bits: Bits) -> None:
        """Columns [all rows, n] from column ``first`` on; ``end`` after the last."""
        mixed = _mix(bits)
        part = (mixed * _multipliers(first, bits.shape[1], bits)).sum(1)
        self._rows = part if self._rows is None else self._rows + part
        self._take_columns((mixed * _multipliers(0, bits.shape[0], bits)[:, None]).sum(0))

    def end(self) -> None:
        """All rows or columns were added."""
        if self._rows is not None:
            self._take(0, self._rows)
        if self._columns is not None:
            self._take_columns(self._columns)
        self._rows = self._columns = None

    def _take(self, first: int, sums: Bits) -> None:
        mixed = _mix(sums)
        self.rows = (self.rows + int(mixed.sum())) % _FULL
        self.whole = (self.whole + int((mixed * _multipliers(first, sums.shape[0], sums)).sum())) % _FULL

    def _take_columns(self, sums: Bits) -> None:
        self.columns = (self.columns + int(_mix(sums).sum())) % _FULL


def hexed(value: int) -> str:
    """16 hex digits."""
    return f"{value % _FULL:016x}"


def dtype_name(tensor: Any) -> str:
    """``float32``, of numpy or torch."""
    return str(tensor.dtype).removeprefix("torch.")


def chunk_elements(tensor: Any) -> int:
    """How many elements to read at once, where this tensor is."""
    on_cpu = isinstance(tensor, np.ndarray) or tensor.device.type == "cpu"
    return CHUNK_ELEMENTS if on_cpu else DEVICE_ELEMENTS


def row_chunks(tensor: Any, dtype: Any = None) -> Iterator[tuple[int, Bits]]:
    """The tensor's rows as bits, some at a time, with the number of the first; cast to ``dtype`` before if given."""
    flat = tensor.reshape(-1, tensor.shape[-1]) if len(tensor.shape) > 1 else tensor.reshape(-1, 1)
    step = max(chunk_elements(tensor) // max(int(flat.shape[1]), 1), 1)
    for first in range(0, int(flat.shape[0]), step):
        yield first, bits_of(_cast(flat[first : first + step], dtype))


def bits_of(chunk: Any) -> Bits:
    """Elements as signed integers of their own width, widened to int64; -0.0 as 0."""
    if isinstance(chunk, np.ndarray):
        bits = np.ascontiguousarray(chunk).view(f"i{chunk.dtype.itemsize}").astype(np.int64)
        return np.where(chunk == 0, 0, bits) if chunk.dtype.kind == "f" else bits
    torch = sys.modules["torch"]
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = chunk.contiguous().view(kinds[chunk.element_size()]).to(torch.int64)
    wide = chunk.is_floating_point() and chunk.element_size() > 1  # of a single byte not every backend compares
    return torch.where(chunk == 0, 0, bits) if wide else bits


def checksum(tensor: Any, dtype: Any = None) -> Checksum:
    """Of a whole tensor, numpy or torch on any device."""
    found = Checksum()
    for first, bits in row_chunks(tensor, dtype):
        found.add_rows(first, bits)
    found.end()
    return found


def weight_digests(weights: Mapping[str, Any] | Iterable[tuple[str, Any]], dtype: Any = None) -> dict[str, str]:
    """What ``TrainerCollector.step(weight_digests=...)`` takes, of a trainer's named tensors.

    One pass over the weights on their own device; call it when it is worth that, not in every step.

    Args:
        weights: ``model.state_dict()`` or ``model.named_parameters()``, under the names of the checkpoint, whole (not
            one rank's shard).
        dtype: of the weights as engines get them; None: as they are here.
    """
    found = {}
    for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
        tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
        sample = _cast(tensor.reshape(-1)[:1], dtype)
        sums = checksum(tensor, dtype)
        found[name] = f"{dtype_name(sample)}:{hexed(sums.rows)}:{hexed(sums.columns)}"
    return found


def _cast(chunk: Any, dtype: Any) -> Any:
    if dtype is None:
        return chunk
    return chunk.astype(dtype) if isinstance(chunk, np.ndarray) else chunk.to(dtype)


def _mix(bits: Bits) -> Bits:
    bits = bits * _ONE
    bits = (bits ^ (bits >> 31)) * _TWO
    return bits ^ (bits >> 29)


def _multipliers(first: int, size: int, like: Bits) -> Bits:
    """Odd numbers that belong to the positions ``first`` to ``first + size``."""
    places: NDArray[np.int64] = np.arange(first + 1, first + 1 + size, dtype=np.int64)
    odd = _mix(places * _POSITION) | 1
    return odd if isinstance(like, np.ndarray) else sys.modules["torch"].from_numpy(odd).to(like.device)
