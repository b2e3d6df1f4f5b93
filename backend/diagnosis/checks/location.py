"""Checks that locate a gap: by position, lag, engine, cache, tail, updates within requests, and context. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E, finding, run_and_engines, unknown
from rltop.backend.diagnosis.checks.level import bound_of, floor_of, mean_bound
from rltop.backend.evidence import sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats, MeanShift, Stretches
from rltop.backend.summary.token_runs import POSITION_EDGES

MIN_RATIO = math.log(1.5)
"""Log ratio of two means that is no difference: heavy tails of k3 cause it over 64 sequences each."""

APART = math.log(2)
"""Two means are alike only if the 95 % interval of their log ratio is within this: faults cause factors of 5 to 50."""


def contrast(
    one: Floats, other: Floats, arrays: EvidenceArrays, ground: float, least: float = MIN_RATIO, begin: int = 0
) -> tuple[MeanShift, MeanShift]:
    """Evidence that the mean of ``one`` is above that of ``other``, and below it, by log ratio.

    Args:
        one: moments by step [steps, MOMENT].
        other: moments by step that it is compared with.
        arrays: the evidence that they are part of.
        ground: added to both means, so that differences below it do not count.
        least: log ratio that is no difference.
        begin: index of the first step that counts.
    """
    a, b = sequential.stretches(one[begin:]), sequential.stretches(other[begin:])
    up = _log_ratio(a, b, ground)
    ratio, variance, sequences = up
    found = []
    for direction in (1.0, -1.0):
        each = sequential.log_evidence(direction * ratio - least, variance, sequences, 1.0)
        start = int(np.argmax(each)) if each.size else 0
        weighted = each + sequential.log_weights(arrays.first[begin:])
        log_e = float(np.logaddexp.reduce(weighted)) if each.size else -math.inf
        error = sequential.Z95 * math.sqrt(variance[start]) if each.size else math.inf
        if log_e >= ALARM_LOG_E:
            start = _first_apart(direction, one, other, ground, least, begin) - begin
        mean = float(ratio[start]) if each.size else 0.0
        tokens = int(a.tokens[start]) if each.size else 0
        found.append(MeanShift(log_e, begin + start, mean, mean - error, mean + error, int(sequences[start]), tokens))
    return found[0], found[1]


def _first_apart(direction: float, one: Floats, other: Floats, ground: float, least: float, begin: int) -> int:
    """Index of the step from which the log ratio of two means, in this direction, is beyond ``least``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        top, bottom = (np.maximum(of[:, MOMENT.s] / of[:, MOMENT.n], 0.0) + ground for of in (one, other))
        return sequential.change_point(direction * np.log(top / bottom), least, begin)


def _log_ratio(a: Stretches, b: Stretches, ground: float) -> tuple[Floats, Floats, Floats]:
    top, bottom = np.maximum(a.mean, 0) + ground, np.maximum(b.mean, 0) + ground
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = a.variance / top**2 + b.variance / bottom**2
        ratio = np.log(top / bottom)
    return ratio, np.where(np.isfinite(variance), variance, np.inf), np.minimum(a.sequences, b.sequences)


def _times(shift: MeanShift) -> str:
    def times(x: float) -> str:
        return f"{math.exp(min(x, 50)):.2g}" if math.isfinite(x) else "?"

    return f"{times(shift.mean)} times ({times(shift.low)} to {times(shift.high)})"


def _current_contrast(one: Floats, other: Floats, arrays: EvidenceArrays, ground: float) -> tuple[MeanShift, MeanShift]:
    """``contrast``, or that of the latest steps if an earlier difference has ended."""
    up, down = contrast(one, other, arrays, ground)
    late = sequential.RECOVERY_STEPS * 2
    if max(up.log_e, down.log_e) >= ALARM_LOG_E and arrays.steps > late:
        now_up, now_down = contrast(one, other, arrays, ground, begin=arrays.steps - late)
        if max(now_up.log_e, now_down.log_e) < ALARM_LOG_E / 4 and abs(now_up.mean) < MIN_RATIO:
            return now_up, now_down
    return up, down


