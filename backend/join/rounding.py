"""Equality of float32 logprobs up to rounding, and casts to fewer bits. Pure, vectorised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Marks = NDArray[np.bool_]

FLOAT32_ROUNDING = 2.0**-23
"""Relative tolerance: a rounding to float32 moves a value by at most 2**-24 of itself, and both sides are rounded."""


def equal(left: Floats, right: Floats) -> Marks:
    """Where [n] both are equal to float32 rounding; NaN equals NaN."""
    same: Marks = left == right
    if same.all():
        return same
    with np.errstate(invalid="ignore", over="ignore"):
        same |= np.abs(left - right) <= FLOAT32_ROUNDING * np.maximum(np.abs(left), np.abs(right))
    same &= (left == right) | (np.isfinite(left) & np.isfinite(right))
    same |= np.isnan(left) & np.isnan(right)
    return same


def bfloat16(values: Floats) -> Floats:
    """Round to the nearest bfloat16, ties to even, as torch does; NaN and infinity stay."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def bfloat16_cut(values: Floats) -> Floats:
    """Truncate to bfloat16: keep the upper half of the bits."""
    return np.where(np.isnan(values), values, (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


def float16(values: Floats) -> Floats:
    """Round to the nearest float16 (5 bits of exponent: below about 6e-8 it is 0, beyond 65504 infinite)."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


CASTS: dict[str, Callable[[Floats], Floats]] = {
    "float16": float16,
    "bfloat16": bfloat16,
    "bfloat16_cut": bfloat16_cut,
}
"""From fine to coarse; if several explain a copy, the finest counts."""


def agree(ours: Floats, theirs: Floats) -> bool:
    """Whether ``theirs`` [n] is a copy of ``ours``: equal, or cast to fewer bits."""
    return bool(equal(ours, theirs).all()) or any(bool(equal(cast(ours), theirs).all()) for cast in CASTS.values())
