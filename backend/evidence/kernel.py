"""The compiled loop over tokens that evidence is made by, and where everything stands in the arrays it fills.

As ``rltop.backend.summary.kernel``: all constants that the loop uses stand here, because the kept code is renewed when
this file changes and not when another does.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLAMP, BOUND, NEAR = 20.0, 3.5e38, 0.125
"""As in the summaries' kernel."""

ZERO_GAP = 0.5
"""A recorded 0.0 is suspect where the trainer's logprob is further below 0: float32 leaves 0.0 of a p near 1."""

FILLER = -9998.0
"""At or below it a logprob is a filler (``rltop.backend.join.copies``)."""

BETS = (0.02, 0.1, 0.3, 0.6, 0.9)
DOWN = (-0.01, -0.04)
"""Stakes of the betting test of the mean ratio (T1), on a ratio above 1 and below it. The first must be below 1, as the
ratio minus 1 is never below -1; the others above -1 / CLAMP, where the ratio minus 1 is held to CLAMP."""

SURPRISE = (0.01, 0.04, -0.01, -0.04)
"""Stakes of that of surprisal against entropy (T5), which is held to CLAMP on both sides."""

FOLD = 64
"""After so many tokens a product of wealth becomes a logarithm: a factor is 0.1 to 19, so it stays in range."""

FAR = 0.2
"""A matched |d| beyond COARSE or this is counted: no rounding of float32, none of 16 bits makes it often (floor)."""

FINE, COARSE = 1e-3, 2e-2
"""Sizes beyond which a d has a sign (T3): far above what float32 rounds, and four times what bfloat16 logits do."""

PEAK, NARROW = 0.4, 0.2
"""Nats. With an entropy below the first the likeliest token has at least exp(-H) = 0.67, so a sampled token is that one
if and only if it has more than a half (T4). The second parts these contexts in two."""

OLD, FRESH = 1, 2
"""What a matched token's d is: of the old logprob under the version that sampled it, or of the trainer's at lag 0."""

HIT, MISS, BEFORE, AFTER = 1, 2, 4, 8
"""Bits of a piece's labels: whether its request read the prefix cache; before or after an update in flight."""

# Figures: of each there are six sums over sequences, of 1, n, s, n n, s s and n s, for n tokens and their sum s.
(
    X, D, K3, SURPRISAL, ENTROPY, M_D, M_ABS, M_DD, M_K3, M_X, M_BEYOND, M_FAR, M_E, M_DE, M_EE, M_HIT, M_MISS,
    M_BEFORE, M_AFTER, DRIFT,
) = range(20)  # fmt: skip
FIGURES = 20
MOMENTS = 6

# Plain sums over tokens.
(
    N, FILLED, ZEROED, MATCHED, BY_OLD, ROOM, TAIL, FINE_BELOW, FINE_ABOVE, COARSE_BELOW, COARSE_ABOVE, BELOW_ROWS,
    ABOVE_ROWS, OTHER, OTHER_DUE, OTHER_NARROW, OTHER_NARROW_DUE, LAG,
) = range(18)  # fmt: skip
WEALTH = 18
"""First of the log-wealths: of the stakes BETS over all tokens, of BETS over matched tokens, of DOWN over all, and of
SURPRISE over those with an entropy."""
ACCOUNTS = 2 * len(BETS) + len(DOWN) + len(SURPRISE)
SUMS = WEALTH + ACCOUNTS

NEIGHBOURS = 16
"""First tokens of each piece that displacements are tried at: enough, and a third of the loop's time if it were all."""

SHIFTS = (-2, -1, 0, 1, 2)
"""Displacements that alignment is tried at (T6): the trainer's logprob against the record's of so many tokens on."""


