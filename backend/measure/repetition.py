"""Whether a sequence goes round in circles: by how far its last tokens can be compressed. Pure."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import Ints, compiled

LAST = 2500
SHORTEST = 256
"""Trained tokens at the end of a sequence that are looked at, and how many a sequence must have to be judged."""

TIMES = 10
"""How far they must shrink. slime says so of the last 10,000 characters (``has_repetition``); 2500 tokens are about as
much text, and one byte a token about as dense."""


def repeating(ids: NDArray[np.int32], lengths: Ints) -> NDArray[np.bool_]:
    """Whether each sequence ends in a repetition [sequences]; their trained tokens follow each other [tokens].

    With many kinds of tokens nothing shrinks so far. To count them is cheap, and leaves few to be compressed.
    """
    ends = np.cumsum(lengths)
    sizes = np.minimum(lengths, LAST)
    long = np.flatnonzero(lengths >= SHORTEST)
    kinds = np.zeros(long.size, np.int64)
    compiled().kinds(ids, (ends - sizes)[long], ends[long], kinds)
    found = np.zeros(lengths.size, bool)
    for at in long[kinds * TIMES <= sizes[long]].tolist():
        found[at] = _shrinks(ids[ends[at] - sizes[at] : ends[at]])
    return found


def _shrinks(ids: NDArray[np.int32]) -> bool:
    kinds, told_apart = np.unique(ids, return_inverse=True)
    if kinds.size * TIMES > ids.size:
        return False
    raw = told_apart.astype(np.uint8).tobytes()
    return len(zlib.compress(raw, 1)) * TIMES <= len(raw)
