"""Deterministic checks of the versions that trained tokens were sampled by. Pure.

A version is read from the rollouts that an engine finishes, over several consecutive steps. The version that an engine
reports is up to a second old, and an update takes a moment: in a fast run that is many versions. A report can only show
that an engine has moved on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import certain, first_step, unknown
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE
from rltop.backend.evidence.sequential import RECOVERY_STEPS, Ints
from rltop.backend.summary.dimensions import MAX_LAG

Lags = np.ndarray[tuple[int], np.dtype[np.float64]]
"""A lag or a version by step."""

MAX_SKEW = 2
"""Versions that an engine may be behind the others: a rolling update passes through 1."""

MIN_STREAK, MAX_STREAK = 4, 5
"""Steps in a row in which the rollouts of one engine, or of a whole fleet, may have one version, or twice the longest
earlier streak: some runs update weights every few steps only."""

REPORTED_S = 3.0
"""Seconds that a streak lasts at least: engines report their version once a second."""


@dataclass(frozen=True)
class _Streak:
    """The latest steps in which no newer version was seen among the rollouts of an engine.

    Attributes:
        version: the newest, in updates of the trainer since the first step.
        lag: versions that it is behind the trainer.
        steps: numbers of these steps. usual: length of the longest earlier streak; 0 if no version has risen.
        rise: updates of the trainer since the first of these steps. seconds: time since then.
    """

    version: float
    lag: float
    steps: Ints
    usual: int
    rise: float
    seconds: float

    @property
    def since(self) -> int:
        """The step in which a newer version was due."""
        return int(self.steps[min(self.usual, self.steps.size - 1)])


def versions(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``versions``: engines whose rollouts keep one version while those of others advance; or all, for too long."""
    streaks = {name: streak for name in evidence.engines if (streak := _streak(evidence, name))}
    if not streaks:
        yield unknown("versions", "no rollouts of a known version yet")
        return
    reported = {engine.id: engine.lag for engine in evidence.input.engines.values() if engine.health != "gone"}
    usual = max(streak.usual for streak in streaks.values())
    held = {name: own for name, own in streaks.items() if _has_stayed(own, reported.get(name))}
    newest = max(streak.version for streak in streaks.values())
    whole = len(held) == len(streaks) and all(own.steps.size > max(MAX_STREAK, 2 * usual) for own in held.values())
    odd = 0
    for name, own in held.items():
        alone = own.steps.size >= max(MIN_STREAK, 2 * usual + 1) and newest - own.version > MAX_SKEW
        if alone or whole:
            odd += 1
            text = f"rollouts of {name} in the last {own.steps.size} steps have one version, {own.lag:g} older than the"
            text += " trainer's"
            text += "" if whole else f"; those of another engine are {newest - own.version:g} newer"
            yield certain("versions", "stuck", own.since, name, 0, text, "", value=own.lag)
    if not odd:
        text = f"rollouts are at most {max(own.lag for own in streaks.values()):g} versions behind the trainer"
        yield certain("versions", "advance", None, None, 0, text, "", value=max(own.lag for own in streaks.values()))


def _has_stayed(streak: _Streak, reported: int | None) -> bool:
    """Whether the trainer went on and the engine did not, as far as it reports; without reports after longer."""
    if streak.rise <= MAX_SKEW:
        return False
    if reported is None:
        return streak.steps.size > 2 * MAX_STREAK
    return reported >= streak.lag and streak.seconds >= REPORTED_S


def _streak(evidence: EvidenceByEngine, engine: str) -> _Streak | None:
    arrays, (updates, closed) = evidence.engine(engine), _progress(evidence)
    lags = _newest_lags(arrays)
    there = np.flatnonzero(np.isfinite(lags))
    if not there.size:
        return None
    versions, lags = (updates - lags)[there], lags[there]
    newest = np.maximum.accumulate(np.where((lags < MAX_LAG) | (versions == versions[0]), versions, -np.inf))
    starts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(newest) > 0)])
    lengths = np.diff(starts).astype(np.float64)
    lengths[:1] -= lags[starts[1:2]]  # a queue that fills up holds the first version for that long
    here = there[starts[-1] :]
    rise, seconds = (float(of[here[-1]] - of[here[0]]) for of in (updates, closed))
    version, usual = float(newest[-1]), int(lengths.max(initial=0))
    return _Streak(version, float(updates[here[-1]]) - version, arrays.last[here], usual, rise, seconds)


def _progress(evidence: EvidenceByEngine) -> tuple[Lags, Lags]:
    """The trainer's updates since the first kept step, and the wall clock, at the end of each stretch [steps]."""
    steps = evidence.input.steps
    states = [step.policy_version if step.policy_version is not None else step.step for step in steps]
    counts = np.cumsum([0.0, *(float(one != other) for one, other in pairwise(states))])
    last = np.searchsorted([step.step for step in steps], evidence.run.last, side="right") - 1
    return counts[np.maximum(last, 0)], np.array([step.closed for step in steps])[np.maximum(last, 0)]


def _newest_lags(arrays: EvidenceArrays) -> Lags:
    """Lag of the newest tokens of each step [steps]; NaN if unknown."""
    there = arrays.lags[:, :-1, 1] > 0  # stratum 0 is "ahead", the last one "unknown"
    found: Lags = np.where(there.any(axis=1), there.argmax(axis=1) - 1.0, np.nan)
    return found


