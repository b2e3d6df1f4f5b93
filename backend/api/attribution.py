"""What a viewer sees of where the gap comes from. Pure data; ``rltop.backend.gaps.attribute`` makes it."""

from __future__ import annotations

import msgspec


class Interval(msgspec.Struct, frozen=True):
    """A mean over tokens with its 95 % interval, whole sequences taken as independent; None with fewer than two."""

    mean: float
    low: float | None = None
    high: float | None = None


class Stratum(msgspec.Struct, frozen=True):
    """The gap of the tokens of one stratum, ``d = trainer - rollout``.

    Attributes:
        dimension: what tells tokens apart: a name of ``summary.dimensions``, or engine, flag_epoch, prompt.
        label: which of them. engine: of one engine alone; None of all.
        tokens, sequences: how many; a sequence counts in every stratum that it has tokens in.
        diff, abs_diff, k3: in nats. ratio: mean exp(d). None where not kept.
        abs_diff_per_1_minus_p: of a stratum of probability, sum of |d| over the sum of 1 - p, in nats.
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
    """The line ``k3 = at_lag0 + per_lag * lag`` over tokens of an engine (None: of all).

    Attributes:
        at_lag0: nats. per_lag: nats per version. None where the lags do not allow to tell.
        lags: between which they are, but for one token in twenty at either end.
        why: what keeps either from being told; empty if nothing does.
    """

    at_lag0: Interval | None
    per_lag: Interval | None
    sequences: int
    engine: str | None = None
    lags: tuple[int, int] = (0, 0)
    why: str = ""


class Attribution(msgspec.Struct, frozen=True):
    """Where the gap comes from, over a window of steps.

    Attributes:
        steps: numbers of the steps, oldest first.
        strata: of all tokens. matched: of version-matched ones alone: staleness is taken out.
        matched_by: ``old``: old - rollout under the version that sampled; ``lag0``: trainer - rollout of tokens that
            the trainer's own version sampled, an estimate; None where nothing is matched.
        lines: of all, then of each engine, where tokens have more than one lag; not each can be told.
    """

    steps: list[int]
    strata: list[Stratum]
    matched: list[Stratum]
    matched_by: str | None
    lines: list[LagRegression]
