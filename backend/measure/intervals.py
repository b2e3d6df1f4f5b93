"""Means over tokens with confidence intervals, from sums over sequences, the independent units. Pure."""

from __future__ import annotations

import math

from rltop.backend.api.attribution import Interval

_Z = 1.96


def estimate(moments: tuple[float, ...]) -> Interval:
    """Mean and interval from the sums (``kernel.Moments``) over sequences of 1, n, s, n n, s s, n s."""
    m, n, s, nn, ss, ns = moments
    mean = s / n
    if m < 2:
        return Interval(mean)
    variance = max(ss - 2 * mean * ns + mean * mean * nn, 0.0) / n**2 * m / (m - 1)
    return interval(mean, math.sqrt(variance), int(m))


def interval(mean: float, error: float, sequences: int) -> Interval:
    """95 % interval of a mean by Student's t with ``sequences - 1`` degrees of freedom, expanded about z."""
    free = max(sequences - 1, 1)
    z = _Z
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return Interval(mean, mean - t * error, mean + t * error)
