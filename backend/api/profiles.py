"""Where a gap lies, as viewers get it."""

from __future__ import annotations

import msgspec


class Profile(msgspec.Struct, frozen=True):
    """The gap along one dimension, per engine, for each label.

    Attributes:
        engines: tokens and the means of d, |d| and k3 (0 tokens: 0).
        spreads: over sequences the sums of 1, n n, s s and n s, of n tokens with the sum s of |d|, which an interval of
            |d| is made of (``intervals``) and which add up; None where they are not kept.
    """

    dimension: str
    labels: list[str]
    engines: dict[str, list[tuple[int, float, float, float]]]
    spreads: dict[str, list[tuple[float, float, float, float] | None]] = {}


class Mismatch(msgspec.Struct, frozen=True):
    """Of the steps ``first`` to ``last``, as far as kept: ``steps`` of them.

    ``bins`` counts tokens per engine by d: below -``edges[-2]``, ..., around 0 (|d| below ``edges[0]``), ..., above
    ``edges[-2]``. Tokens whose engine is not known are under an empty name; ``invalid`` have no finite d.
    """

    first: int
    last: int
    steps: int
    tokens: int
    invalid: int
    edges: list[float]
    bins: dict[str, list[int]]
    profiles: list[Profile]
