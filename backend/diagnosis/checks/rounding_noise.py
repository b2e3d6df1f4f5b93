"""A bound on rounding from a run's first sequences, and a bet on sequences beyond a bound. Pure.

The bound that dtypes imply holds for any machine and model. The rounding of one run is often far finer and stays so,
since neither dtypes nor kernels change with the weights. So the gap of the first sequences, times ``WIDER``, is a bound
too, if it is lower. A fault that is present from the start raises this bound above that of the dtypes, which then
applies.
"""

from __future__ import annotations

import math

import numpy as np

from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats
from rltop.backend.fleet.rounding import FINEST, WIDER

BASE_SEQUENCES = 32
"""First sequences with matched tokens that the run's rounding is estimated from."""


def bound_of_first_steps(run: EvidenceArrays, declared: float) -> float:
    """The bound on the normalised RMS gap of rounding, from the first sequences; at most ``declared``.

    Args:
        run: evidence of all engines.
        declared: the bound that the dtypes imply.
    """
    rows = square = complement = 0.0
    for step in range(run.steps):
        rows += run.moments[step, FIGURE.matched_d2, MOMENT.sequences]
        square += run.moments[step, FIGURE.matched_d2, MOMENT.s]
        complement += run.sums[step, SUM.complement]
        if rows >= BASE_SEQUENCES:
            break
    else:
        return declared
    own = math.sqrt(square / max(complement, 1e-9))
    return min(declared, max(WIDER * own, FINEST * declared))


STRAY = 0.02
"""Share of sequences that may have a token beyond any bound: near ties that occasionally fall the other way."""

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
"""Shares of sequences that are bet on."""


def bet_on_sequences(arrays: EvidenceArrays, least: float) -> tuple[float, int]:
    """Log evidence that more sequences have a version-matched |d| beyond FINE than rounding causes, and its start.

    With a normalised RMS gap of ``least``, at most ``n (least / FINE)^2 (1 - p)`` of n tokens are beyond FINE
    (Chebyshev), which bounds the share of sequences with such a token; the bound is at least ``STRAY``. A sequence
    multiplies wealth by a likelihood ratio whose expectation under any rounding is at most 1, even if sequences of a
    group depend on each other. The bet is uninformative for rounding close to FINE.
    """
    rows, complement = arrays.moments[:, FIGURE.matched_d2, MOMENT.sequences], arrays.sums[:, SUM.complement]
    beyond = np.minimum(np.maximum(arrays.sums[:, SUM.sequences_below], arrays.sums[:, SUM.sequences_above]), rows)
    share = np.maximum((least / kernel.FINE) ** 2 * complement / np.maximum(rows, 1.0), STRAY)
    gains = [
        np.where(share < s, _log_likelihood(beyond, rows, s) - _log_likelihood(beyond, rows, share), 0.0)
        for s in SHARES
    ]
    return sequential.bets(np.stack(gains, axis=1), arrays.first)


def _log_likelihood(some: Floats, of: Floats, share: Floats | float) -> Floats:
    share = np.clip(share, 1e-9, 1 - 1e-9)
    found: Floats = some * np.log(share) + (of - some) * np.log(1 - share)
    return found
