"""The course of a version-matched gap over the steps since it began: which fault of the weights it is like. Pure.

The gap of weights that no update reaches grows as far as the trainer has moved; that of a part of the weights grows by
less. Weights that are late by k versions have a constant gap of k updates. A cast has a constant gap of the size of
rounding, whatever the updates are. Everything in between stays undecided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.evidence.evidence_arrays import EvidenceArrays
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM

GROWS, CONSTANT, OPEN = "grows", "constant", "open"
"""The courses; open: too early to tell."""

WORDS = {GROWS: "it grows", CONSTANT: "it is constant", OPEN: "too early to tell whether it grows"}

MEANING = {
    "frozen": "as of weights that no update reaches",
    "partial": "as of weights of which a part is not updated",
    "late": "as of weights that are late by {}",
    "rounding": "of the size of rounding to 16 bits, and small against an update",
    "constant": "as of weights that are late by {}, or of rounding to 16 bits",
}
"""What an outcome of ``fit`` is like; {} is a number of versions."""

MIN_COURSE, MIN_CONSTANT = 5, 10
"""Fewest steps with a gap that determine its course, and that make it constant: a policy that learns fast
leaves its first weights in a few steps, and stays as far from them."""

SLOPE, ERRORS = 0.5, 2.0
"""Slope of the log of the gap on the log of the steps since it began: 1 to 2 if weights are frozen, 0 of a constant
gap. It is decided if it is this many standard errors from the middle."""

WHOLE, PART = 0.25, 0.1
"""Share of the trainer's path, its drift added up over all updates since the gap began, that the gap has at least if
all weights are frozen (0.3 to 3 in recorded runs), and at most if a part is (0.01 to 0.05; 0.02 to 0.08 of a stale
prefix)."""

FIRST_UPDATE = 0.4
"""The gap after the first update, in its drifts, from which all weights are frozen: then it is 1, give or take.
It is read from the line through the course; the share of the path alone may be as high if a large part is frozen.
"""

MOST_LATE = 5.0
"""Updates from which a gap that does not grow is of frozen weights whose drift has levelled off, rather than of late
ones."""

LATE = 0.5
"""Updates that a constant gap is worth at least if weights are late by a version."""

EVERYWHERE = 0.9
"""Share of sequences that have the gap if it is of all weights: a stale prefix is in some requests only."""


@dataclass(frozen=True)
class Course:
    """The course of a gap: ``how`` it goes on, and its size in k3 after the first update, plus a standard error."""

    how: str
    first: float = 0.0


def course(arrays: EvidenceArrays, steps: NDArray[np.int64], lag: float) -> Course:
    """Whether the gap grows with the steps since it began.

    Args:
        arrays: of a run or engine.
        steps: indices of those with matched tokens since the gap began.
        lag: versions of an update, at which ``first`` is.
    """
    moments = arrays.moments[steps, FIGURE.matched_k3]
    there = moments[:, MOMENT.s] > 0
    if there.sum() < MIN_COURSE:
        return Course(OPEN)
    since = (arrays.first + arrays.last)[steps][there] / 2 - float(arrays.first[steps[0]]) + 1
    x, y = np.log(since), np.log(moments[there, MOMENT.s] / moments[there, MOMENT.n])
    back, level = math.log(lag) - float(x.mean()), float(y.mean())
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    spread = float(np.sum((y - slope * x) ** 2)) / (x.size - 2)
    error = math.sqrt(spread / float(x @ x))
    how = OPEN if abs(slope - SLOPE) < ERRORS * error else GROWS if slope > SLOPE else CONSTANT
    if how == CONSTANT and x.size < MIN_CONSTANT:
        how = OPEN
    error_back = math.sqrt(spread / x.size + (back * error) ** 2)
    return Course(how, math.exp(level + slope * back + error_back))


def outcome(how: Course, drift: float, share: float, updates: float, late: EvidenceArrays, most_rounding: float) -> str:
    """The outcome of ``fit``; empty if the course fits none.

    Args:
        how: the course.
        drift: of the first updates since the gap began.
        share: the gap as a share of the trainer's path since then.
        updates: the gap in units of recent updates.
        late: the latest steps.
        most_rounding: the largest normalised RMS gap that rounding to 16 bits causes.
    """
    if share >= WHOLE and how.first >= FIRST_UPDATE * drift and (how.how == GROWS or updates >= MOST_LATE):
        return "frozen"
    if how.how == GROWS:
        return "partial" if share <= PART else ""
    if how.how == OPEN or share >= WHOLE or not _is_everywhere(late):
        return ""
    is_fine = _size(late) <= most_rounding
    if updates >= LATE:
        return "constant" if is_fine else "late"
    return "rounding" if is_fine else ""


def _is_everywhere(arrays: EvidenceArrays) -> bool:
    """Whether nearly all sequences have the gap."""
    rows = arrays.moments[:, FIGURE.matched_d2, MOMENT.sequences].sum()
    off = np.maximum(arrays.sums[:, SUM.sequences_below], arrays.sums[:, SUM.sequences_above]).sum()
    return bool(off >= EVERYWHERE * rows)


def _size(arrays: EvidenceArrays) -> float:
    """The normalised RMS gap."""
    square, complement = arrays.moments[:, FIGURE.matched_d2, MOMENT.s].sum(), arrays.sums[:, SUM.complement].sum()
    return math.sqrt(square / max(float(complement), 1e-9))
