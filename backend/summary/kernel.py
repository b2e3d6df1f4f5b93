"""The compiled loops over tokens, and where everything stands in the arrays they fill.

``compiled`` gives the loops as numba's machine code. numba compiles them on first use, which takes some seconds, and
keeps the code beside this file or in the user's cache where it can write one; from then on it takes a tenth. numba
itself is loaded then and not before: viewers read metrics without it. All constants that the loops use stand in this
file, because the kept code is renewed when this file changes and not when another does.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLAMP = 20.0
"""d is held to +-CLAMP wherever it is exponentiated, and in k1, k2 and k3, so that ``k3 - k1 = ratio_mean - 1`` holds
exactly. Exponents of sequences are held likewise."""

TIS_CAP = 2.0
"""Cap of the truncated ratio: the default of verl, slime and SkyRL."""

ZERO_GAP = 0.25
"""A rollout logprob of exactly 0.0 is told as suspect where the trainer's is further than this below 0, in nats:
placeholders are; the token that top_p (of 0.78 or more) left alone is not."""

BOUND = 3.5e38
"""A logprob beyond this, which float32 can't hold, is taken as infinite: squares of the rest fit float64."""

POSITIVE = 0.01
"""A logprob above this, in nats, is none: rounding alone does not get there."""

# The histogram takes its bins straight from the bits of a float32: sign, exponent and the top 6 bits of the mantissa,
# 64 bins to the octave, so a bin's middle is within 0.8 % of everything in it. |d| below 2**-40 counts as zero, above
# 2**16 as 2**16.
SHIFT = 17
SMALLEST, LARGEST = 2.0**-40, 2.0**16
FIRST = int(np.float32(SMALLEST).view(np.uint32)) >> SHIFT
SIDE = (int(np.float32(LARGEST).view(np.uint32)) >> SHIFT) - FIRST + 1
"""Bins on one side of zero; the zero bin has this index."""

# What is summed over the tokens of a place. Below them d is left - right, h is d held, rho = exp(h).
(
    TOKENS, NAN, INF, ZERO, ABOVE, N, CLAMPED, D, DD, ABS, H, HH, K3, K3_REV, X2, RHO, RHO2, JS, TV, MULT, LEFT, RIGHT,
    RHO_LEFT, PROB, PROB2, CAPPED, CAPPED2, OVER_CAP, OUT_ICEPOP, OUT_BAND, TAU2, TAU5, VANISHED, EXPLODED,
    R_, RR_, RD_, P_, Q_, PP_, QQ_, PQ_, BACK_N, BACK, FORTH_N, FORTH,
) = range(46)  # fmt: skip
SUMS = 46
"""R_ to PQ_ are of deviations from a point that the caller names: right logprob, right and left probability."""

LOW, HIGH, PROB_HIGH = range(3)
EXTREMES = 3

# What is summed over the tokens of a piece.
PIECE_N, PIECE_D, PIECE_ABS, PIECE_K3, PIECE_X, PIECE_LEFT, PIECE_RIGHT, PIECE_MULT, PIECE_LOW, PIECE_HIGH = range(10)
PIECE_SUMS = 10

FIGURES = 4
"""Figures of a stratum: d, |d|, k3, ratio - 1: PIECE_D to PIECE_X."""

MOMENTS = 6
"""Columns of a stratum's figure: sequences, tokens n, their sum s, and over sequences the sums of n n, s s and n s."""

PROB_EDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9)
PROB_BINS = len(PROB_EDGES) + 1
TAIL_SUMS = 2 + FIGURES
"""Of a bin of the right probability p: tokens, their figures, and 1 - p: what is left for all other tokens."""

LOG_PROB_EDGES = np.log(np.array(PROB_EDGES))
LOG_TAU2, LOG_TAU5, LOG_VANISHED, LOG_EXPLODED = math.log(2), math.log(5), math.log(1e-4), math.log(100)
LOG_BAND = (math.log(0.9), math.log(1.1))
LOG_ICEPOP = (math.log(0.5), math.log(5.0))
LOG_CAP = math.log(TIS_CAP)
KINDS = 4096
"""A power of 2."""

NEAR = 0.125
"""Below this |d| series serve: quicker than the functions, and k3 keeps all its digits."""


