"""The summary of the tokens of one engine, or of all, in one step. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np

from rltop.backend.summary.gap import Gap
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.kernel import Floats
from rltop.backend.summary.moments import Regression, Sizes, Spread
from rltop.backend.summary.sequences import SequenceSummary
from rltop.backend.summary.strata import Strata

ADV_N, ADV_D, ADV_ABS, ADV, ADV_LOW, ADV_HIGH = range(6)
"""Sums over tokens with a valid d and a known advantage A: 1, A d, |A| |d|, |A|, and where A < 0 and A > 0."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of the ratio outside which the trainer clips, the widest of several; by sequence for GSPO."""

    low: float | None = None
    high: float | None = None
    by_sequence: bool = False

    def __add__(self, other: Bounds) -> Bounds:
        lows = [low for low in (self.low, other.low) if low is not None]
        highs = [high for high in (self.high, other.high) if high is not None]
        return Bounds(min(lows, default=None), max(highs, default=None), self.by_sequence or other.by_sequence)


@dataclass(slots=True)
class Summary:
    """What is kept of the tokens of one engine (or of all) in one step.

    All but the clip rates and ``kept``, which are of all updates, is of update 0.

    Attributes:
        gap: trainer - rollout. fresh: of those, tokens that the trainer's own version sampled (lag 0).
        backend: old - rollout where the old version is the rollout version. stale: old - rollout elsewhere.
        update: trainer - old.
        whole: the gap over whole sequences. strata: the gap told apart. matched: likewise of what is version-matched:
            ``backend`` where there are old logprobs, ``fresh`` where not. line: k3 on lag. groups: by prompt.
        entropy, lag, lags: over tokens. reward: over sequences. advantage: as ``ADV_N`` to ``ADV_HIGH`` name them.
        clip_low, clip_high: 1 where clipped; over tokens, for GSPO over sequences. bounds: what they were reckoned by.
        kept: 1 where neither; over tokens.
        cached: total = prompt tokens read from the cache, n = prompt tokens, of joined rollouts.
        tokens, sequences: trained on. joinable: sequences with a trained token. joined: of those, with their rollouts.
        versions: over sequences with known token versions, how many sampled each. spanning: of those, by two or more.
        read: sequences with a trained token whose ids are known. repeating: of those, that end in a repetition.
        dated: tokens whose lag could be known, the trainer having told its version.
        requests: joined rollouts. aborted, failed, truncated: of those, ended by an abort (also by a stop string found
            in the front end), by an error, by the limit of tokens.
    """

    gap: Gap = field(default_factory=Gap)
    fresh: Gap = field(default_factory=Gap)
    backend: Gap = field(default_factory=Gap)
    stale: Gap = field(default_factory=Gap)
    update: Gap = field(default_factory=Gap)
    whole: SequenceSummary = field(default_factory=SequenceSummary)
    strata: Strata = field(default_factory=Strata)
    matched: Strata = field(default_factory=Strata)
    line: Regression = field(default_factory=Regression)
    groups: Groups = field(default_factory=Groups)
    entropy: Spread = field(default_factory=Spread)
    reward: Spread = field(default_factory=Spread)
    lag: Spread = field(default_factory=Spread)
    lags: Sizes = field(default_factory=Sizes)
    advantage: Floats = field(default_factory=lambda: np.zeros(6))
    clip_low: Spread = field(default_factory=Spread)
    clip_high: Spread = field(default_factory=Spread)
    bounds: Bounds = field(default_factory=Bounds)
    kept: Spread = field(default_factory=Spread)
    cached: Spread = field(default_factory=Spread)
    tokens: int = 0
    sequences: int = 0
    joinable: int = 0
    joined: int = 0
    versions: Spread = field(default_factory=Spread)
    spanning: int = 0
    read: int = 0
    repeating: int = 0
    dated: int = 0
    requests: int = 0
    aborted: int = 0
    failed: int = 0
    truncated: int = 0

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    # --- the noise floor --------------------------------------------------------------------------------------------

    @property
    def noise(self) -> float | None:
        """Standard deviation of the version-matched d: of ``backend``, else of ``fresh``; None where there is none."""
        return self.backend.std if self.backend.n else self.fresh.std

    def noise_clip(self, *, high: bool) -> float | None:
        """Share that noise alone would clip on one side: d ~ N(0, noise^2), sides by the signs of the advantages.

        A GSPO sequence of T tokens has noise / sqrt(T). None without a bound, advantages or version-matched tokens.
        """
        bound = self.bounds.high if high else self.bounds.low
        s, told = self.noise, float(self.advantage[ADV_N])
        if bound is None or s is None or not told or bound <= 0:
            return None
        side = float(self.advantage[ADV_HIGH if high else ADV_LOW]) / told
        edge = math.log(bound) if high else -math.log(bound)
        if not self.bounds.by_sequence:
            return side * _beyond(edge, s)
        sizes, counts = self.whole.sizes.values, self.whole.sizes.counts
        there = sizes >= 1
        if not there.any():
            return None
        shares = [_beyond(edge, s / math.sqrt(size)) for size in sizes[there]]
        return side * float(np.average(shares, weights=counts[there]))


def _beyond(edge: float, s: float) -> float:
    """P(d > edge) for d ~ N(0, s^2)."""
    if s == 0:
        return 1.0 if edge < 0 else 0.0
    return 0.5 * math.erfc(edge / s / math.sqrt(2))