def engine_gap(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``engine_gap``: each engine's gap against the others', over matched tokens, or else over tokens of equal lags."""
    if len(evidence.engines) < 2:
        yield unknown("engine_gap", "the run has one engine")
        return
    fine, coarse = (max(of(evidence, engine)[0] for engine in evidence.engines) for of in (bound_of, floor_of))
    for engine in evidence.engines:
        own, others = evidence.engine(engine), evidence.others(engine)
        late = min(x.sums[-LATE_STEPS:, SUM.matched].sum() for x in (own, others))
        matched = late >= MIN_MATCHED
        if matched:
            a, b, size = (
                own.moments[:, FIGURE.matched_abs_d],
                others.moments[:, FIGURE.matched_abs_d],
                "version-matched |d|",
            )
            ground = mean_bound(fine if _within_bound(others, fine) else coarse, evidence.run)
        else:
            a, b = _equal_lags(own.lags, others.lags)
            ground, size = 1e-3, "k3 at equal lags"
        up, _ = _current_contrast(a, b, own, ground)
        enough = matched or own.steps - up.start >= LATE_STEPS  # one step may have rare large ratios
        outcome = "outlier" if up.log_e >= ALARM_LOG_E and enough else "alike"
        text = f"{size} is {_times(up)} that of the other engines"
        yield finding(
            "engine_gap", outcome, up, own, engine, text=text, unit="log", detail="matched" if matched else "all"
        )


LATE_STEPS = 3
MIN_MATCHED = 30


def _within_bound(arrays: EvidenceArrays, least: float) -> bool:
    """Whether the version-matched gap is within the bound, so that any gap of another engine is that engine's."""
    n = max(float(arrays.sums[:, SUM.matched].sum()), 1.0)
    return bool(arrays.moments[:, FIGURE.matched_abs_d, MOMENT.s].sum() / n <= mean_bound(least, arrays))


def _equal_lags(own: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Moments of k3 by step [steps, MOMENT], over the lags that both have; "unknown" counts as a lag."""
    both = (own[:, :, 1] > 0) & (others[:, :, 1] > 0)
    return (own * both[..., None]).sum(axis=1), (others * both[..., None]).sum(axis=1)


class Contrast(NamedTuple):
    """Moments of the matched |d| by step [steps, MOMENT] of some tokens and of others, and the names of both."""

    one: Floats
    other: Floats
    name: str
    against: str

    @property
    def fewest(self) -> float:
        """The number of sequences with the rarer kind."""
        return min(float(of[:, MOMENT.sequences].sum()) for of in (self.one, self.other))


@dataclass(frozen=True)
class _Kinds:
    """Two kinds of tokens that a check compares.

    Attributes:
        check: its name.
        one, other: figures.
        outcomes: if the first kind has the larger gap, if the second has, if neither.
        names: of the kinds.
    """

    check: str
    one: int
    other: int
    outcomes: tuple[str, str, str]
    names: tuple[str, str]

    def of(self, arrays: EvidenceArrays) -> Contrast:
        """The contrast in some evidence."""
        return Contrast(arrays.moments[:, self.one], arrays.moments[:, self.other], *self.names)


_CACHE = _Kinds(
    "cache_gap", FIGURE.cache_hit, FIGURE.cache_miss, ("hit_worse", "miss_worse", "alike"), ("hits", "misses")
)
_FLIGHT = _Kinds(
    "in_flight", FIGURE.after_update, FIGURE.before_update, ("after_worse", "before_worse", "alike"),
    ("tokens after an update", "tokens before it"),
)  # fmt: skip


def cache_gap(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``cache_gap``: version-matched |d| of requests that hit the prefix cache against those that missed it."""
    yield from _pairs(evidence, _CACHE)


def in_flight(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``in_flight``: version-matched |d| of tokens after an update within their request against those before it."""
    yield from _pairs(evidence, _FLIGHT)


def _pairs(evidence: EvidenceByEngine, kinds: _Kinds) -> Iterator[Finding]:
    """Compare two kinds of tokens on each engine, and on all engines that have both.

    An engine that has only one kind would make its own gap look like one of that kind.
    """
    with_both = [name for name in evidence.engines if kinds.of(evidence.engine(name)).fewest > 0]
    run = evidence.of(with_both) if with_both else evidence.run
    yield _compared(evidence, run, None, kinds.check, kinds.of(run), kinds.outcomes)
    if len(evidence.engines) > 1:
        for name in evidence.engines:
            own = evidence.engine(name)
            yield _compared(evidence, own, name, kinds.check, kinds.of(own), kinds.outcomes)


def turn_gap(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``turn_gap``: version-matched |d| of later turns against that of the first turn."""
    turns = evidence.run.turns
    if not turns[:, 1, MOMENT.n].sum():
        yield Finding("turn_gap", "alike", text="no version-matched tokens of later turns")
        return
    contrast = Contrast(turns[:, 1], turns[:, 0], "later turns", "first turns")
    yield _compared(evidence, evidence.run, None, "turn_gap", contrast, ("later_worse", "first_worse", "alike"))


def _compared(
    evidence: EvidenceByEngine, arrays: EvidenceArrays, engine: str | None, check: str, contrast: Contrast,
    outcomes: tuple[str, str, str],
) -> Finding:  # fmt: skip
    a, b, name, against = contrast
    few = contrast.fewest
    if few < sequential.MIN_SEQUENCES:
        side = name if a[:, 0].sum() <= b[:, 0].sum() else against
        more = int(sequential.MIN_SEQUENCES - few)
        return unknown(check, f"version-matched {side} in {int(few)} sequences only", engine, more)
    least, coarse = bound_of(evidence, engine)[0], floor_of(evidence, engine)[0]
    both = [_current_contrast(a, b, arrays, ground) for ground in sorted({least, coarse})]
    up, down = (_best(of) for of in zip(*both, strict=True))
    for outcome, shift, worse in ((outcomes[0], up, a), (outcomes[1], down, b)):
        if shift.log_e >= ALARM_LOG_E:
            text = f"version-matched |d| of {name} is {_times(shift)} that of {against}"
            where = _elsewhere(arrays, shift, worse, least)
            return finding(check, outcome, shift, arrays, engine, text=text, unit="log", detail=where)
    all_a, all_b = (sequential.stretches(x.sum(axis=0)[None]) for x in (a, b))
    ratio, variance, _ = _log_ratio(all_a, all_b, least)
    error = sequential.Z95 * math.sqrt(float(variance[0]))
    text = f"{name} have {_times(up)} the |d| of {against}"
    if abs(float(ratio[0])) + error > APART:
        more = max(int(few * (error**2 / APART**2 - 1)), 1)
        return unknown(check, f"{text}: too few sequences to decide", engine, more)
    return finding(check, outcomes[2], up, arrays, engine, text=text, unit="log")


def _best(tried: Sequence[MeanShift]) -> MeanShift:
    """The shift with the most evidence, corrected for the number tried."""
    best = max(tried, key=lambda shift: shift.log_e)
    return replace(best, log_e=best.log_e - math.log(len(tried)))


def _elsewhere(arrays: EvidenceArrays, shift: MeanShift, worse: Floats, least: float) -> str:
    """``alone`` if all other matched tokens are within the bound, else ``elsewhere too``."""
    moments, sums = arrays.moments[shift.start :].sum(axis=0), arrays.sums[shift.start :].sum(axis=0)
    rest, complement = (
        moments[FIGURE.matched_abs_d] - worse[shift.start :].sum(axis=0),
        sums[SUM.complement] / max(float(sums[SUM.matched]), 1.0),
    )
    return "alone" if rest[2] <= least * math.sqrt(max(float(complement), 1e-6)) * rest[1] else "elsewhere too"


def lag_slope(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``lag_slope``: weighted least-squares line of mean k3 on lag."""
    arrays = evidence.run
    sums = arrays.lags.sum(axis=0) if arrays.steps else np.zeros((0, 6))
    known = [(at - 1, mean) for at, mean in enumerate(_means(sums[:-1])) if mean is not None]  # stratum 0 is "ahead"
    known = [(lag, mean) for lag, mean in known if mean[2] >= sequential.MIN_SEQUENCES and mean[1] > 0]
    if len(known) < 2:
        yield unknown("lag_slope", "all tokens have one lag")
        return
    x = np.array([float(lag) for lag, _ in known])
    y, v = (np.array([mean[i] for _, mean in known]) for i in (0, 1))
    w = 1 / (v + (0.2 * y) ** 2 + 1e-16)
    center = (w * x).sum() / w.sum()
    spread = (w * (x - center) ** 2).sum()
    slope = float((w * (x - center) * y).sum() / spread)
    error = float(1 / math.sqrt(spread))
    start = float((w * y).sum() / w.sum() - slope * center)
    grows = slope > 5 * error
    shift = MeanShift(0.0, 0, slope, slope - 1.96 * error, slope + 1.96 * error, 0, int(sums[:, 1].sum()))
    text = f"k3 = {start:.2g} + {slope:.2g} per version of lag, lags {int(x[0])} to {int(x[-1])}"
    yield finding("lag_slope", "grows" if grows else "flat", shift, arrays, text=text, unit="nats")


def _means(sums: Floats) -> list[tuple[float, float, float] | None]:
    found: list[tuple[float, float, float] | None] = []
    for m, n, s, nn, ss, ns in sums:
        if n < 1 or m < 2:
            found.append(None)
            continue
        mean = s / n
        found.append((mean, max(ss - 2 * mean * ns + mean * mean * nn, 0.0) / n**2 * m / (m - 1), m))
    return found


HEAVY = 0.01
HEAVY_SHAPE = 4.0
"""A tail is heavy from this share of matched tokens beyond a factor of 2, and this ratio of k3 to that of a normal with
the same mean |d|. In published runs the ratio is 1.4 for bfloat16, 1 for quantised weights."""


def tail(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``tail``: whether few tokens make up the version-matched gap."""
    arrays = evidence.run
    n = arrays.sums[:, SUM.matched].sum()
    least, _ = floor_of(evidence, None)
    size = arrays.moments[:, FIGURE.matched_abs_d, MOMENT.s].sum() / max(n, 1)
    if n < 200 or size < least / 4:
        yield unknown("tail", "no version-matched gap to judge the shape of")
        return
    k3 = arrays.moments[:, FIGURE.matched_k3, MOMENT.s].sum() / n
    shape = float(k3 / (math.pi / 4 * size**2))
    share = float(arrays.sums[:, SUM.beyond_2x].sum() / n)
    heavy = share > HEAVY and shape > HEAVY_SHAPE
    shift = MeanShift(0.0, 0, shape, math.nan, math.nan, 0, int(n))
    text = f"k3 is {shape:.1f} times that of a normal; {100 * share:.2g} % of tokens beyond a factor of 2"
    yield finding("tail", "heavy" if heavy else "light", shift, arrays, text=text)


MIN_BIN = 40
"""Tokens in a bin of positions for it to count."""


def position(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``position``: d^2 / (1 - p) by position: its slope on log position, or one step."""
    arrays = evidence.run
    n, squares, complement = arrays.profile.sum(axis=0).T if arrays.steps else np.zeros((3, 1))
    fine = (n >= MIN_BIN) & (complement > 1)
    least, _ = floor_of(evidence, None)
    if fine.sum() < 4 or squares.sum() / max(complement.sum(), 1) < least**2:
        yield unknown("position", "no version-matched gap in four bins of positions")
        return
    half = arrays.profile[: arrays.steps // 2].sum(axis=0), arrays.profile[arrays.steps // 2 :].sum(axis=0)
    level = np.log(squares[fine] / complement[fine] + 1e-12)
    where = np.log1p(POSITION_EDGES[fine])
    slope = float(np.polyfit(where, level, 1, w=np.sqrt(n[fine]))[0])
    error = _slope_error(where, level, n[fine], slope)
    at, rise = _step_up(level, n[fine])
    shift = MeanShift(0.0, 0, slope, slope - 1.96 * error, slope + 1.96 * error, 0, int(n.sum()))
    text = f"d^2 / (1-p) is proportional to position^{slope:+.2f} (error {error:.2f})"
    stepped = rise > math.log(9) and _agrees(half, fine, at)
    if stepped:
        edge = int(POSITION_EDGES[fine][at])
        text = f"d^2 / (1-p) is {math.exp(min(rise, 50)):.2g} times as large from position {edge} on"
        yield finding("position", "step", shift, arrays, text=text, detail=str(edge))
    elif abs(slope) > max(5 * error, 0.5):
        yield finding("position", "grows" if slope > 0 else "falls", shift, arrays, text=text)
    else:
        yield finding("position", "flat", shift, arrays, text=text)


def _slope_error(x: Floats, y: Floats, w: Floats, slope: float) -> float:
    center = np.average(x, weights=w)
    rest = y - np.average(y, weights=w) - slope * (x - center)
    spread = np.average((x - center) ** 2, weights=w)
    return float(math.sqrt(np.average(rest**2, weights=w) / max(x.size - 2, 1) / max(spread, 1e-12)))


def _step_up(level: Floats, n: Floats) -> tuple[int, float]:
    """The bin from which the mean log level rises most, and by how much."""
    best = (1, -math.inf)
    for at in range(2, level.size - 1):
        rise = np.average(level[at:], weights=n[at:]) - np.average(level[:at], weights=n[:at])
        spread = np.concatenate([level[at:] - level[at:].mean(), level[:at] - level[:at].mean()]).std()
        if rise > 3 * spread and rise > best[1]:
            best = at, float(rise)
    return best


def _agrees(halves: tuple[Floats, Floats], fine: Floats, at: int) -> bool:
    """Whether both halves of the run have the step at bin ``at``."""
    for profile in halves:
        _, squares, complement = profile[fine].T
        if complement[at:].sum() < 1 or complement[:at].sum() < 1:
            return False
        if squares[at:].sum() / complement[at:].sum() < 4 * squares[:at].sum() / complement[:at].sum():
            return False
    return True


MIN_REPEATED = 0.01


def repetition(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``repetition``: mean version-matched d of tokens that occur earlier in their context minus that of the others."""
    for engine, arrays in run_and_engines(evidence):
        a, b = arrays.moments[:, FIGURE.repeated_d], arrays.moments[:, FIGURE.new_d]
        if not arrays.steps or min(a[:, 0].sum(), b[:, 0].sum()) < sequential.MIN_SEQUENCES:
            yield unknown("repetition", "too few matched tokens that are new in their context, or repeated", engine)
            continue
        of, other = sequential.stretches(a), sequential.stretches(b)
        difference, variance = of.mean - other.mean, of.variance + other.variance
        sequences = np.minimum(of.sequences, other.sequences)
        yield _repetition(arrays, engine, difference, variance, sequences, of.tokens)


def _repetition(
    arrays: EvidenceArrays, engine: str | None, difference: Floats, variance: Floats, sequences: Floats, tokens: Floats
) -> Finding:
    shift, result = MeanShift(0.0, 0, 0.0, math.nan, math.nan, 0, 0), "alike"
    for outcome, direction in (("favoured", -1.0), ("disfavoured", 1.0)):
        each = sequential.log_evidence(direction * difference - MIN_REPEATED, variance, sequences, 0.1)
        start = int(np.argmax(each))
        log_e = float(np.logaddexp.reduce(each + sequential.log_weights(arrays.first)))
        mean, error = float(difference[start]), 1.96 * math.sqrt(variance[start])
        shift = MeanShift(log_e, start, mean, mean - error, mean + error, int(sequences[start]), int(tokens[start]))
        if log_e >= ALARM_LOG_E:
            result = outcome
            break
    text = f"mean d of tokens that occur earlier in their context is {shift.mean:+.3f} above that of the others"
    return finding("repetition", result, shift, arrays, engine, text=text, unit="nats")