def tokens(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    start: Ints,
    end: Ints,
    flow: Ints,
    place: Ints,
    group: Ints,
    anchors: Floats,
    sums: Floats,
    extremes: Floats,
    bins: Ints,
    pieces: Floats,
    tail: Floats,
) -> None:
    """Add the tokens of all pieces to ``sums``, ``extremes``, ``bins`` and ``tail``, and fill ``pieces``.

    Args:
        left: logprobs [tokens], float32 or float64, read-only: the trainer's.
        right: likewise, the rollout's.
        start: of each piece, a run of tokens [pieces].
        end: likewise.
        flow: bit 1 where the token before ``start`` is the one sampled before it, bit 2 if the one at ``end`` is next.
        place: of each piece [pieces].
        group: sequence of each piece [pieces].
        anchors: [places, 2], a right logprob and a probability near the rest.
        sums: [places, SUMS].
        extremes: [places, EXTREMES].
        bins: [places, 2 SIDE + 1].
        pieces: [pieces, PIECE_SUMS].
        tail: [groups, PROB_BINS, TAIL_SUMS], by the right probability.
    """
    buffer = np.empty(1, np.float32)
    bits = buffer.view(np.uint32)
    for p in range(start.size):
        s, x_, b_, own = sums[place[p]], extremes[place[p]], bins[place[p]], pieces[p]
        r0, p0 = anchors[place[p], 0], anchors[place[p], 1]
        low, high = math.inf, -math.inf
        for i in range(start[p], end[p]):
            s[TOKENS] += 1
            t, r = float(left[i]), float(right[i])
            if not (abs(t) < BOUND and abs(r) < BOUND):
                if t != t or r != r:
                    s[NAN] += 1
                else:
                    s[INF] += 1
                continue
            d = t - r
            a = abs(d)
            if a < NEAR:
                h = d
                k3 = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d * (
                    1 / 5040 + d * (1 / 40320 + d * (1 / 362880 + d / 3628800))))))))  # fmt: skip
                x = d + k3
                rho = 1 + x
                js = math.sqrt(rho) * d * d * (1 / 8) * (1 + (d * d) * (d * d) / 1152)
            else:
                h = min(max(d, -CLAMP), CLAMP)
                x = math.expm1(h)
                rho = 1 + x if h > -1 else math.exp(h)
                k3 = x - h
                half = math.log1p(x / 2)
                js = (rho * (h - half) - half) / 2
            inverse = 1 / rho
            pr = math.exp(min(r, 0.0))
            pt = pr * rho if h == d and t <= 0 and r <= 0 else math.exp(min(t, 0.0))
            gap = abs(pt - pr)
            mult = max(rho, inverse)
            capped = min(rho, TIS_CAP)
            low, high = min(low, d), max(high, d)
            x_[PROB_HIGH] = max(x_[PROB_HIGH], gap)
            s[N] += 1
            s[ZERO] += (r == 0.0) & (t < -ZERO_GAP)
            s[ABOVE] += (t > POSITIVE) | (r > POSITIVE)
            s[CLAMPED] += h != d
            s[D] += d
            s[DD] += d * d
            s[ABS] += a
            s[H] += h
            s[HH] += h * h
            s[K3] += k3
            s[K3_REV] += (h * x - k3) * inverse
            s[X2] += x * x
            s[RHO] += rho
            s[RHO2] += rho * rho
            s[JS] += js
            s[TV] += abs(x)
            s[MULT] += mult
            s[LEFT] += t
            s[RIGHT] += r
            s[RHO_LEFT] += rho * t
            s[PROB] += gap
            s[PROB2] += gap * gap
            s[CAPPED] += capped
            s[CAPPED2] += capped * capped
            s[OVER_CAP] += h > LOG_CAP
            s[OUT_ICEPOP] += (h < LOG_ICEPOP[0]) | (h > LOG_ICEPOP[1])
            s[OUT_BAND] += (h < LOG_BAND[0]) | (h > LOG_BAND[1])
            s[TAU2] += a > LOG_TAU2
            s[TAU5] += a > LOG_TAU5
            s[VANISHED] += h < LOG_VANISHED
            s[EXPLODED] += h > LOG_EXPLODED
            dr, dp, dq = r - r0, pr - p0, pt - p0
            s[R_] += dr
            s[RR_] += dr * dr
            s[RD_] += dr * d
            s[P_] += dp
            s[Q_] += dq
            s[PP_] += dp * dp
            s[QQ_] += dq * dq
            s[PQ_] += dp * dq
            if i > start[p] or flow[p] & 1:
                off = abs(t - float(right[i - 1]))
                if off < BOUND:
                    s[BACK_N] += 1
                    s[BACK] += off
            if i + 1 < end[p] or flow[p] & 2:
                off = abs(t - float(right[i + 1]))
                if off < BOUND:
                    s[FORTH_N] += 1
                    s[FORTH] += off
            buffer[0] = min(a, LARGEST)
            bin_ = max(int(bits[0] >> SHIFT) - (FIRST - 1), 0)
            b_[SIDE - bin_ if d < 0 else SIDE + bin_] += 1
            own[PIECE_N] += 1
            own[PIECE_D] += d
            own[PIECE_ABS] += a
            own[PIECE_K3] += k3
            own[PIECE_X] += x
            own[PIECE_LEFT] += t
            own[PIECE_RIGHT] += r
            own[PIECE_MULT] += mult
            q = 0
            for edge in LOG_PROB_EDGES:
                q += r >= edge
            h_ = tail[group[p], q]
            h_[0] += 1
            h_[1] += d
            h_[2] += a
            h_[3] += k3
            h_[4] += x
            h_[5] += 1 - pr
        own[PIECE_LOW], own[PIECE_HIGH] = low, high
        x_[LOW], x_[HIGH] = min(x_[LOW], low), max(x_[HIGH], high)


