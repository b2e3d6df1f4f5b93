"""When two float32 logprobs are the same number, and what a rounding to fewer bits makes of one. Pure, vectorised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Marks = NDArray[np.bool_]

FLOAT32_ROUNDING = 2.0**-23
"""One rounding to float32 moves a value by at most 2**-24 of itself; each of the two sides has had one."""


def equal(left: Floats, right: Floats) -> Marks:
    """Where [n] the two are the same to float32 rounding; NaN is the same as NaN."""
    same: Marks = left == right
    if same.all():
        return same
    with np.errstate(invalid="ignore", over="ignore"):
        same |= np.abs(left - right) <= FLOAT32_ROUNDING * np.maximum(np.abs(left), np.abs(right))
    same &= (left == right) | (np.isfinite(left) & np.isfinite(right))
    same |= np.isnan(left) & np.isnan(right)
    return same


def bfloat16(values: Floats) -> Floats:
    """Rounded to the nearest bfloat16, ties to even, as torch does; NaN and infinity stay."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def bfloat16_cut(values: Floats) -> Floats:
    """The upper half of the bits: a cast that does not round."""
    return np.where(np.isnan(values), values, (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))


def float16(values: Floats) -> Floats:
    """Rounded to the nearest float16 (5 bits of exponent: below about 6e-8 it is 0, beyond 65504 infinite)."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


CASTS: dict[str, Callable[[Floats], Floats]] = {
    "float16": float16,
    "bfloat16": bfloat16,
    "bfloat16_cut": bfloat16_cut,
}
"""From fine to coarse: what both explain was done by the finer."""


def agree(ours: Floats, theirs: Floats) -> bool:
    """Whether ``theirs`` [n] is a copy of the record ``ours``: equal, or rounded to fewer bits."""
    return bool(equal(ours, theirs).all()) or any(bool(equal(cast(ours), theirs).all()) for cast in CASTS.values())
