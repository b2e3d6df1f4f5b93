"""Checks of rollout logprobs against the trainer's distribution. Pure.

If rollout logprobs are the density that was sampled from, ``E[exp(d) | past] = 1`` for any trainer, however stale, that
has no mass where nothing could be sampled. Then ``E[d] <= 0``, and ``E[exp(d) (-log p - H)] = 0`` for the trainer's own
entropy H. All three hold on all tokens and at any lag; version-matched tokens have less noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import (
    ALARM_LOG_E,
    CERTAIN_LOG_E,
    NO_LOGPROBS,
    NOT_MATCHED,
    finding,
    run_and_engines,
    unknown,
)
from rltop.backend.diagnosis.checks.level import bound_of, exceeds
from rltop.backend.diagnosis.checks.weight_versions import mean_lags
from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import EXTREME, FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats, MeanShift

MIN_RATIO_EXCESS = 2e-3
"""A mean ratio this close to 1 is no fault: rounding rollout logprobs to 16 bits has that effect."""

MIN_MEAN = 1e-3
"""A mean d this little above 0 is no fault: 16-bit rollout logprobs are rounded after sampling."""

MAX_RHO = 4.0
"""-2 mean / mean square is 1 for a small difference of policies, and far larger for a truncation."""

MIN_SHAPED = 500
"""Tokens before the mean of d is judged: rare large values may be missing from fewer."""

MIN_NLL_EXCESS = 0.01
"""Nats by which NLL and entropy may differ: some frameworks compute the entropy in 16 bits."""


def mean_ratio(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``mean_ratio``: bets that the mean of exp(d) is above 1, and below it."""
    for engine, arrays in run_and_engines(evidence):
        yield _mean_ratio(arrays, engine)


def _mean_ratio(arrays: EvidenceArrays, engine: str | None) -> Finding:
    if not arrays.sums[:, SUM.valid].sum():
        return unknown("mean_ratio", NO_LOGPROBS, engine)
    high = _bets(arrays, kernel.BETS_ABOVE)
    if high.log_e >= ALARM_LOG_E and high.low > MIN_RATIO_EXCESS:
        which, also = (
            ("old", ", as it is for matched tokens") if _is_one_if_matched(arrays, high.start) else ("all", "")
        )
        text = f"{_ratio_text(high)} over {high.tokens} tokens; correct rollout logprobs have 1{also}"
        return finding("mean_ratio", "above", high, arrays, engine, offset=1.0, text=text, detail=which)
    low = _bets(arrays, kernel.BETS_BELOW)
    if low.log_e >= ALARM_LOG_E and low.high < -MIN_RATIO_EXCESS:
        text = f"{_ratio_text(low)} over {low.tokens} tokens: part of the trainer's probability mass is cut off"
        return finding("mean_ratio", "below", low, arrays, engine, offset=1.0, text=text)
    tokens = arrays.moments[:, :, MOMENT.n].sum(axis=0)
    figure = FIGURE.matched_excess if tokens[FIGURE.matched_excess] >= tokens[FIGURE.excess] / 10 else FIGURE.excess
    mean = sequential.above(arrays.moments[:, figure], arrays.first, 0.02, MIN_RATIO_EXCESS)
    return finding("mean_ratio", "calibrated", mean, arrays, engine, offset=1.0, text=_ratio_text(mean))


def _ratio_text(excess: MeanShift) -> str:
    return f"mean ratio {1 + excess.mean:.4f} ({1 + excess.low:.4f} to {1 + excess.high:.4f})"


def _is_one_if_matched(arrays: EvidenceArrays, start: int) -> bool:
    """Whether the mean ratio of matched tokens, which have little noise, is certainly 1."""
    of = sequential.stretches(arrays.moments[start:, FIGURE.matched_excess])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    return bool(of.tokens[0] and abs(float(of.mean[0])) + error < MIN_RATIO_EXCESS)


