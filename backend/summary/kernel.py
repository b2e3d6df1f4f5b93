"""Compiled loops over tokens, and the columns of the arrays that they fill.

``compiled`` returns the loops as machine code. numba compiles them on first use, which takes some seconds, and caches
the code next to this file or in the user's cache directory; loading it takes a tenth of that. numba is imported only
then: viewers read metrics without it.

numba renews cached code when the file of the compiled function changes, and does not look at other files. So every
constant that the loops use stands in this file, and they call nothing outside it: ``rltop.backend.evidence.kernel``
repeats the clamp and the series of k3 for the same reason.

Columns are declared once, as the fields of a named tuple: ``SUM.k3`` is the index of a column in Python and a constant
in compiled code, ``len(SUM)`` the number of columns.
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
"""d is clamped to +-CLAMP wherever it is exponentiated, and in k1, k2 and k3, so that ``k3 - k1 = ratio_mean - 1``
holds exactly. Exponents of sequences are clamped to the same range."""

TIS_CAP = 2.0
"""Cap of the truncated ratio: the default of verl, slime and SkyRL."""

ZERO_GAP = 0.25
"""A rollout logprob of exactly 0.0 counts as suspect if the trainer logprob is below -ZERO_GAP, in nats: placeholders
are; a token that top_p (of 0.78 or more) left as the only candidate is not."""

BOUND = 3.5e38
"""A logprob beyond this, which float32 can't hold, counts as infinite: squares of the others fit float64."""

POSITIVE = 0.01
"""A logprob above this, in nats, is no logprob: rounding alone does not get there."""

# A histogram's bin is read from the bits of a float32: sign, exponent and the top 6 bits of the mantissa. With 64 bins
# to the octave a bin's middle is within 0.8 % of everything in it. |d| below 2**-40 counts as zero, above 2**16 as
# 2**16.
SHIFT = 17
SMALLEST, LARGEST = 2.0**-40, 2.0**16
FIRST = int(np.float32(SMALLEST).view(np.uint32)) >> SHIFT
SIDE = (int(np.float32(LARGEST).view(np.uint32)) >> SHIFT) - FIRST + 1
"""Bins on one side of zero; also the index of the zero bin."""


class TokenSums(NamedTuple):
    """Sums over the tokens of an accumulator. d is left - right, h is d clamped, the ratio is exp(h).

    ``tokens``, ``nan`` and ``infinite`` count all tokens, the others the valid ones: those with two finite logprobs.
    """

    tokens: int
    nan: int
    infinite: int
    suspect_zero: int  # right is exactly 0.0, left below -ZERO_GAP
    positive: int  # a logprob above POSITIVE
    valid: int
    clamped: int  # h differs from d
    d: int
    d2: int
    abs_d: int
    h: int
    h2: int
    k3: int  # ratio - 1 - h
    k3_reverse: int  # k3 of -h
    excess2: int  # (ratio - 1)^2
    ratio: int
    ratio2: int
    js: int  # Jensen-Shannon
    abs_excess: int  # |ratio - 1|
    mult: int  # max(ratio, 1 / ratio)
    left: int
    right: int
    ratio_left: int  # ratio * left
    prob_gap: int  # |difference of probabilities|
    prob_gap2: int
    capped: int  # min(ratio, TIS_CAP)
    capped2: int
    over_cap: int
    outside_icepop: int
    outside_band: int
    beyond_2x: int  # |d| above ln 2
    beyond_5x: int
    vanished: int
    exploded: int
    # Deviations from the accumulator's anchors: dr of the right logprob, dp of the right, dq of the left probability.
    dr: int
    dr_dr: int
    dr_d: int
    dp: int
    dq: int
    dp_dp: int
    dq_dq: int
    dp_dq: int
    previous_n: int  # tokens that have a predecessor
    previous: int  # |left - right of the predecessor|
    next_n: int
    next: int


class RunSums(NamedTuple):
    """Sums over the valid tokens of a piece, and the extremes of their d."""

    n: int
    d: int
    abs_d: int
    k3: int
    excess: int
    left: int
    right: int
    mult: int
    low: int
    high: int


class Extremes(NamedTuple):
    """Extremes over the valid tokens of an accumulator: of d, and of |difference of probabilities|."""

    low: int
    high: int
    prob_high: int


class Figures(NamedTuple):
    """Figures of a stratum, in the order of ``RunSums``. ``excess`` is ratio - 1."""

    d: int
    abs_d: int
    k3: int
    excess: int


class Moments(NamedTuple):
    """Sums over sequences of a figure, for a sequence of n tokens over which the figure's sum is s."""

    sequences: int
    n: int
    s: int
    nn: int
    ss: int
    ns: int


class TailSums(NamedTuple):
    """Sums over the tokens of one bin of the right probability p. ``others`` is 1 - p, the mass of all other tokens."""

    n: int
    d: int
    abs_d: int
    k3: int
    excess: int
    others: int


