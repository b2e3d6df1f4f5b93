"""Tokens cut into pieces that were sampled alike, and what the kernel makes of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.summary import kernel as k
from rltop.backend.summary.dimensions import POSITIONS
from rltop.backend.summary.gap import NOTHING, Gap
from rltop.backend.summary.kernel import Floats, Ints

POSITION_EDGES: Ints = np.array(POSITIONS)
"""First position of each bin: 0, 1, 2, 4, 8, 16, 32, 48, 64, 96 ... 2**18; from 32 on two to the octave, so that a step
at a block or tile of the engine's falls on an edge."""

_PAST_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class TokenRuns:
    """Runs of tokens of one sequence that were sampled alike; in order of rows, and of places within a row.

    Attributes:
        start, end: tokens [runs]. row: sequence. place: whose sums they go to. at: position of the first token in its
            sequence. flow: bit 1 where the token before is the one sampled before, bit 2 where the next is the next.
        places: how many there are.
    """

    start: Ints
    end: Ints
    row: Ints
    place: Ints
    at: Ints
    flow: Ints
    places: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs cut at the edges of position bins.

    Attributes:
        start, end, flow, place: as of ``TokenRuns`` [pieces]. run: the run of each. position: its bin.
        group: number of the sequence in its place, rising. group_place, group_row: of each group [groups].
        places: how many there are.
    """

    start: Ints
    end: Ints
    flow: Ints
    place: Ints
    run: Ints
    position: Ints
    group: Ints
    group_place: Ints
    group_row: Ints
    places: int

    def only(self, chosen: NDArray[np.bool_]) -> Pieces:
        """Some of the pieces [pieces]."""
        row = self.group_row[self.group[chosen]]
        return _grouped(
            self.start[chosen], self.end[chosen], self.flow[chosen], self.place[chosen], self.run[chosen],
            self.position[chosen], row, self.places,
        )  # fmt: skip


def _grouped(
    start: Ints, end: Ints, flow: Ints, place: Ints, run: Ints, position: Ints, row: Ints, places: int
) -> Pieces:
    first = np.ones(start.size, bool)
    first[1:] = (row[1:] != row[:-1]) | (place[1:] != place[:-1])
    group = np.cumsum(first) - 1
    return Pieces(start, end, flow, place, run, position, group, place[first], row[first], places)


def cut(runs: TokenRuns) -> Pieces:
    """Cut runs at the edges of position bins."""
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
    flow = runs.flow[run]
    flow = np.where(start > begin, 1, flow & 1) + np.where(end < begin + size[run], 2, flow & 2)
    return _grouped(start, end, flow, runs.place[run], run, position, row, runs.places)


def whole(size: int) -> Pieces:
    """All of ``size`` tokens as one sequence, in one piece."""
    zero = np.zeros(1, np.int64)
    return _grouped(zero, np.array([size]), zero, zero, zero, zero, zero, 1)


@dataclass(frozen=True, slots=True)
class Reduced:
    """What the kernel made of pieces.

    Attributes:
        gaps: by place. sums: of each piece [pieces, PIECE_SUMS]. tail: of each group [groups, PROB_BINS, TAIL_SUMS].
    """

    gaps: list[Gap]
    sums: Floats
    tail: Floats


def reduce(left: NDArray[np.generic], right: NDArray[np.generic], pieces: Pieces) -> Reduced:
    """Sum up ``left - right`` [tokens] over the pieces."""
    left, right = _plain(left), _plain(right)
    places = pieces.places
    anchors = np.zeros((places, 2))
    used, first = np.unique(pieces.place, return_index=True)
    first = first[pieces.end[first] > pieces.start[first]]
    near = right[pieces.start[first]].astype(np.float64)
    anchors[pieces.place[first], 0] = np.where(np.abs(near) < k.BOUND, near, 0.0)
    anchors[:, 1] = np.exp(np.minimum(anchors[:, 0], 0.0))
    sums, extremes = np.zeros((places, k.SUMS)), np.tile(NOTHING, (places, 1))
    bins = np.zeros((places, 2 * k.SIDE + 1), np.int64)
    piece_sums = np.zeros((pieces.start.size, k.PIECE_SUMS))
    tail = np.zeros((pieces.group_place.size, k.PROB_BINS, k.TAIL_SUMS))
    k.compiled().tokens(
        left, right, pieces.start, pieces.end, pieces.flow, pieces.place, pieces.group, anchors, sums, extremes, bins,
        piece_sums, tail,
    )  # fmt: skip
    gaps = [Gap() for _ in range(places)]
    for place in used:
        gaps[place] = Gap.reduced(sums[place], extremes[place], bins[place], anchors[place])
    return Reduced(gaps, piece_sums, tail)


def _plain(logprobs: NDArray[np.generic]) -> NDArray[np.generic]:
    """float32 or float64, in one stretch and read-only: for each type of array the kernel is compiled anew."""
    kind = np.float32 if logprobs.dtype == np.float32 else np.float64
    plain = np.ascontiguousarray(logprobs, kind).view()
    plain.flags.writeable = False
    return plain


def gap_of(left: NDArray[np.generic], right: NDArray[np.generic]) -> Gap:
    """The summary of two arrays of logprobs [tokens], taken as one sequence."""
    return reduce(left, right, whole(len(left))).gaps[0]
