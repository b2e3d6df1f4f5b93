"""Splits tokens into pieces that were sampled under the same conditions, and sums over them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary.dimensions import POSITIONS
from rltop.backend.summary.gap import NO_EXTREMES, Gap
from rltop.backend.summary.kernel import BOUND, PROB_BINS, RUN, SIDE, SUM, TAIL, Floats, Ints, compiled

POSITION_EDGES: Ints = np.array(POSITIONS)
"""First position of each bin: 0, 1, 2, 4, 8, 16, 32, 48, 64, 96 ... 2**18. From 32 on there are two bins to the octave,
so that a jump at an engine's block or tile boundary falls on an edge."""

_PAST_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class TokenRuns:
    """Runs of tokens of one sequence that were sampled under the same conditions, ordered by row, then by engine.

    Attributes:
        start, end: range of tokens [runs]. row: sequence. engine: number of the engine whose sums the run adds to.
        at: position of the first token in its sequence. adjacent: bit 1 if the token before ``start`` was sampled right
            before it, bit 2 if the token at ``end`` was sampled right after the last.
        engines: number of engines.
    """

    start: Ints
    end: Ints
    row: Ints
    engine: Ints
    at: Ints
    adjacent: Ints
    engines: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs cut at the edges of position bins.

    Attributes:
        start, end, adjacent, engine: as in ``TokenRuns`` [pieces]. run: the piece's run. position: its position bin.
        group: number of the piece's group, rising: one sequence on one engine. group_engine, group_row: [groups].
        engines: number of engines.
    """

    start: Ints
    end: Ints
    adjacent: Ints
    engine: Ints
    run: Ints
    position: Ints
    group: Ints
    group_engine: Ints
    group_row: Ints
    engines: int

    def select(self, chosen: NDArray[np.bool_]) -> Pieces:
        """The pieces for which ``chosen`` [pieces] is true."""
        row = self.group_row[self.group[chosen]]
        return _grouped(
            self.start[chosen], self.end[chosen], self.adjacent[chosen], self.engine[chosen], self.run[chosen],
            self.position[chosen], row, self.engines,
        )  # fmt: skip


def _grouped(
    start: Ints, end: Ints, adjacent: Ints, engine: Ints, run: Ints, position: Ints, row: Ints, engines: int
) -> Pieces:
    first = np.ones(start.size, bool)
    first[1:] = (row[1:] != row[:-1]) | (engine[1:] != engine[:-1])
    group = np.cumsum(first) - 1
    return Pieces(start, end, adjacent, engine, run, position, group, engine[first], row[first], engines)


def cut(runs: TokenRuns) -> Pieces:
    """Split runs at the edges of position bins."""
    size = runs.end - runs.start
    first = np.searchsorted(POSITION_EDGES, runs.at, side="right") - 1
    last = np.searchsorted(POSITION_EDGES, runs.at + size - 1, side="right") - 1
    count = np.where(size > 0, last - first + 1, 0)
    run = np.repeat(np.arange(size.size), count)
    position = first[run] + np.arange(run.size) - np.repeat(np.cumsum(count) - count, count)
    at, begin, row = runs.at[run], runs.start[run], runs.row[run]
    start = begin + np.maximum(POSITION_EDGES[position] - at, 0)
    following = np.append(POSITION_EDGES[1:], _PAST_END)
    end = begin + np.minimum(following[position] - at, size[run])
    adjacent = runs.adjacent[run]
    adjacent = np.where(start > begin, 1, adjacent & 1) + np.where(end < begin + size[run], 2, adjacent & 2)
    return _grouped(start, end, adjacent, runs.engine[run], run, position, row, runs.engines)


def single_piece(size: int) -> Pieces:
    """``size`` tokens as one piece of one sequence."""
    zero = np.zeros(1, np.int64)
    return _grouped(zero, np.array([size]), zero, zero, zero, zero, zero, 1)


@dataclass(frozen=True, slots=True)
class Reduced:
    """The kernel's sums over pieces.

    Attributes:
        gaps: by engine. sums: of each piece [pieces, RunSums]. tail: of each group [groups, PROB_BINS, TailSums].
    """

    gaps: list[Gap]
    sums: Floats
    tail: Floats


def reduce(left: NDArray[np.generic], right: NDArray[np.generic], pieces: Pieces) -> Reduced:
    """Sum ``left - right`` [tokens] over the pieces."""
    left, right = _kernel_input(left), _kernel_input(right)
    engines = pieces.engines
    anchors = np.zeros((engines, 2))
    used, first = np.unique(pieces.engine, return_index=True)
    first = first[pieces.end[first] > pieces.start[first]]
    near = right[pieces.start[first]].astype(np.float64)
    anchors[pieces.engine[first], 0] = np.where(np.abs(near) < BOUND, near, 0.0)
    anchors[:, 1] = np.exp(np.minimum(anchors[:, 0], 0.0))
    sums, extremes = np.zeros((engines, len(SUM))), np.tile(NO_EXTREMES, (engines, 1))
    bins = np.zeros((engines, 2 * SIDE + 1), np.int64)
    piece_sums = np.zeros((pieces.start.size, len(RUN)))
    tail = np.zeros((pieces.group_engine.size, PROB_BINS, len(TAIL)))
    compiled().tokens(
        left, right, pieces.start, pieces.end, pieces.adjacent, pieces.engine, pieces.group, anchors, sums, extremes,
        bins, piece_sums, tail,
    )  # fmt: skip
    gaps = [Gap() for _ in range(engines)]
    for engine in used:
        gaps[engine] = Gap.from_kernel(sums[engine], extremes[engine], bins[engine], anchors[engine])
    return Reduced(gaps, piece_sums, tail)


def _kernel_input(logprobs: NDArray[np.generic]) -> NDArray[np.generic]:
    """As float32 or float64, contiguous and read-only: the kernel is compiled once for every type of array."""
    kind = np.float32 if logprobs.dtype == np.float32 else np.float64
    view = np.ascontiguousarray(logprobs, kind).view()
    view.flags.writeable = False
    return view


def gap_of(left: NDArray[np.generic], right: NDArray[np.generic]) -> Gap:
    """The gap between two arrays of logprobs [tokens] of one sequence."""
    return reduce(left, right, single_piece(len(left))).gaps[0]
