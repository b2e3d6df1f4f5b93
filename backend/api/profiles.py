"""Profiles and histogram of the gap as viewers get them. Pure data."""

from __future__ import annotations

import msgspec


class Profile(msgspec.Struct, frozen=True):
    """The gap along one dimension, per engine, for each label: an environment's name, or a stratum's label.

    Attributes:
        engines: number of tokens and means of d, |d| and k3 (0 without tokens).
        spreads: sums over sequences of 1, n n, s s and n s, for n tokens with sum s of |d|, which give the interval of
            |d| (``measure.intervals``) and add up; None if not kept.
    """

    dimension: str
    labels: list[str]
    engines: dict[str, list[tuple[int, float, float, float]]]
    spreads: dict[str, list[tuple[float, float, float, float] | None]] = {}


class Mismatch(msgspec.Struct, frozen=True):
    """The gap over the ``steps`` kept steps from ``first`` to ``last``.

    ``bins`` counts tokens per engine by d: below -``edges[-2]``, ..., around 0 (|d| below ``edges[0]``), ..., above
    ``edges[-2]``. Tokens of unknown engines are under an empty name; ``invalid`` tokens have no finite d.
    """

    first: int
    last: int
    steps: int
    tokens: int
    invalid: int
    edges: list[float]
    bins: dict[str, list[int]]
    profiles: list[Profile]