def strata(parts: Floats, group: Ints, index: Ints, place: Ints, out: Floats) -> None:
    """Add parts of sequences to strata, all parts of a sequence in a stratum taken together.

    Args:
        parts: [parts, 1 + FIGURES or more]: tokens, then the sum of each figure.
        group: sequence of each part [parts], rising.
        index: stratum of each part by dimension [dimensions, parts], negative for none.
        place: of each sequence [groups].
        out: [places, strata, FIGURES, MOMENTS].
    """
    here = np.zeros((out.shape[1], 1 + FIGURES))
    touched = np.empty(out.shape[1], np.int64)
    count = 0
    for p in range(group.size):
        for dimension in range(index.shape[0] if parts[p, 0] else 0):
            q = index[dimension, p]
            if q < 0:
                continue
            if not here[q, 0]:
                touched[count] = q
                count += 1
            for f in range(1 + FIGURES):
                here[q, f] += parts[p, f]
        if p + 1 == group.size or group[p + 1] != group[p]:
            for k in range(count):
                q = touched[k]
                n = here[q, 0]
                for f in range(FIGURES):
                    s = here[q, 1 + f]
                    m = out[place[group[p]], q, f]
                    m[0] += 1
                    m[1] += n
                    m[2] += s
                    m[3] += n * n
                    m[4] += s * s
                    m[5] += n * s
                here[q] = 0
            count = 0


def kinds(ids: NDArray[np.int32], start: Ints, end: Ints, found: Ints) -> None:
    """How many kinds of token each stretch has, or fewer: kinds that share their low bits count once.

    Args:
        ids: [tokens].
        start: of each stretch [stretches].
        end: likewise.
        found: zeros [stretches].
    """
    seen = np.zeros(KINDS, np.int64)
    for p in range(start.size):
        for i in range(start[p], end[p]):
            kind = ids[i] & (KINDS - 1)
            if seen[kind] != p + 1:
                seen[kind] = p + 1
                found[p] += 1


class Loops(NamedTuple):
    """The loops above, compiled."""

    tokens: Any
    strata: Any
    kinds: Any


@functools.cache
def compiled() -> Loops:
    """The loops as machine code; compiled for a type of array when it first comes."""
    import numba

    def compile_(function: Any) -> Any:
        options = {"nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to keep the code: every process compiles anew
            return numba.njit(**options)(function)

    return Loops(compile_(tokens), compile_(strata), compile_(kinds))