def _bets(arrays: EvidenceArrays, accounts: slice) -> MeanShift:
    """The betting test: each token multiplies a wealth by 1 + stake (ratio - 1), whose expectation is 1.

    Ratios are clamped to 21. That lowers wealth for stakes above 0; for stakes below 0 it assumes that larger ratios
    add little to the mean. A mean with its error can't replace bets on ratios below 1: the rare large ratios that make
    the mean 1 may be missing, and the error does not show it.
    """
    logs = arrays.sums[:, accounts]
    log_e, start = sequential.bets(logs, arrays.first)
    best = accounts.start + int(np.argmax(logs[start:].sum(axis=0)))
    matched = SUM.log_wealth_above_matched <= best < SUM.log_wealth_below
    return _mean_from(arrays, FIGURE.matched_excess if matched else FIGURE.excess, log_e, start)


def _mean_from(arrays: EvidenceArrays, figure: int, log_e: float, start: int) -> MeanShift:
    """The figure's mean from step ``start`` on, with this evidence; over all steps if the evidence is too weak."""
    start = start if log_e >= ALARM_LOG_E else 0
    of = sequential.stretches(arrays.moments[start:, figure])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    mean = float(of.mean[0])
    return MeanShift(log_e, start, mean, mean - error, mean + error, int(of.sequences[0]), int(of.tokens[0]))


def sign(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``sign``: the mean of d against 0 and against its spread."""
    for engine, arrays in run_and_engines(evidence):
        if not arrays.sums[:, SUM.valid].sum():
            yield unknown("sign", NO_LOGPROBS, engine)
            continue
        matched = bool(arrays.sums[:, SUM.matched].sum())
        figure = FIGURE.matched_d if matched else FIGURE.d
        up = sequential.above(arrays.moments[:, figure], arrays.first, 0.02, MIN_MEAN)
        if up.log_e >= ALARM_LOG_E and up.tokens >= MIN_SHAPED:
            text = f"mean d {up.mean:+.4f} ({up.low:+.4f} to {up.high:+.4f}), above 0"
            yield finding("sign", "positive", up, arrays, engine, text=text, unit="nats")
            continue
        square = sequential.stretches(arrays.moments[:, FIGURE.matched_d2]).mean
        down = sequential.below(
            arrays.moments[:, FIGURE.matched_d], arrays.first, 0.02, MAX_RHO / 2 * square + MIN_MEAN
        )
        if down.log_e >= ALARM_LOG_E and down.tokens >= MIN_SHAPED:
            rho = -2 * down.mean / max(float(square[down.start]), 1e-12)
            text = f"mean d {down.mean:+.4f}, {rho:.0f} times as far below 0 as its spread explains"
            yield finding("sign", "too_negative", down, arrays, engine, text=text, unit="nats")
            continue
        yield finding("sign", "lognormal", up, arrays, engine, text=f"mean d {up.mean:+.2g}", unit="nats")


MIN_SIDED = 20
"""Tokens with a sign before one side can be empty."""


def one_sided(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``one_sided``: sequences whose version-matched d has only one sign, as tosses of a coin."""
    for engine, arrays in run_and_engines(evidence):
        if not arrays.sums[:, SUM.matched].sum():
            yield unknown("one_sided", NOT_MATCHED, engine)
            continue
        yield _one_sided(arrays, engine)


def _one_sided(arrays: EvidenceArrays, engine: str | None) -> Finding:
    from_each_step = np.cumsum(arrays.sums[::-1], axis=0)[::-1]
    return (
        _one_side(arrays, from_each_step, "negative", _BELOW, _ABOVE, engine)
        or _one_side(arrays, from_each_step, "positive", _ABOVE, _BELOW, engine)
        or _both_sides(from_each_step[0], arrays, engine)
    )


class _Side(NamedTuple):
    """Columns of ``SUM`` for the matched tokens whose d has one sign."""

    fine: int
    coarse: int
    sequences: int


_BELOW = _Side(SUM.fine_below, SUM.coarse_below, SUM.sequences_below)
_ABOVE = _Side(SUM.fine_above, SUM.coarse_above, SUM.sequences_above)


def _one_side(
    arrays: EvidenceArrays, sums: Floats, outcome: str, many: _Side, few: _Side, engine: str | None
) -> Finding | None:
    """The finding that d has the sign of ``many`` alone, if so; ``sums`` are from each step on."""
    log_weights = sequential.log_weights(arrays.first)
    sequences = sums[:, many.sequences]
    by_sequence = _fair_coin(sums[:, few.sequences], sequences) + log_weights
    by_token = _fair_coin(sums[:, few.coarse], np.minimum(sums[:, many.coarse], sequences)) + log_weights
    fine, coarse = _is_rare(sums, few.fine, many.fine), _is_rare(sums, few.coarse, many.coarse)
    log_e = np.maximum(np.where(fine, by_sequence, -np.inf), np.where(coarse, by_token, -np.inf))
    start = int(np.argmax(log_e))
    deciding = many.coarse if coarse[start] and not fine[start] else many.fine
    if log_e[start] < ALARM_LOG_E or _has_ended(arrays, deciding):
        return None
    low = float(arrays.extremes[start:, EXTREME.low].min())
    high = float(arrays.extremes[start:, EXTREME.high].max())
    edge = low if outcome == "negative" else high
    start += int(np.argmax(arrays.sums[start:, many.fine] > 0))
    text = f"{int(sums[start, many.fine])} matched tokens have d {'below' if outcome == 'negative' else 'above'} 0 and "
    text += f"{int(sums[start, few.fine])} the other sign"
    text += f"; none beyond {edge:+.4f}" if abs(edge) < kernel.CLAMP else ""  # the clamp is ours, and no bound
    shift = MeanShift(float(log_e.max()), start, edge, low, high, int(sequences[start]), int(sums[start, SUM.matched]))
    return finding("one_sided", outcome, shift, arrays, engine, text=text, unit="nats", detail=f"{math.exp(edge):.3f}")


def _is_rare(sums: Floats, few: int, many: int) -> NDArray[np.bool_]:
    return (sums[:, few] <= sums[:, many] / 100) & (sums[:, many] >= MIN_SIDED)


def _both_sides(sums: Floats, arrays: EvidenceArrays, engine: str | None) -> Finding:
    n = int(sums[SUM.matched])
    text = f"of {n} matched tokens {int(sums[SUM.fine_below])} have d below -{kernel.FINE} nats"
    text += f" and {int(sums[SUM.fine_above])} above {kernel.FINE}"
    shift = MeanShift(0.0, 0, 0.0, -math.inf, math.inf, 0, n)
    return finding("one_sided", "both", shift, arrays, engine, text=text)


def _has_ended(arrays: EvidenceArrays, many: int) -> bool:
    """Whether the latest steps have matched tokens, but none of that sign."""
    late = arrays.sums[-sequential.RECOVERY_STEPS :]
    return bool(len(late) >= sequential.RECOVERY_STEPS and late[:, SUM.matched].sum() >= 60 and not late[:, many].sum())


def _fair_coin(few: Floats, many: Floats) -> Floats:
    """Log evidence against a fair coin: a uniform mixture over its bias."""
    a, b = few.astype(np.int64), many.astype(np.int64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, (a + b).max(initial=0) + 2)))])
    found: Floats = log_factorial[a] + log_factorial[b] - log_factorial[a + b + 1] + (a + b) * math.log(2)
    return found


