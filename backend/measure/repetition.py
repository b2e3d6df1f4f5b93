"""Detects sequences that end in a repetition, by how well their last tokens compress. Pure."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import Ints, compiled

LAST = 2500
SHORTEST = 256
"""Trained tokens at the end of a sequence that are examined, and the fewest that a sequence must have."""

MIN_COMPRESSION = 10
"""Compression ratio of a repetition. slime uses it for the last 10,000 characters (``has_repetition``); 2500 tokens are
about as much text, and one byte a token about as dense."""


def ends_in_repetition(ids: NDArray[np.int32], lengths: Ints) -> NDArray[np.bool_]:
    """Whether each sequence ends in a repetition [sequences]. ``ids``: trained tokens of all, in order [tokens].

    Sequences with many distinct tokens can't compress that far. Counting them is cheap and leaves few to compress.
    """
    ends = np.cumsum(lengths)
    sizes = np.minimum(lengths, LAST)
    long = np.flatnonzero(lengths >= SHORTEST)
    distinct = np.zeros(long.size, np.int64)
    compiled().distinct_ids(ids, (ends - sizes)[long], ends[long], distinct)
    repetitive = np.zeros(lengths.size, bool)
    for number in long[distinct * MIN_COMPRESSION <= sizes[long]].tolist():
        repetitive[number] = _compresses(ids[ends[number] - sizes[number] : ends[number]])
    return repetitive


def _compresses(ids: NDArray[np.int32]) -> bool:
    distinct, codes = np.unique(ids, return_inverse=True)
    if distinct.size * MIN_COMPRESSION > ids.size:
        return False
    raw = codes.astype(np.uint8).tobytes()
    return len(zlib.compress(raw, 1)) * MIN_COMPRESSION <= len(raw)
