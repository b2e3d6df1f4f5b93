"""The dimensions that the gap is broken down by, each with its strata. Pure data; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.kernel import PROB_EDGES, Floats, Ints

POSITIONS: tuple[int, ...] = (
    0,
    1,
    2,
    4,
    8,
    16,
    *(edge << octave for octave in range(4, 17) for edge in (2, 3)),
    1 << 18,
)
LENGTHS: tuple[int, ...] = tuple(1 << power for power in range(21))
SECONDS: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
MAX_LAG = 32
MAX_TURN = 8
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Dimension:
    """One partition of the tokens into strata.

    Attributes:
        name: as in reports.
        help: description for reports.
        strata: labels, in order. Their number bounds the memory per summary.
        of_sequence: all tokens of a sequence are in one stratum, unless weights or engines changed within it.
    """

    name: str
    help: str
    strata: tuple[str, ...]
    of_sequence: bool = True


def _ranges(edges: tuple[int, ...]) -> tuple[str, ...]:
    """Labels of the integer ranges between the edges; the last is open."""
    ends = [*edges[1:], None]
    return tuple(
        f"{low}+" if end is None else f"{low}" if end == low + 1 else f"{low}-{end - 1}"
        for low, end in zip(edges, ends, strict=True)
    )


def _time_ranges(edges: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(
        f"{_duration(low)}+" if end is None else f"{_duration(low)}-{_duration(end)}"
        for low, end in zip(edges, [*edges[1:], None], strict=True)
    )


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


ALL = Dimension("all", "every token", ("all",))
LAG = Dimension(
    "lag",
    "weight versions between sampling and the trainer logprob of the token",
    ("ahead", *map(str, range(MAX_LAG)), f"{MAX_LAG}+", UNKNOWN),
    of_sequence=False,
)
POSITION = Dimension(
    "position", "index of the token among the sequence's trained tokens, from 0", _ranges(POSITIONS), of_sequence=False
)
PROBABILITY = Dimension(
    "probability",
    "rollout probability of the token",
    tuple(f"{low:g}-{high:g}" for low, high in zip((0, *PROB_EDGES), (*PROB_EDGES, 1), strict=True)),
    False,
)
CACHE = Dimension(
    "prefix",
    "whether the request read prompt tokens from the prefix cache: hit, miss, or off (no lookup)",
    ("hit", "miss", "off", UNKNOWN),
)
UPDATE = Dimension(
    "update",
    "before or after the first weight update within the request; whole: there was none",
    ("whole", "before", "after", UNKNOWN),
    False,
)
SINCE_UPDATE = Dimension(
    "since_update",
    "time from the engine's last weight update to the scheduling of the request",
    (*_time_ranges(SECONDS), UNKNOWN),
)
SINCE_START = Dimension(
    "since_start", "time from the engine's start to the scheduling of the request", (*_time_ranges(SECONDS), UNKNOWN)
)
LENGTH = Dimension("length", "trained tokens of the sequence", _ranges(LENGTHS))
TURN = Dimension(
    "turn",
    "number of the policy's turn in the sequence, from 0; the text between turns is not trained on",
    (*map(str, range(MAX_TURN - 1)), f"{MAX_TURN - 1}+"),
)
FINISH = Dimension("finish", "why the request ended", ("stop", "length", "abort", "error", "other", UNKNOWN))

DIMENSIONS: tuple[Dimension, ...] = (
    ALL, LAG, POSITION, PROBABILITY, CACHE, UPDATE, SINCE_UPDATE, SINCE_START, LENGTH, TURN, FINISH,
)  # fmt: skip

OFFSET: dict[str, int] = {}
"""Index of each dimension's first stratum in the array of all strata."""
STRATA = 0
for _dimension in DIMENSIONS:
    OFFSET[_dimension.name] = STRATA
    STRATA += len(_dimension.strata)


def lag_strata(lags: Ints, known: NDArray[np.bool_]) -> Ints:
    """Stratum in ``LAG`` of each lag [n]."""
    return np.where(known, np.clip(lags, -1, MAX_LAG) + 1, len(LAG.strata) - 1)


def second_strata(seconds: Floats) -> Ints:
    """Stratum in ``SINCE_UPDATE`` and ``SINCE_START`` of each time [n]; NaN if not known."""
    known = seconds >= 0
    found = np.searchsorted(np.array(SECONDS), np.where(known, seconds, 0.0), side="right") - 1
    return np.where(known, found, len(SECONDS))


def length_strata(lengths: Ints) -> Ints:
    """Stratum in ``LENGTH`` of each length [n], at least 1."""
    return np.searchsorted(np.array(LENGTHS), lengths, side="right") - 1