def tokens(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    old: NDArray[np.float32],
    entropy: NDArray[np.float32],
    start: Ints,
    end: Ints,
    first: Ints,
    last: Ints,
    matched: Ints,
    labels: Ints,
    lag: Floats,
    position: Ints,
    place: Ints,
    group: Ints,
    moments: Floats,
    sums: Floats,
    extremes: Floats,
    aligned: Floats,
    profile: Floats,
) -> None:
    """Add the tokens of all pieces to ``moments``, ``sums``, ``extremes``, ``aligned`` and ``profile``.

    Args:
        left: logprobs [tokens], the trainer's.
        right: the record's.
        old: the trainer's under an old version; empty if there are none.
        entropy: likewise, the trainer's.
        start: of each piece of tokens that were sampled alike [pieces].
        end: likewise.
        first: where the piece's stretch of tokens starts, within which neighbours were sampled one after the other.
        last: where it ends.
        matched: 0, OLD or FRESH.
        labels: bits HIT to AFTER.
        lag: versions, NaN if not known.
        position: bin of the place in the sequence.
        place: engine.
        group: sequence of each piece, rising.
        moments: [places, FIGURES, MOMENTS].
        sums: [places, SUMS].
        extremes: [places, 2 or more], least and greatest matched d.
        aligned: [places, SHIFTS, 2], tokens and the sum of absolute differences.
        profile: [places, bins, 3], of matched tokens: how many, the sum of d d (held to 1), the sum of 1 - p.
    """
    here = np.zeros((FIGURES, 2))
    wealth = np.ones(ACCOUNTS)
    stakes, down, surprise = np.array(BETS), np.array(DOWN), np.array(SURPRISE)
    bets = stakes.size
    third = 2 * bets + down.size
    below = above = False
    for p in range(start.size):
        q = place[p]
        s, a_, prof = sums[q], aligned[q], profile[q, position[p]]
        kind, label = matched[p], labels[p]
        for i in range(start[p], end[p]):
            t, r = float(left[i]), float(right[i])
            if not (abs(t) < BOUND and abs(r) < BOUND) or r <= FILLER:
                s[FILLED] += 1
                continue
            d = t - r
            h = min(max(d, -CLAMP), CLAMP)
            if abs(h) < NEAR:
                k3 = h * h * (1 / 2 + h * (1 / 6 + h * (1 / 24 + h * (1 / 120 + h * (1 / 720 + h / 5040)))))
                x = h + k3
            else:
                x = math.expm1(h)
                k3 = x - h
            w = 1 + x
            s[N] += 1
            s[ZEROED] += (r == 0.0) & (t < -ZERO_GAP)
            here[X, 0] += 1
            here[X, 1] += x
            here[D, 1] += h
            here[K3, 1] += k3
            for b in range(bets):
                wealth[b] *= 1 + stakes[b] * min(x, CLAMP)
            for b in range(down.size):
                wealth[2 * bets + b] *= 1 + down[b] * min(x, CLAMP)
            for k in range(5 if i - start[p] < NEIGHBOURS else 0):
                j = i + k - 2
                if first[p] <= j < last[p]:
                    off = abs(t - float(right[j]))
                    if off < BOUND:
                        a_[k, 0] += 1
                        a_[k, 1] += off
            e = math.nan
            if entropy.size:
                e = float(entropy[i])
                if abs(e) < BOUND:
                    here[ENTROPY, 0] += 1
                    here[ENTROPY, 1] += e
                    here[SURPRISAL, 0] += 1
                    u = w * (-t - e)
                    here[SURPRISAL, 1] += u
                    u = min(max(u, -CLAMP), CLAMP)
                    for b in range(surprise.size):
                        wealth[third + b] *= 1 + surprise[b] * u
                    if e < PEAK:
                        top = math.exp(min(t, 0.0))
                        other = top < 0.5
                        due = 0.0 if other else (1 - top) / top
                        if e < NARROW:
                            s[OTHER_NARROW] += other
                            s[OTHER_NARROW_DUE] += due
                        else:
                            s[OTHER] += other
                            s[OTHER_DUE] += due
                    e = -r - e
                else:
                    e = math.nan
            if not (i - start[p]) % FOLD:
                for b in range(ACCOUNTS):
                    s[WEALTH + b] += math.log(wealth[b])
                    wealth[b] = 1
            if not kind:
                continue
            m = d
            if kind == OLD:
                o = float(old[i])
                if not abs(o) < BOUND:
                    continue
                m = o - r
                u = min(max(t - o, -CLAMP), CLAMP)
                here[DRIFT, 0] += 1
                if abs(u) < NEAR:
                    here[DRIFT, 1] += u * u * (1 / 2 + u * (1 / 6 + u * (1 / 24 + u * (1 / 120 + u / 720))))
                else:
                    here[DRIFT, 1] += math.expm1(u) - u
                s[BY_OLD] += 1
                if lag[p] == lag[p]:
                    s[LAG] += lag[p]
            v = min(max(m, -CLAMP), CLAMP)
            if abs(v) < NEAR:
                k3 = v * v * (1 / 2 + v * (1 / 6 + v * (1 / 24 + v * (1 / 120 + v * (1 / 720 + v / 5040)))))
                x = v + k3
            else:
                x = math.expm1(v)
                k3 = x - v
            room = 1 - math.exp(min(r, 0.0))
            square = min(v * v, 1.0)
            size = min(abs(v), 1.0)
            s[MATCHED] += 1
            s[ROOM] += room
            s[TAIL] += abs(v) > math.log(2)
            s[FINE_BELOW] += v < -FINE
            s[FINE_ABOVE] += v > FINE
            s[COARSE_BELOW] += v < -COARSE
            s[COARSE_ABOVE] += v > COARSE
            below |= v < -FINE
            above |= v > FINE
            extremes[q, 0] = min(extremes[q, 0], v)
            extremes[q, 1] = max(extremes[q, 1], v)
            here[M_D, 0] += 1
            here[M_D, 1] += v
            here[M_ABS, 1] += abs(v)
            here[M_DD, 1] += v * v
            here[M_K3, 1] += k3
            here[M_X, 1] += x
            here[M_BEYOND, 1] += abs(v) > COARSE
            here[M_FAR, 1] += abs(v) > FAR
            if e == e:
                here[M_DE, 0] += 1
                here[M_E, 1] += e
                here[M_DE, 1] += v * e
                here[M_EE, 1] += e * e
            if label & HIT:
                here[M_HIT, 0] += 1
                here[M_HIT, 1] += size
            if label & MISS:
                here[M_MISS, 0] += 1
                here[M_MISS, 1] += size
            if label & BEFORE:
                here[M_BEFORE, 0] += 1
                here[M_BEFORE, 1] += size
            if label & AFTER:
                here[M_AFTER, 0] += 1
                here[M_AFTER, 1] += size
            for b in range(bets):
                wealth[bets + b] *= 1 + stakes[b] * min(x, CLAMP)
            prof[0] += 1
            prof[1] += square
            prof[2] += room
        for b in range(ACCOUNTS):
            s[WEALTH + b] += math.log(wealth[b])
            wealth[b] = 1
        if p + 1 == group.size or group[p + 1] != group[p]:
            here[D, 0] = here[K3, 0] = here[X, 0]
            here[M_ABS, 0] = here[M_DD, 0] = here[M_K3, 0] = here[M_X, 0] = here[M_D, 0]
            here[M_BEYOND, 0] = here[M_FAR, 0] = here[M_D, 0]
            here[M_EE, 0] = here[M_E, 0] = here[M_DE, 0]
            for f in range(FIGURES):
                n, total = here[f, 0], here[f, 1]
                if n:
                    m_ = moments[q, f]
                    m_[0] += 1
                    m_[1] += n
                    m_[2] += total
                    m_[3] += n * n
                    m_[4] += total * total
                    m_[5] += n * total
                here[f] = 0
            s[BELOW_ROWS] += below
            s[ABOVE_ROWS] += above
            below = above = False


@functools.cache
def compiled() -> Any:
    """The loop as machine code; compiled for a type of array when it first comes."""
    import numba

    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(tokens)
    except RuntimeError:  # nowhere to keep the code: every process compiles anew
        return numba.njit(**options)(tokens)


def warm() -> None:
    """Have the loop compiled, or its kept code loaded."""
    nothing, none = np.zeros(0, np.int64), np.zeros(0, np.float32)
    none.flags.writeable = False
    compiled()(
        none, none, none, none, *[nothing] * 6, nothing.astype(np.float64), *[nothing] * 3,
        np.zeros((1, FIGURES, MOMENTS)), np.zeros((1, SUMS)), np.zeros((1, 2)), np.zeros((1, len(SHIFTS), 2)),
        np.zeros((1, 1, 3)),
    )  # fmt: skip