def nll_minus_entropy(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``nll_minus_entropy``: bets on the trainer's NLL of sampled tokens minus its entropy, weighted by the ratio.

    The weight makes the mean 0 at any lag and for any trainer, if rollout logprobs are those that were sampled from.
    """
    for engine, arrays in run_and_engines(evidence):
        if not arrays.moments[:, FIGURE.weighted_nll, MOMENT.n].sum():
            yield unknown("nll_minus_entropy", "the trainer passes no entropy (sequences(entropy=...))", engine)
            continue
        accounts = arrays.sums[:, kernel.BETS_NLL]
        rising = kernel.STAKES_NLL > 0
        for outcome, logs in (("above", accounts[:, rising]), ("below", accounts[:, ~rising])):
            mean = _mean_from(arrays, FIGURE.weighted_nll, *sequential.bets(logs, arrays.first))
            beyond = mean.low > MIN_NLL_EXCESS if outcome == "above" else mean.high < -MIN_NLL_EXCESS
            if mean.log_e >= ALARM_LOG_E and beyond:
                break
        else:
            outcome = "equal"
        text = f"NLL minus entropy {mean.mean:+.3f} ({mean.low:+.3f} to {mean.high:+.3f}) nats a token"
        yield finding("nll_minus_entropy", outcome, mean, arrays, engine, text=text, unit="nats")


MIN_UNLIKELY = 0.3
"""Relative excess or lack of unlikely tokens that is no fault: a lag of one or two versions made 0.1 in the demo."""

CUT = 0.02
MIN_CUT_EXPECTED = 60.0
"""Unlikely tokens are cut off if at most the share CUT of at least MIN_CUT_EXPECTED expected ones is sampled: in such
contexts a temperature of 0.6 leaves 0.05 to 0.08 of them."""

SHARPER, FLATTER = (0.02, 0.2, 0.4), (1.6, 2.0)
"""Shares of the expected number that are bet on. Above 2 the bet's expectation exceeds 1 where p is as low as 0.67."""


def calibration(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``calibration``: how often an unlikely token is sampled where the trainer is nearly sure; needs no top logprobs.

    Where the entropy is below ``kernel.LOW_ENTROPY``, a token with p above a half is the likeliest. The number of other
    tokens is estimated from the likeliest alone: the sum of ``(1 - p) / p`` over them has the same expectation (Horvitz
    and Thompson 1952) if tokens are sampled from the trainer's distribution. For a share s below the least healthy
    share l, a bet multiplies wealth by ``(s / l)^unlikely exp((l - s) expected)``, whose expectation in a healthy run
    is at most 1; the same holds for a share above the largest healthy one.
    """
    for engine, arrays in run_and_engines(evidence):
        unlikely = arrays.sums[:, [SUM.unlikely, SUM.lowest_unlikely]]
        expected = arrays.sums[:, [SUM.unlikely_expected, SUM.lowest_unlikely_expected]]
        if not expected.sum():
            yield unknown("calibration", "the trainer's entropy is nowhere low, or not passed", engine)
            continue
        outcome, start, log_e = "calibrated", 0, 0.0
        more, fewer = _by_lag(arrays)
        for word, shares, healthy, by_lag in (
            ("flatter", FLATTER, 1 + MIN_UNLIKELY, more), ("sharper", SHARPER, 1 - MIN_UNLIKELY, fewer),
        ):  # fmt: skip
            bound = healthy * by_lag[:, None]
            s = np.array(shares) * by_lag[:, None]
            logs = unlikely.sum(axis=1)[:, None] * np.log(s / bound) + expected.sum(axis=1)[:, None] * (bound - s)
            log_wealth, at = sequential.bets(logs, arrays.first)
            if log_wealth >= ALARM_LOG_E:
                outcome, start, log_e = word, at, log_wealth
                break
        sampled, due = unlikely[start:].sum(axis=0), expected[start:].sum(axis=0)
        if outcome == "sharper" and bool(((due >= MIN_CUT_EXPECTED) & (sampled <= CUT * due)).any()):
            outcome = "truncated"
        ratio = float(sampled.sum() / max(due.sum(), 1e-9))
        shift = MeanShift(log_e, start, ratio, math.nan, math.nan, 0, int(arrays.sums[start:, SUM.valid].sum()))
        text = (
            f"{sampled.sum():.0f} unlikely tokens sampled, {due.sum():.0f} expected, where the trainer is nearly sure"
        )
        yield finding("calibration", outcome, shift, arrays, engine, text=text, detail=f"{ratio:.2f}")


def _by_lag(arrays: EvidenceArrays) -> tuple[Floats, Floats]:
    """Factors by which the age of tokens may raise, and lower, the number of unlikely tokens [steps].

    The tokens were sampled at the entropy of that time, and unlikely tokens go with about the square of the entropy.
    Beside that, the tolerance grows with the lag.
    """
    older = np.maximum(np.nan_to_num(mean_lags(arrays)) - USUAL_LAG, 0)
    sums = np.cumsum(arrays.moments[:, FIGURE.entropy, MOMENT.n : MOMENT.s + 1], axis=0)
    sums[SMOOTH:] -= sums[:-SMOOTH].copy()
    known = sums[:, 0] > 0
    if not older.any() or not known.any():
        return np.ones(arrays.steps), np.ones(arrays.steps)
    entropy = np.maximum(sums[known, 1] / sums[known, 0], 1e-6)
    then, now = (np.interp(at, arrays.last[known], entropy) for at in (arrays.last - older, arrays.last))
    change, times = (then / now) ** 2, older / USUAL_LAG
    return np.maximum(change, 1.0) * (1 + MIN_UNLIKELY) ** times, np.minimum(change, 1.0) * (1 - MIN_UNLIKELY) ** times


SMOOTH = 5
"""Steps that the entropy is averaged over."""

USUAL_LAG = 2.0
"""Versions of lag that ``MIN_UNLIKELY`` allows for."""

MIN_ALIGNED = 200
"""Tokens at a displacement before it is judged."""


def alignment(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``alignment``: the displacement at which rollout logprobs are closest to the trainer's."""
    for engine, arrays in run_and_engines(evidence):
        result: Finding | None = None
        for steps in (1, 3, 10):  # the fewest that have enough tokens
            late = arrays.aligned[-steps:].sum(axis=0)
            if late[IN_PLACE, 0] >= MIN_ALIGNED:
                before = arrays.aligned[-2] if steps == 1 and arrays.steps > 1 else None
                result = _alignment(arrays, late, engine, before)
                break
        yield result or unknown("alignment", f"fewer than {MIN_ALIGNED} tokens", engine)


IN_PLACE = kernel.SHIFTS.index(0)

DISPLACED = 4.0
"""Factor by which rollout logprobs must be closer when displaced, with half of it in the step before. Where nearly all
tokens are certain, few tokens make up the mean: one healthy step in 500 reached a factor of 2."""


def _alignment(arrays: EvidenceArrays, late: Floats, engine: str | None, before: Floats | None) -> Finding:
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.where(late[:, 0] >= MIN_ALIGNED, late[:, 1] / late[:, 0], np.inf)
        earlier = distance if before is None else before[:, 1] / before[:, 0]
    best = int(np.argmin(distance))
    n = int(late[best, 0])
    confirmed = not earlier[best] > earlier[IN_PLACE] / 2  # NaN, of a step without tokens, does not object
    if best != IN_PLACE and distance[best] < distance[IN_PLACE] / DISPLACED and confirmed:
        with np.errstate(invalid="ignore", divide="ignore"):
            each = arrays.aligned[:, :, 1] / arrays.aligned[:, :, 0]
        wrong = each[:, best] < each[:, IN_PLACE] / 2
        start = arrays.steps - 1
        while start and (wrong[start - 1] or not arrays.aligned[start - 1, IN_PLACE, 0]):
            start -= 1
        by = -kernel.SHIFTS[best]
        text = f"mean |d| is {distance[IN_PLACE]:.3f} in place, {distance[best]:.3f} with rollout logprobs moved by "
        shift = MeanShift(CERTAIN_LOG_E, start, float(by), math.nan, math.nan, 0, n)
        return finding(
            "alignment",
            "shifted",
            shift,
            arrays,
            engine,
            text=f"{text}{by:+d} tokens",
            unit="tokens",
            detail=f"{-by:+d}",
        )
    shifted = min(distance[IN_PLACE - 1], distance[IN_PLACE + 1])
    text = f"mean |d| {distance[IN_PLACE]:.3f} in place, {shifted:.3f} one token off"
    shift = MeanShift(0.0, 0, 0.0, 0.0, 0.0, 0, n)
    return finding("alignment", "aligned", shift, arrays, engine, text=text, unit="tokens")


MIN_SLOPE = 0.03
"""Relative difference of temperatures that is a fault."""

MIN_LINE = 100
"""Tokens before a slope is judged."""

TEMPERATURE_LIKE = 0.85
"""A temperature explains the gap if the slope explains this share of the squares of version-matched d: a temperature
explains most of it, other weights explain little."""

UNLIKE = 0.5
"""Up to this share no temperature explains it. Between the two, contexts may hide one: it also adds a constant to each
context, and these constants are most of the rest if contexts differ much."""


def slope(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``slope``: version-matched d against NLL minus entropy; -(1/T - 1) if one side leaves out a temperature T.

    If the trainer's distribution is the rollout's to the power of alpha, then within a context
    ``d = (alpha - 1) (log p + H) + a small constant``. NLL minus entropy has mean 0 within a context, so differences
    between contexts, which bend a line through the logprobs themselves, hardly matter.
    """
    for engine, arrays in run_and_engines(evidence):
        if not arrays.moments[:, FIGURE.matched_d_e, MOMENT.n].sum():
            yield unknown("slope", "needs version-matched tokens and the trainer's entropy", engine)
            continue
        yield _slope(arrays, engine, bound_of(evidence, engine)[0])


def _slope(arrays: EvidenceArrays, engine: str | None, bound: float) -> Finding:
    gap = exceeds(arrays, bound)
    line = _regression(arrays, gap.start)
    alpha, share = 1 - line.slope, line.share
    if gap.log_e < ALARM_LOG_E or line.tokens < MIN_LINE or line.sequences < sequential.MIN_SEQUENCES:
        shift = MeanShift(0.0, 0, 1.0, math.nan, math.nan, 0, line.tokens)
        return finding("slope", "flat", shift, arrays, engine, text="no version-matched gap to compare with NLL")
    error = math.sqrt(max(1 - share, 1e-6) / max(share, 1e-6) / line.sequences) * abs(line.slope)
    shift = MeanShift(
        gap.log_e, gap.start, alpha, alpha - 1.96 * error, alpha + 1.96 * error, line.sequences, line.tokens
    )
    explained = f"{share:.0%} of d^2 is explained by NLL minus entropy"
    if UNLIKE < share < TEMPERATURE_LIKE:
        return unknown("slope", f"{explained}: contexts may hide a temperature", engine)
    if share < TEMPERATURE_LIKE or abs(line.slope) <= max(MIN_SLOPE, 3 * error):
        return finding("slope", "flat", shift, arrays, engine, text=explained)
    outcome = "sharper" if alpha > 1 else "flatter"
    if _one_sided(arrays, engine).outcome == {"sharper": "negative", "flatter": "positive"}[outcome]:
        text = "d has only the sign that a temperature gives to unlikely tokens: a constant of the context"
        return finding("slope", "flat", shift, arrays, engine, text=text)
    relative = f"trainer looks like temperature {1 / alpha:.2f} of the rollout" if alpha > 0 else f"slope {alpha:.2f}"
    return finding("slope", outcome, shift, arrays, engine, text=f"{relative}; {explained}", detail=f"{alpha:.2f}")


class _Regression(NamedTuple):
    """A line of d on e, and the share of the squares of d that it explains."""

    tokens: int
    sequences: int
    slope: float
    share: float


def _regression(arrays: EvidenceArrays, start: int) -> _Regression:
    """Regress version-matched d on e (NLL minus entropy), from step ``start`` on."""
    totals = arrays.moments[start:].sum(axis=0)
    n, all_n = float(totals[FIGURE.matched_d_e, MOMENT.n]), float(totals[FIGURE.matched_d, MOMENT.n])
    sequences = int(totals[FIGURE.matched_d_e, MOMENT.sequences])
    if not n:
        return _Regression(0, 0, 0.0, 0.0)
    sums = totals[:, MOMENT.s]
    e, de, ee = (float(sums[figure]) / n for figure in (FIGURE.matched_e, FIGURE.matched_d_e, FIGURE.matched_e2))
    d, dd = (float(sums[figure]) / all_n for figure in (FIGURE.matched_d, FIGURE.matched_d2))
    covariance, of_e, of_d = de - d * e, ee - e * e, dd - d * d
    if of_e <= 0 or of_d <= 0:
        return _Regression(int(n), sequences, 0.0, 0.0)
    return _Regression(int(n), sequences, covariance / of_e, min(covariance * covariance / (of_e * of_d), 1.0))


def shape(arrays: EvidenceArrays, bound: float) -> str:
    """``temperature`` or ``truncation`` if the version-matched gap has that shape, else an empty string."""
    if _slope(arrays, None, bound).outcome in ("sharper", "flatter"):
        return "temperature"
    return "truncation" if _one_sided(arrays, None).outcome != "both" else ""
