"""What rounding makes of a run's own matched gap, and the bet on sequences that are beyond it. Pure.

The size that dtypes imply is that of any machine and model. One run's rounding is far finer often, and stays: nothing
about dtypes or kernels changes with the weights. So what a run shows in its first sequences, times ``WIDER``, is a
bound as well, where it is the lower one. A fault that is there from the start makes this bound higher than that of the
dtypes, which then holds alone.
"""

from __future__ import annotations

import math

import numpy as np

from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats

BASE_SEQUENCES = 32
"""Sequences with matched tokens, from the first step on, that say how large a run's rounding is."""

WIDER = 10.0
"""By so much may rounding grow: in healthy runs of the demo a step's was 5.5 times that of the first step at most,
where the policy had become sure of nearly all tokens."""

FINEST = 0.01
"""Of the size that dtypes imply no less counts as rounding, however fine the first steps were: a logprob of -30 in
float32 is a multiple of 2e-6, whatever room there is for a difference."""


def usual(run: EvidenceArrays, declared: float) -> float:
    """Root mean square of d per root of the mean room that a run's rounding stays below, nats; at most ``declared``.

    Args:
        run: all engines together.
        declared: the same as the dtypes imply it.
    """
    rows = square = room = 0.0
    for step in range(run.steps):
        rows += run.moments[step, FIGURE.matched_d2, MOMENT.sequences]
        square += run.moments[step, FIGURE.matched_d2, MOMENT.s]
        room += run.sums[step, SUM.room]
        if rows >= BASE_SEQUENCES:
            break
    else:
        return declared
    own = math.sqrt(square / max(room, 1e-9))
    return min(declared, max(WIDER * own, FINEST * declared))


STRAY = 0.02
"""Share of sequences that may have a token beyond any bound: a near tie that falls the other way now and then."""

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
"""Shares that are bet on."""


def bet_on_sequences(arrays: EvidenceArrays, least: float) -> tuple[float, int]:
    """Evidence that more sequences have a matched d beyond ``loop.FINE`` than rounding of that size makes.

    Rounding of root mean square ``least`` per root of room makes ``n (least / FINE)^2 room`` of n tokens at most
    (Chebyshev), so that share of sequences with any; or ``STRAY``. Wealth is multiplied by the ratio of the likelihoods
    of each sequence's having one: whatever rounding looks like, it expects 1 or less, also where sequences of a group
    go together. Of rounding that is near ``FINE`` itself it says nothing.
    """
    rows, room = arrays.moments[:, FIGURE.matched_d2, MOMENT.sequences], arrays.sums[:, SUM.room]
    beyond = np.minimum(np.maximum(arrays.sums[:, SUM.sequences_below], arrays.sums[:, SUM.sequences_above]), rows)
    share = np.maximum((least / kernel.FINE) ** 2 * room / np.maximum(rows, 1.0), STRAY)
    gains = [np.where(share < s, _likelihood(beyond, rows, s) - _likelihood(beyond, rows, share), 0.0) for s in SHARES]
    return sequential.bets(np.stack(gains, axis=1), arrays.first)


def _likelihood(some: Floats, of: Floats, share: Floats | float) -> Floats:
    share = np.clip(share, 1e-9, 1 - 1e-9)
    found: Floats = some * np.log(share) + (of - some) * np.log(1 - share)
    return found