LAG_STEPS, FIRST_STEPS, MORE_LAG = 2, 8, 1.5
"""The lag is high if that of the last LAG_STEPS steps exceeds by MORE_LAG that of the first FIRST_STEPS steps in which
it had settled. In healthy runs of the demo it is 0.6 to 1.7."""

SETTLED = 2.0
"""Range of the lag over FIRST_STEPS steps in which it has settled: a queue of fixed length."""

HIGH_LAG, HIGH_K3, CLIMBING_K3, SETTLED_K3 = 3.0, 0.01, 0.03, 0.1
"""Mean lag and k3 from which the lag is high even if it always was. One-step-off-policy training has a lag of 1, a
bounded queue of one step 2; many runs are designed for more and do well. A k3 of 0.01 lowers the effective sample size
by 2 %. While the queue of a new run fills up, k3 must be what PPO stops an update for (1.5 times a target of 0.01 to
0.02: Spinning Up, Stable-Baselines3); once the lag has settled, one that lowers the effective sample size by 20 %."""


def lag(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``lag``: the age of trained tokens in versions."""
    run = mean_lags(evidence.run)
    known = run[np.isfinite(run)]
    late = known[-LAG_STEPS:]
    if not late.size:
        yield unknown("lag", "trainer or engines report no policy version")
        return
    of_engines = {name: mean_lags(evidence.engine(name)) for name in evidence.engines}
    latest = {name: _late_mean(series) for name, series in of_engines.items()}
    behind = 0
    for name, own in latest.items():
        others = [other for other_name, other in latest.items() if other_name != name and other is not None]
        if own is None or not others or own <= min(others) + MAX_SKEW:
            continue
        behind += 1
        base = np.nanmin([_padded(of_engines[other], len(run)) for other in latest if other != name], axis=0)
        with np.errstate(invalid="ignore"):
            older = of_engines[name] > base + 1
        since = first_step(evidence.engine(name), older)
        text = f"tokens of {name} are {own:.1f} versions old, those of another engine {min(others):.1f}"
        yield certain("lag", "behind", since, name, 0, text, "", value=own)
    mean = max(float(late.mean()), float(known[-FIRST_STEPS:].mean()) if known.size >= FIRST_STEPS else 0.0)
    settled = _settled_lag(known)
    hurts = _lag_k3(evidence.run) > _tolerated_k3(known)
    if (mean > settled + MORE_LAG or (mean > HIGH_LAG and hurts)) and not behind:
        rose = mean > settled + MORE_LAG
        since = _first_wave(evidence.run, run > (settled + 1 if rose else HIGH_LAG))
        detail = "rose" if rose else "hurts"
        yield certain("lag", "high", since, None, 0, f"trained tokens are {mean:.1f} versions old", detail, value=mean)
    elif not behind:
        yield certain("lag", "steady", None, None, 0, f"trained tokens are {mean:.1f} versions old", "", value=mean)


def _settled_lag(known: Lags) -> float:
    """The lag that the run first settled in; infinite if it has not settled."""
    for at in range(1, known.size - FIRST_STEPS + 1):
        part = known[at : at + FIRST_STEPS]
        if np.ptp(part) <= SETTLED:
            return float(np.median(part))
    return math.inf


def _lag_k3(arrays: EvidenceArrays) -> float:
    """Recent mean k3 that is due to lag: that of all tokens minus that of matched tokens."""
    recent = arrays.moments[-FIRST_STEPS:]
    means = [
        recent[:, figure, 2].sum() / max(float(recent[:, count, 1].sum()), 1.0)
        for figure, count in ((FIGURE.k3, FIGURE.k3), (FIGURE.matched_k3, FIGURE.matched_d))
    ]
    return float(means[0] - means[1])


def _tolerated_k3(known: Lags) -> float:
    """The k3 that a large lag may cause without being high, by how the lag develops."""
    if known.size > FIRST_STEPS and np.ptp(known[-FIRST_STEPS:]) <= SETTLED:
        return SETTLED_K3
    climbs = bool((np.maximum.accumulate(known) - known < 1).all())
    return CLIMBING_K3 if climbs else HIGH_K3


def mean_lags(arrays: EvidenceArrays) -> Lags:
    """Mean lag of the tokens of each step [steps]; NaN if unknown."""
    n = arrays.lags[:, :-1, 1]
    values = np.arange(-1.0, n.shape[1] - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Lags = (n @ values) / n.sum(axis=1)
    return found


def _late_mean(series: Lags) -> float | None:
    late = series[-RECOVERY_STEPS:]
    late = late[np.isfinite(late)]
    return float(late.mean()) if late.size else None


def _padded(series: Lags, size: int) -> Lags:
    return np.concatenate([series, np.full(size - series.size, np.nan)])


def _first_wave(arrays: EvidenceArrays, holds: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """The first step from which it holds at least every ``FIRST_STEPS`` steps to the end."""
    there = np.flatnonzero(holds)
    if not there.size:
        return int(arrays.first[-1])
    gaps = np.flatnonzero(np.diff(there) > FIRST_STEPS)
    return int(arrays.first[there[gaps[-1] + 1 if gaps.size else 0]])