SUM = TokenSums(*range(len(TokenSums._fields)))
RUN = RunSums(*range(len(RunSums._fields)))
EXTREME = Extremes(*range(len(Extremes._fields)))
FIGURE = Figures(*range(len(Figures._fields)))
MOMENT = Moments(*range(len(Moments._fields)))
TAIL = TailSums(*range(len(TailSums._fields)))

RUN_FIGURES = slice(RUN.d, RUN.d + len(FIGURE))
"""The columns of ``RunSums`` that hold the figures of a stratum."""

PROB_EDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9)
PROB_BINS = len(PROB_EDGES) + 1

LOG_PROB_EDGES = np.log(np.array(PROB_EDGES))
LOG_TAU2, LOG_TAU5, LOG_VANISHED, LOG_EXPLODED = math.log(2), math.log(5), math.log(1e-4), math.log(100)
LOG_BAND = (math.log(0.9), math.log(1.1))
LOG_ICEPOP = (math.log(0.5), math.log(5.0))
LOG_CAP = math.log(TIS_CAP)

HASHED_IDS = 4096
"""Slots of ``distinct_ids``; a power of 2."""

NEAR = 0.125
"""Below this |d| series replace the functions: they are faster, and k3 keeps all its digits."""


def tokens(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    start: Ints,
    end: Ints,
    adjacent: Ints,
    engine: Ints,
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
        left: trainer logprobs [tokens], float32 or float64, read-only.
        right: rollout logprobs [tokens], of the same kind.
        start: first token of each piece [pieces].
        end: token after the last of each piece [pieces].
        adjacent: bit 1 if the token before ``start`` was sampled right before it, bit 2 if the token at ``end`` was
            sampled right after the last.
        engine: number of each piece's engine [pieces].
        group: number of each piece's sequence [pieces].
        anchors: a right logprob and a right probability near the others [engines, 2].
        sums: [engines, TokenSums].
        extremes: [engines, Extremes].
        bins: histogram of d [engines, 2 SIDE + 1].
        pieces: [pieces, RunSums].
        tail: [groups, PROB_BINS, TailSums], by the right probability.
    """
    buffer = np.empty(1, np.float32)
    bits = buffer.view(np.uint32)
    for p in range(start.size):
        e = engine[p]
        s, x_, b_, own = sums[e], extremes[e], bins[e], pieces[p]
        r0, p0 = anchors[e, 0], anchors[e, 1]
        low, high = math.inf, -math.inf
        for i in range(start[p], end[p]):
            s[SUM.tokens] += 1
            t: float = np.float64(left[i])  # float() would keep float32
            r: float = np.float64(right[i])
            if not (abs(t) < BOUND and abs(r) < BOUND):
                if t != t or r != r:
                    s[SUM.nan] += 1
                else:
                    s[SUM.infinite] += 1
                continue

            # h = d clamped, x = exp(h) - 1, k3 = x - h, js = the token's Jensen-Shannon term
            d = t - r
            a = abs(d)
            if a < NEAR:
                h = d
                k3 = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d * (
                    1 / 5040 + d * (1 / 40320 + d * (1 / 362880 + d / 3628800))))))))  # fmt: skip
                x = d + k3
                ratio = 1 + x
                js = math.sqrt(ratio) * d * d * (1 / 8) * (1 + (d * d) * (d * d) / 1152)
            else:
                h = min(max(d, -CLAMP), CLAMP)
                x = math.expm1(h)
                ratio = 1 + x if h > -1 else math.exp(h)
                k3 = x - h
                half = math.log1p(x / 2)
                js = (ratio * (h - half) - half) / 2
            inverse = 1 / ratio
            pr = math.exp(min(r, 0.0))
            pt = pr * ratio if h == d and t <= 0 and r <= 0 else math.exp(min(t, 0.0))
            gap = abs(pt - pr)
            mult = max(ratio, inverse)
            capped = min(ratio, TIS_CAP)

            s[SUM.valid] += 1
            s[SUM.suspect_zero] += (r == 0.0) & (t < -ZERO_GAP)
            s[SUM.positive] += (t > POSITIVE) | (r > POSITIVE)
            s[SUM.clamped] += h != d
            s[SUM.d] += d
            s[SUM.d2] += d * d
            s[SUM.abs_d] += a
            s[SUM.h] += h
            s[SUM.h2] += h * h
            s[SUM.k3] += k3
            s[SUM.k3_reverse] += (h * x - k3) * inverse
            s[SUM.excess2] += x * x
            s[SUM.ratio] += ratio
            s[SUM.ratio2] += ratio * ratio
            s[SUM.js] += js
            s[SUM.abs_excess] += abs(x)
            s[SUM.mult] += mult
            s[SUM.left] += t
            s[SUM.right] += r
            s[SUM.ratio_left] += ratio * t
            s[SUM.prob_gap] += gap
            s[SUM.prob_gap2] += gap * gap
            s[SUM.capped] += capped
            s[SUM.capped2] += capped * capped
            s[SUM.over_cap] += h > LOG_CAP
            s[SUM.outside_icepop] += (h < LOG_ICEPOP[0]) | (h > LOG_ICEPOP[1])
            s[SUM.outside_band] += (h < LOG_BAND[0]) | (h > LOG_BAND[1])
            s[SUM.beyond_2x] += a > LOG_TAU2
            s[SUM.beyond_5x] += a > LOG_TAU5
            s[SUM.vanished] += h < LOG_VANISHED
            s[SUM.exploded] += h > LOG_EXPLODED

            dr, dp, dq = r - r0, pr - p0, pt - p0
            s[SUM.dr] += dr
            s[SUM.dr_dr] += dr * dr
            s[SUM.dr_d] += dr * d
            s[SUM.dp] += dp
            s[SUM.dq] += dq
            s[SUM.dp_dp] += dp * dp
            s[SUM.dq_dq] += dq * dq
            s[SUM.dp_dq] += dp * dq

            if i > start[p] or adjacent[p] & 1:
                shifted = abs(t - np.float64(right[i - 1]))
                if shifted < BOUND:
                    s[SUM.previous_n] += 1
                    s[SUM.previous] += shifted
            if i + 1 < end[p] or adjacent[p] & 2:
                shifted = abs(t - np.float64(right[i + 1]))
                if shifted < BOUND:
                    s[SUM.next_n] += 1
                    s[SUM.next] += shifted

            low, high = min(low, d), max(high, d)
            x_[EXTREME.prob_high] = max(x_[EXTREME.prob_high], gap)
            buffer[0] = min(a, LARGEST)
            bin_ = max(int(bits[0] >> SHIFT) - (FIRST - 1), 0)
            b_[SIDE - bin_ if d < 0 else SIDE + bin_] += 1

            own[RUN.n] += 1
            own[RUN.d] += d
            own[RUN.abs_d] += a
            own[RUN.k3] += k3
            own[RUN.excess] += x
            own[RUN.left] += t
            own[RUN.right] += r
            own[RUN.mult] += mult

            prob_bin = 0
            for edge in LOG_PROB_EDGES:
                prob_bin += r >= edge
            h_ = tail[group[p], prob_bin]
            h_[TAIL.n] += 1
            h_[TAIL.d] += d
            h_[TAIL.abs_d] += a
            h_[TAIL.k3] += k3
            h_[TAIL.excess] += x
            h_[TAIL.others] += 1 - pr
        own[RUN.low], own[RUN.high] = low, high
        x_[EXTREME.low], x_[EXTREME.high] = min(x_[EXTREME.low], low), max(x_[EXTREME.high], high)


def strata(parts: Floats, group: Ints, index: Ints, engine: Ints, moments: Floats) -> None:
    """Add parts of sequences to strata; the parts of one sequence in one stratum count as one observation.

    Args:
        parts: tokens, then the sum of each figure [parts, 1 + Figures or more].
        group: number of each part's sequence [parts], rising.
        index: stratum of each part by dimension [dimensions, parts], negative for none.
        engine: number of each sequence's engine [groups].
        moments: [engines, strata, Figures, Moments].
    """
    here = np.zeros((moments.shape[1], 1 + len(FIGURE)))
    touched = np.empty(moments.shape[1], np.int64)
    count = 0
    for p in range(group.size):
        for dimension in range(index.shape[0] if parts[p, 0] else 0):
            q = index[dimension, p]
            if q < 0:
                continue
            if not here[q, 0]:
                touched[count] = q
                count += 1
            for f in range(1 + len(FIGURE)):
                here[q, f] += parts[p, f]
        if p + 1 == group.size or group[p + 1] != group[p]:  # the sequence is complete
            for k in range(count):
                q = touched[k]
                n = here[q, 0]
                for f in range(len(FIGURE)):
                    s = here[q, 1 + f]
                    m = moments[engine[group[p]], q, f]
                    m[MOMENT.sequences] += 1
                    m[MOMENT.n] += n
                    m[MOMENT.s] += s
                    m[MOMENT.nn] += n * n
                    m[MOMENT.ss] += s * s
                    m[MOMENT.ns] += n * s
                here[q] = 0
            count = 0


def distinct_ids(ids: NDArray[np.int32], start: Ints, end: Ints, counts: Ints) -> None:
    """Count the distinct token ids of each slice; ids that share their low bits count once, so it is a lower bound.

    Args:
        ids: [tokens].
        start: first token of each slice [slices].
        end: token after its last [slices].
        counts: zeros [slices], filled in.
    """
    seen = np.zeros(HASHED_IDS, np.int64)
    for p in range(start.size):
        for i in range(start[p], end[p]):
            slot = ids[i] & (HASHED_IDS - 1)
            if seen[slot] != p + 1:
                seen[slot] = p + 1
                counts[p] += 1


class Loops(NamedTuple):
    """The loops above, compiled."""

    tokens: Any
    strata: Any
    distinct_ids: Any


@functools.cache
def compiled() -> Loops:
    """The loops as machine code; each is compiled when it is first called with arrays of a new type."""
    import numba

    def compile_(function: Any) -> Any:
        options = {"nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no directory for the cache is writable: every process compiles
            return numba.njit(**options)(function)

    return Loops(compile_(tokens), compile_(strata), compile_(distinct_ids))
