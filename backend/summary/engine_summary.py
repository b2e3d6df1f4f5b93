"""The summary of one engine's tokens in one step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from rltop.backend.summary.environments import Environments
from rltop.backend.summary.gap import Gap
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.kernel import Floats
from rltop.backend.summary.moments import Regression, Sizes, Spread
from rltop.backend.summary.sequences import SequenceSummary
from rltop.backend.summary.strata import Strata


class AdvantageSums(NamedTuple):
    """Sums over the tokens with a valid d and a known advantage A."""

    n: int
    d: int  # A d
    abs_d: int  # |A| |d|
    size: int  # |A|
    negative: int  # tokens with A < 0
    positive: int  # tokens with A > 0


ADVANTAGE = AdvantageSums(*range(len(AdvantageSums._fields)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of the ratio outside which the trainer clips; per sequence for GSPO. ``+`` takes the wider of two."""

    low: float | None = None
    high: float | None = None
    by_sequence: bool = False

    def __add__(self, other: Bounds) -> Bounds:
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return Bounds(min(lows, default=None), max(highs, default=None), self.by_sequence or other.by_sequence)


@dataclass(slots=True)
class Summary:
    """Summary of the tokens of one engine, or of all engines, in one step.

    Everything covers the step's first update, except ``clip_low``, ``clip_high`` and ``unclipped``, which cover all.

    Attributes:
        gap: trainer - rollout. lag0: the same over tokens that the trainer's own version sampled (lag 0).
        backend: old - rollout, tokens whose old version is the rollout version. stale: old - rollout, other tokens.
        update: trainer - old.
        per_sequence: the gap over sequences. strata: the gap by stratum. matched: the version-matched gap by stratum,
            of the tokens in ``backend`` if there are old logprobs, else of those in ``lag0``. lag_regression: k3 on
            lag. groups: the gap by prompt. environments: the gap by environment.
        entropy, lag, lags: over tokens. reward: over sequences. advantage: [AdvantageSums].
        clip_low, clip_high: 1 if clipped; over tokens, for GSPO over sequences. bounds: the clip bounds.
        unclipped: 1 if neither, and in the loss; over tokens.
        weights: factors of the loss, over tokens. cut: 1 if the weight is 0; over tokens. cut_sequences: 1 if all
            weights of the sequence are; over sequences.
        cached: total = prompt tokens read from the prefix cache, n = prompt tokens, of joined rollouts.
        tokens, sequences: trained on. joinable: sequences with a trained token. joined: those with their rollouts.
        versions: over sequences with known token versions, the number of versions that sampled each. spanning: those
            with two or more.
        repetition_checked: sequences with a trained token whose ids are known. repetitive: those that end in a
            repetition.
        lag_expected: tokens for which the trainer gave its version, so that their lag can be known. lag_inferred: those
            whose lag comes from an engine's count of updates.
        requests: joined rollouts. aborted, failed, truncated: those ended by an abort (or by a stop string that the
            front end found), by an error, by the token limit.
    """

    gap: Gap = field(default_factory=Gap)
    lag0: Gap = field(default_factory=Gap)
    backend: Gap = field(default_factory=Gap)
    stale: Gap = field(default_factory=Gap)
    update: Gap = field(default_factory=Gap)
    per_sequence: SequenceSummary = field(default_factory=SequenceSummary)
    strata: Strata = field(default_factory=Strata)
    matched: Strata = field(default_factory=Strata)
    lag_regression: Regression = field(default_factory=Regression)
    groups: Groups = field(default_factory=Groups)
    entropy: Spread = field(default_factory=Spread)
    reward: Spread = field(default_factory=Spread)
    lag: Spread = field(default_factory=Spread)
    lags: Sizes = field(default_factory=Sizes)
    advantage: Floats = field(default_factory=lambda: np.zeros(len(ADVANTAGE)))
    clip_low: Spread = field(default_factory=Spread)
    clip_high: Spread = field(default_factory=Spread)
    bounds: Bounds = field(default_factory=Bounds)
    unclipped: Spread = field(default_factory=Spread)
    cached: Spread = field(default_factory=Spread)
    tokens: int = 0
    sequences: int = 0
    joinable: int = 0
    joined: int = 0
    versions: Spread = field(default_factory=Spread)
    spanning: int = 0
    repetition_checked: int = 0
    repetitive: int = 0
    lag_expected: int = 0
    lag_inferred: int = 0
    requests: int = 0
    aborted: int = 0
    failed: int = 0
    truncated: int = 0
    weights: Spread = field(default_factory=Spread)
    cut: Spread = field(default_factory=Spread)
    cut_sequences: Spread = field(default_factory=Spread)
    environments: Environments = field(default_factory=Environments)

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    # --- the noise floor --------------------------------------------------------------------------------------------

    @property
    def noise(self) -> float | None:
        """Standard deviation of the version-matched d: of ``backend``, else of ``lag0``; None without such tokens."""
        return self.backend.std if self.backend.n else self.lag0.std

    def noise_clip(self, *, high: bool) -> float | None:
        """Share that noise alone would clip on one side: d ~ N(0, noise^2), the side by the sign of the advantage.

        A GSPO sequence of T tokens has noise / sqrt(T). None without a bound, advantages or version-matched tokens.
        """
        bound = self.bounds.high if high else self.bounds.low
        s, n = self.noise, float(self.advantage[ADVANTAGE.n])
        if bound is None or s is None or not n or bound <= 0:
            return None
        side = float(self.advantage[ADVANTAGE.positive if high else ADVANTAGE.negative]) / n
        edge = math.log(bound) if high else -math.log(bound)
        if not self.bounds.by_sequence:
            return side * _beyond(edge, s)
        sizes, counts = self.per_sequence.sizes.values, self.per_sequence.sizes.counts
        trained = sizes >= 1
        if not trained.any():
            return None
        shares = [_beyond(edge, s / math.sqrt(size)) for size in sizes[trained]]
        return side * float(np.average(shares, weights=counts[trained]))


def _beyond(edge: float, s: float) -> float:
    """P(d > edge) for d ~ N(0, s^2)."""
    if s == 0:
        return 1.0 if edge < 0 else 0.0
    return 0.5 * math.erfc(edge / s / math.sqrt(2))
