"""Checksums of weights that are comparable between engines and a trainer, however each splits, fuses or pads tensors.

A tensor is a list of rows along its last axis; a 1-D tensor has rows of one element. Let v_ij be the bits of an element
as a signed integer (-0.0 as 0), ``mix`` a bijection of 64-bit integers with mix(0) = 0, and m_k the odd multiplier of
position k; all arithmetic is mod 2**64:

    r_i     = mix(sum_j mix(v_ij) m_j)
    c_j     = mix(sum_i mix(v_ij) m_i)
    rows    = sum_i r_i          # additive over tensors concatenated along their first axis; rows of zeros add 0
    columns = sum_j c_j          # additive over tensors concatenated along their last axis
    whole   = sum_i r_i m_i      # depends on the order of rows too

``whole`` compares replicas. ``rows`` compares with a trainer that has three tensors q, k and v instead of a fused one,
does not pad the vocabulary, and whose tensors the engine's ranks split by rows; ``columns`` if they split them by
columns. Sums of integers do not depend on device or chunking. The checksums detect accidents; they are not a
cryptographic hash. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_ELEMENTS, DEVICE_ELEMENTS = 1 << 16, 1 << 22
"""Elements read at a time: on a CPU they fit its caches; on a device they keep kernel launches cheap (about 100 MiB in
addition to the weights)."""

_ONE, _TWO, _POSITION = -7046029254386353131, -4658895280553007687, -7723592293110705685  # odd; of splitmix64
_FULL = 1 << 64

Bits = Any
"""An int64 array of numpy or torch."""


@dataclass
class Checksum:
    """All checksums of one tensor, computed from chunks of its rows or of its columns, but not of both."""

    rows: int = 0
    columns: int = 0
    whole: int = 0
    _rows: Any = field(default=None, compare=False)
    _columns: Any = field(default=None, compare=False)

    def add_rows(self, first: int, bits: Bits) -> None:
        """Add rows [n, width], which start at row ``first``. Call ``end`` after the last."""
        mixed = mix(bits)
        self._finish_rows(first, (mixed * _multipliers(0, bits.shape[1], bits)).sum(1))
        part = (mixed * _multipliers(first, bits.shape[0], bits)[:, None]).sum(0)
        self._columns = part if self._columns is None else self._columns + part

    def add_columns(self, first: int, bits: Bits) -> None:
        """Add columns [all rows, n], which start at column ``first``. Call ``end`` after the last."""
        mixed = mix(bits)
        part = (mixed * _multipliers(first, bits.shape[1], bits)).sum(1)
        self._rows = part if self._rows is None else self._rows + part
        self._finish_columns((mixed * _multipliers(0, bits.shape[0], bits)[:, None]).sum(0))

    def end(self) -> None:
        """Finish the checksums after all rows or columns were added."""
        if self._rows is not None:
            self._finish_rows(0, self._rows)
        if self._columns is not None:
            self._finish_columns(self._columns)
        self._rows = self._columns = None

    def _finish_rows(self, first: int, sums: Bits) -> None:
        mixed = mix(sums)
        self.rows = (self.rows + int(mixed.sum())) % _FULL
        self.whole = (self.whole + int((mixed * _multipliers(first, sums.shape[0], sums)).sum())) % _FULL

    def _finish_columns(self, sums: Bits) -> None:
        self.columns = (self.columns + int(mix(sums).sum())) % _FULL


def as_hex(value: int) -> str:
    """The value as 16 hex digits."""
    return f"{value % _FULL:016x}"


def dtype_name(tensor: Any) -> str:
    """Name of a numpy or torch dtype, such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def chunk_elements(tensor: Any) -> int:
    """How many elements to read at a time on this tensor's device."""
    on_cpu = isinstance(tensor, np.ndarray) or tensor.device.type == "cpu"
    return CHUNK_ELEMENTS if on_cpu else DEVICE_ELEMENTS


def row_chunks(tensor: Any, dtype: Any = None) -> Iterator[tuple[int, Bits]]:
    """Yield chunks of rows as (number of the first row, bits); cast to ``dtype`` first if it is not None."""
    flat = tensor.reshape(-1, tensor.shape[-1]) if len(tensor.shape) > 1 else tensor.reshape(-1, 1)
    step = max(chunk_elements(tensor) // max(int(flat.shape[1]), 1), 1)
    for first in range(0, int(flat.shape[0]), step):
        yield first, bits_of(_cast(flat[first : first + step], dtype))


def bits_of(chunk: Any) -> Bits:
    """The bits of elements as signed integers of their width, widened to int64; -0.0 as 0."""
    if isinstance(chunk, np.ndarray):
        bits = np.ascontiguousarray(chunk).view(f"i{chunk.dtype.itemsize}").astype(np.int64)
        return np.where(chunk == 0, 0, bits) if chunk.dtype.kind == "f" else bits
    torch = sys.modules["torch"]
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = chunk.contiguous().view(kinds[chunk.element_size()]).to(torch.int64)
    wide = chunk.is_floating_point() and chunk.element_size() > 1  # not every backend compares float8
    return torch.where(chunk == 0, 0, bits) if wide else bits


def checksum(tensor: Any, dtype: Any = None) -> Checksum:
    """The checksums of a tensor of numpy or torch, on any device."""
    sums = Checksum()
    for first, bits in row_chunks(tensor, dtype):
        sums.add_rows(first, bits)
    sums.end()
    return sums


def weight_digests(weights: Mapping[str, Any] | Iterable[tuple[str, Any]], dtype: Any = None) -> dict[str, str]:
    """Compute the digests of a trainer's weights, for ``TrainerCollector.step(weight_digests=...)``.

    Makes one pass over the weights, on their own device. Don't call it in every step.

    Args:
        weights: ``model.state_dict()`` or ``model.named_parameters()``: complete tensors (not one rank's shard) under
            the names of the checkpoint.
        dtype: the dtype in which engines receive the weights; None: the tensors' own.

    Returns:
        By name: dtype, checksum of rows, checksum of columns, separated by colons.
    """
    digests = {}
    for name, tensor in weights.items() if isinstance(weights, Mapping) else weights:
        tensor = tensor.detach() if hasattr(tensor, "detach") else tensor
        sample = _cast(tensor.reshape(-1)[:1], dtype)
        sums = checksum(tensor, dtype)
        digests[name] = f"{dtype_name(sample)}:{as_hex(sums.rows)}:{as_hex(sums.columns)}"
    return digests


def _cast(chunk: Any, dtype: Any) -> Any:
    if dtype is None:
        return chunk
    return chunk.astype(dtype) if isinstance(chunk, np.ndarray) else chunk.to(dtype)


def mix(bits: Bits) -> Bits:
    """A bijection of 64-bit integers, with 0 for 0."""
    bits = bits * _ONE
    bits = (bits ^ (bits >> 31)) * _TWO
    return bits ^ (bits >> 29)


def _multipliers(first: int, size: int, like: Bits) -> Bits:
    """The odd multipliers of the positions ``first`` to ``first + size``."""
    places: NDArray[np.int64] = np.arange(first + 1, first + 1 + size, dtype=np.int64)
    odd = mix(places * _POSITION) | 1
    return odd if isinstance(like, np.ndarray) else sys.modules["torch"].from_numpy(odd).to(like.device)


def column_multipliers(size: int, device: Any) -> Bits:
    """The odd multipliers of the first ``size`` positions, made on a torch device without a copy from the host."""
    return mix(sys.modules["torch"].arange(1, size + 1, device=device) * _POSITION) | 1
