"""The attribution of the gap as viewers get it. Pure data; ``rltop.backend.gaps.attribute`` computes it."""

from __future__ import annotations

import msgspec


class Interval(msgspec.Struct, frozen=True):
    """A mean over tokens with its 95 % interval, clustered by sequence; no interval with fewer than two sequences."""

    mean: float
    low: float | None = None
    high: float | None = None


class Stratum(msgspec.Struct, frozen=True):
    """The gap of the tokens of one stratum, ``d = trainer - rollout``.

    Attributes:
        dimension: a name of ``summary.dimensions``, or engine, environment, flag_epoch, prompt.
        label: of the stratum. engine: of this engine alone; None for all.
        tokens, sequences: their numbers; a sequence counts in every stratum in which it has tokens.
        diff, abs_diff, k3: in nats. ratio: mean exp(d). None if not kept.
        abs_diff_per_1_minus_p: for a stratum of probability, sum of |d| over the sum of 1 - p, in nats.
    """

    dimension: str
    label: str
    tokens: int
    sequences: int
    abs_diff: Interval
    k3: Interval
    ratio: Interval
    diff: Interval | None = None
    engine: str | None = None
    abs_diff_per_1_minus_p: float | None = None


class LagRegression(msgspec.Struct, frozen=True):
    """The regression ``k3 = at_lag0 + per_lag * lag`` over the tokens of an engine (None: of all).

    Attributes:
        at_lag0: nats. per_lag: nats per version. None if the lags do not support an estimate.
        lags: range of the lags, leaving out less than one token in twenty on either side.
        why: reason that one of them is None; empty if both are given.
    """

    at_lag0: Interval | None
    per_lag: Interval | None
    sequences: int
    engine: str | None = None
    lags: tuple[int, int] = (0, 0)
    why: str = ""


class Attribution(msgspec.Struct, frozen=True):
    """The breakdown of the gap over a window of steps.

    Attributes:
        steps: numbers of the steps, oldest first.
        strata: of all tokens. matched: of version-matched tokens alone, without staleness.
        matched_by: ``old``: old - rollout under the version that sampled; ``lag0``: trainer - rollout of tokens that
            the trainer's own version sampled, an estimate; None if no token is matched.
        lines: of all tokens, then of each engine, if tokens have more than one lag.
    """

    steps: list[int]
    strata: list[Stratum]
    matched: list[Stratum]
    matched_by: str | None
    lines: list[LagRegression]
