"""Tests of the record against the trainer's distribution: mean_ratio, sign, one_sided, nll_minus_entropy, alignment and the slope. Pure.

If the record is the density that was sampled from, ``E[exp(d) | past] = 1`` for any trainer, however stale, as long as
it has no mass where nothing could be sampled; then ``E[d] <= 0``, and ``E[exp(d) (-log p - H)] = 0`` for the trainer's
own entropy H. All three hold on all tokens and at any lag; matched tokens have less noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.deterministic import mean_lags
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E, CERTAIN_LOG_E, finding, run_and_engines, unknown
from rltop.backend.diagnosis.checks.level import bound_of, exceeds
from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats, MeanShift

LEAST_RATIO = 2e-3
"""A mean ratio this near 1 is no fault however sure it is: rounding of the record to 16 bits makes some."""

LEAST_MEAN = 1e-3
"""A mean d this little above 0 is no fault: 16-bit records are rounded after they were sampled from."""

MAX_RHO = 4.0
"""-2 mean / mean square is 1 for a small difference of policies; a truncation has far more."""

MIN_SHAPED = 500
"""Tokens before the shape of d is told: rare large ones may not have come yet."""

LEAST_SURPRISAL = 0.01
"""Nats that surprisal and entropy may differ by: the trainer's entropy has 16 bits in some frameworks."""


def mean_ratio(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """mean_ratio: the mean of exp(d), by betting above 1 and by its interval below."""
    for engine, arrays in run_and_engines(evidence):
        yield _mean_ratio(arrays, engine)


def _mean_ratio(arrays: EvidenceArrays, engine: str | None) -> Finding:
    if not arrays.sums[:, SUM.valid].sum():
        return unknown("mean_ratio", "no logprobs of both sides yet", engine)
    high = _bets(arrays)
    if high.log_e >= ALARM_LOG_E and high.low > LEAST_RATIO:
        text = f"mean ratio {1 + high.mean:.4f} ({1 + high.low:.4f} to {1 + high.high:.4f}) over {high.tokens} tokens"
        which, also = ("old", ", as matched tokens do") if _is_true_of_matched(arrays, high.start) else ("all", "")
        text += f"; a true record has 1{also}"
        return finding("mean_ratio", "above", high, arrays, engine, offset=1.0, text=text, detail=which)
    low = _bets(arrays, down=True)
    if low.log_e >= ALARM_LOG_E and low.high < -LEAST_RATIO:
        text = f"mean ratio {1 + low.mean:.4f} ({1 + low.low:.4f} to {1 + low.high:.4f}) over {low.tokens} tokens"
        return finding(
            "mean_ratio", "below", low, arrays, engine, offset=1.0, text=f"{text}: some of the trainer's mass is cut off"
        )
    known = arrays.moments[:, FIGURE.matched_excess, MOMENT.n].sum() >= arrays.moments[:, FIGURE.excess, MOMENT.n].sum() / 10
    calm = sequential.above(arrays.moments[:, FIGURE.matched_excess if known else FIGURE.excess], arrays.first, 0.02, LEAST_RATIO)
    text = f"mean ratio {1 + calm.mean:.4f} ({1 + calm.low:.4f} to {1 + calm.high:.4f})"
    return finding("mean_ratio", "calibrated", calm, arrays, engine, offset=1.0, text=text)


def _is_true_of_matched(arrays: EvidenceArrays, start: int) -> bool:
    """Whether the mean ratio of matched tokens, which have next to no noise, is 1 for sure."""
    of = sequential.stretches(arrays.moments[start:, FIGURE.matched_excess])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    return bool(of.tokens[0] and abs(float(of.mean[0])) + error < LEAST_RATIO)


def _bets(arrays: EvidenceArrays, *, down: bool = False) -> MeanShift:
    """The betting test: each token multiplies a wealth by 1 + stake (ratio - 1), of which a true record expects 1.

    Ratios are held to 21: that lowers wealth for stakes above 0; for those below it is an assumption, that larger
    ones add little to the mean. A mean and its error do not do for ratios below 1: the rare large ones that make the
    mean 1 may not have come yet, and the error does not know.
    """
    first, last = (2 * len(kernel.STAKES_ABOVE), 2 * len(kernel.STAKES_ABOVE) + len(kernel.STAKES_BELOW)) if down else (0, 2 * len(kernel.STAKES_ABOVE))
    logs = arrays.sums[:, kernel.WEALTH + first : kernel.WEALTH + last]
    log_e, start = sequential.bets(logs, arrays.first)
    matched = not down and int(np.argmax(logs[start:].sum(axis=0))) >= len(kernel.STAKES_ABOVE)
    return _of(arrays, FIGURE.matched_excess if matched else FIGURE.excess, log_e, start)


def _of(arrays: EvidenceArrays, figure: int, log_e: float, start: int) -> MeanShift:
    """The figure's mean from a step on, with evidence that was found otherwise; of all steps where there is none."""
    start = start if log_e >= ALARM_LOG_E else 0
    of = sequential.stretches(arrays.moments[start:, figure])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    mean = float(of.mean[0])
    return MeanShift(log_e, start, mean, mean - error, mean + error, int(of.sequences[0]), int(of.tokens[0]))


def sign(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """sign: the mean of d against 0 and against its spread."""
    for engine, arrays in run_and_engines(evidence):
        if not arrays.sums[:, SUM.valid].sum():
            yield unknown("sign", "no logprobs of both sides yet", engine)
            continue
        matched = bool(arrays.sums[:, SUM.matched].sum())
        figure = FIGURE.matched_d if matched else FIGURE.d
        up = sequential.above(arrays.moments[:, figure], arrays.first, 0.02, LEAST_MEAN)
        if up.log_e >= ALARM_LOG_E and up.tokens >= MIN_SHAPED:
            text = f"mean d {up.mean:+.4f} ({up.low:+.4f} to {up.high:+.4f}), above 0"
            yield finding("sign", "positive", up, arrays, engine, text=text, unit="nats")
            continue
        square = sequential.stretches(arrays.moments[:, FIGURE.matched_d2]).mean
        down = sequential.below(arrays.moments[:, FIGURE.matched_d], arrays.first, 0.02, MAX_RHO / 2 * square + LEAST_MEAN)
        if down.log_e >= ALARM_LOG_E and down.tokens >= MIN_SHAPED:
            rho = -2 * down.mean / max(float(square[down.start]), 1e-12)
            text = f"mean d {down.mean:+.4f}, {rho:.0f} times what its spread explains"
            yield finding("sign", "too_negative", down, arrays, engine, text=text, unit="nats")
            continue
        yield finding("sign", "lognormal", up, arrays, engine, text=f"mean d {up.mean:+.2g}", unit="nats")


MIN_SIDED = 20
"""Tokens with a sign before one side can be called empty."""


def sides(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """one_sided: sequences whose matched d has one sign alone, as tosses of a coin."""
    for engine, arrays in run_and_engines(evidence):
        if not arrays.sums[:, SUM.matched].sum():
            yield unknown("one_sided", "no version-matched tokens yet: old logprobs, or tokens of lag 0", engine)
            continue
        yield _sides(arrays, engine)


def _sides(arrays: EvidenceArrays, engine: str | None) -> Finding:
    tails = np.cumsum(arrays.sums[::-1], axis=0)[::-1]
    rows_below, rows_above = tails[:, SUM.sequences_below], tails[:, SUM.sequences_above]
    for outcome, few, many, coarse, rows_few, rows_many in (
        (
            "negative",
            SUM.fine_above,
            SUM.fine_below,
            (SUM.coarse_above, SUM.coarse_below),
            rows_above,
            rows_below,
        ),
        (
            "positive",
            SUM.fine_below,
            SUM.fine_above,
            (SUM.coarse_below, SUM.coarse_above),
            rows_below,
            rows_above,
        ),
    ):
        log_e = _coins(rows_few, rows_many) + sequential.log_weights(arrays.first)
        rare = (tails[:, few] <= tails[:, many] / 100) & (tails[:, many] >= MIN_SIDED)
        rough_few, rough_many = tails[:, coarse[0]], tails[:, coarse[1]]
        rough = (rough_few <= rough_many / 100) & (rough_many >= MIN_SIDED)
        of_tokens = _coins(rough_few, np.minimum(rough_many, rows_many)) + sequential.log_weights(arrays.first)
        each = np.maximum(np.where(rare, log_e, -np.inf), np.where(rough, of_tokens, -np.inf))
        start = int(np.argmax(each))
        if each[start] < ALARM_LOG_E or _silent_now(arrays, coarse[1] if rough[start] and not rare[start] else many):
            continue
        low, high = float(arrays.extremes[start:, 0].min()), float(arrays.extremes[start:, 1].max())
        edge = low if outcome == "negative" else high
        start += int(np.argmax(arrays.sums[start:, many] > 0))
        n = int(tails[start, many])
        text = (
            f"{n} matched tokens have d {'below' if outcome == 'negative' else 'above'} 0 and {int(tails[start, few])}"
        )
        text += f" the other sign; none beyond {edge:+.4f}"
        at = MeanShift(
            float(each.max()), start, edge, low, high, int(rows_many[start]), int(tails[start, SUM.matched])
        )
        return finding("one_sided", outcome, at, arrays, engine, text=text, unit="nats", detail=f"{math.exp(edge):.3f}")
    n = int(tails[0, SUM.matched])
    both = MeanShift(0.0, 0, 0.0, -math.inf, math.inf, 0, n)
    counts = f"{int(tails[0, SUM.fine_below])} below and {int(tails[0, SUM.fine_above])} above"
    return finding("one_sided", "both", both, arrays, engine, text=f"of {n} matched tokens {counts} {kernel.FINE} nats")


def _silent_now(arrays: EvidenceArrays, many: int) -> bool:
    """Whether the latest steps have matched tokens but none of that sign."""
    late = arrays.sums[-sequential.RECOVERY_STEPS :]
    return bool(
        len(late) >= sequential.RECOVERY_STEPS and late[:, SUM.matched].sum() >= 60 and not late[:, many].sum()
    )


def _coins(few: Floats, many: Floats) -> Floats:
    """Logarithm of the evidence that a coin is not fair: uniform mixture over its bias."""
    a, b = few.astype(np.int64), many.astype(np.int64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, (a + b).max(initial=0) + 2)))])
    found: Floats = log_factorial[a] + log_factorial[b] - log_factorial[a + b + 1] + (a + b) * math.log(2)
    return found


def surprisal(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """nll_minus_entropy: the trainer's surprisal at what was sampled less its entropy, weighted by the ratio: by betting.

    The weight makes its mean 0 at any lag, and whatever the trainer does, if the record is what was sampled from.
    """
    for engine, arrays in run_and_engines(evidence):
        if not arrays.moments[:, FIGURE.weighted_nll, MOMENT.n].sum():
            yield unknown("nll_minus_entropy", "the trainer passes no entropy (sequences(entropy=...))", engine)
            continue
        base = kernel.WEALTH + 2 * len(kernel.STAKES_ABOVE) + len(kernel.STAKES_BELOW)
        accounts = arrays.sums[:, base : base + len(kernel.STAKES_NLL)]
        for outcome, logs in (("above", accounts[:, :2]), ("below", accounts[:, 2:])):
            shift = _of(arrays, FIGURE.weighted_nll, *sequential.bets(logs, arrays.first))
            beyond = shift.low > LEAST_SURPRISAL if outcome == "above" else shift.high < -LEAST_SURPRISAL
            if shift.log_e >= ALARM_LOG_E and beyond:
                break
        else:
            outcome = "equal"
        text = f"surprisal less entropy {shift.mean:+.3f} ({shift.low:+.3f} to {shift.high:+.3f}) nats a token"
        yield finding("nll_minus_entropy", outcome, shift, arrays, engine, text=text, unit="nats")


LEAST_OTHER = 0.3
"""Share by which other tokens than the likeliest may be more or fewer than the trainer says: a lag of one or two
versions made 0.1 in the demo's runs."""

CUT = 0.02
CUT_DUE = 60.0
"""So small a share of what is due, where so many are due, says that others are cut off: in such contexts a temperature
of 0.6 leaves 0.05 to 0.08 of them."""


SHARPER, FLATTER = (0.02, 0.2, 0.4), (1.6, 2.0)
"""Shares of what is due that are bet on. More than twice is no bet that expects nothing where p is as low as 0.67."""


def sampler(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """calibration: how often another token than the likeliest is sampled where the trainer is nearly sure, without top logprobs.

    Where the entropy is below ``loop.PEAK`` a token with more than a half is the likeliest. The number of others that
    are due is estimated from the likeliest alone, sum of ``(1 - p) / p`` over them, which has the same expectation
    (Horvitz and Thompson 1952) if tokens are sampled from the trainer's distribution. By betting: for a share s below
    the least that is healthy, l, wealth is multiplied by ``(s / l)^others exp((l - s) due)``, of which a healthy run
    expects 1 or less; for one above the most that is healthy likewise.
    """
    for engine, arrays in run_and_engines(evidence):
        seen = arrays.sums[:, [SUM.unlikely, SUM.lowest_unlikely]]
        due = arrays.sums[:, [SUM.unlikely_expected, SUM.lowest_unlikely_expected]]
        if not due.sum():
            yield unknown("calibration", "no context where the trainer's entropy is low, or no entropy is passed", engine)
            continue
        outcome, start, log_e = "calibrated", 0, 0.0
        more, less = _by_lag(arrays)
        for word, shares, usual, by_lag in (
            ("flatter", FLATTER, 1 + LEAST_OTHER, more), ("sharper", SHARPER, 1 - LEAST_OTHER, less),
        ):  # fmt: skip
            bound = usual * by_lag[:, None]
            s = np.array(shares) * by_lag[:, None]
            logs = seen.sum(axis=1)[:, None] * np.log(s / bound) + due.sum(axis=1)[:, None] * (bound - s)
            log_wealth, at = sequential.bets(logs, arrays.first)
            if log_wealth >= ALARM_LOG_E:
                outcome, start, log_e = word, at, log_wealth
                break
        seen_now, due_now = seen[start:].sum(axis=0), due[start:].sum(axis=0)
        if outcome == "sharper" and bool(((due_now >= CUT_DUE) & (seen_now <= CUT * due_now)).any()):
            outcome = "truncated"
        ratio = float(seen_now.sum() / max(due_now.sum(), 1e-9))
        shift = MeanShift(log_e, start, ratio, math.nan, math.nan, 0, int(arrays.sums[start:, SUM.valid].sum()))
        text = (
            f"where the trainer is nearly sure, {seen_now.sum():.0f} other tokens were sampled, {due_now.sum():.0f} due"
        )
        yield finding("calibration", outcome, shift, arrays, engine, text=text, detail=f"{ratio:.2f}")


def _by_lag(arrays: EvidenceArrays) -> tuple[Floats, Floats]:
    """By how many times more other tokens, and fewer, may come for the age of what is trained on [steps].

    They were sampled when the entropy was what it was so many steps before; where the trainer is sure, others become
    fewer about as the square of it does. And what one or two versions make, twice as many make twice.
    """
    further = np.maximum(np.nan_to_num(mean_lags(arrays)) - USUAL_LAG, 0)
    sums = np.cumsum(arrays.moments[:, FIGURE.entropy, 1:3], axis=0)
    sums[SMOOTH:] -= sums[:-SMOOTH].copy()
    there = sums[:, 0] > 0
    if not further.any() or not there.any():
        return np.ones(arrays.steps), np.ones(arrays.steps)
    entropy = np.maximum(sums[there, 1] / sums[there, 0], 1e-6)
    then, now = (np.interp(at, arrays.last[there], entropy) for at in (arrays.last - further, arrays.last))
    change, times = (then / now) ** 2, further / USUAL_LAG
    return np.maximum(change, 1.0) * (1 + LEAST_OTHER) ** times, np.minimum(change, 1.0) * (1 - LEAST_OTHER) ** times


SMOOTH = 5
"""Steps that an entropy is a mean of."""

USUAL_LAG = 2.0
"""Versions that ``LEAST_OTHER`` is of."""

MIN_ALIGNED = 200
"""Tokens at a displacement before it can be called the right one."""


def alignment(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """alignment: at which displacement the record is nearest to the trainer's logprobs."""
    for engine, arrays in run_and_engines(evidence):
        found: Finding | None = None
        for steps in (1, 3, 10):  # the shortest that has enough tokens
            late = arrays.aligned[-steps:].sum(axis=0)
            if late[2, 0] < MIN_ALIGNED:
                continue
            found = _alignment(arrays, late, engine, arrays.aligned[-2] if steps == 1 and arrays.steps > 1 else None)
            break
        yield found or unknown("alignment", f"fewer than {MIN_ALIGNED} tokens", engine)


DISPLACED = 4.0
"""By so much nearer must the record be elsewhere, in two steps: where nearly all tokens are sure, a few make the mean,
and of one step it was twice as near elsewhere once in 500 healthy steps."""


def _alignment(arrays: EvidenceArrays, late: Floats, engine: str | None, before: Floats | None) -> Finding:
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(late[:, 0] >= MIN_ALIGNED, late[:, 1] / late[:, 0], np.inf)
        earlier = off if before is None else before[:, 1] / before[:, 0]
    best = int(np.argmin(off))
    n = int(late[best, 0])
    stands = not earlier[best] > earlier[2] / 2  # NaN of a step without tokens says nothing against it
    if kernel.SHIFTS[best] and off[best] < off[2] / DISPLACED and stands:
        with np.errstate(invalid="ignore", divide="ignore"):
            each = arrays.aligned[:, :, 1] / arrays.aligned[:, :, 0]
        wrong = each[:, best] < each[:, 2] / 2
        start = arrays.steps - 1
        while start and (wrong[start - 1] or not arrays.aligned[start - 1, 2, 0]):
            start -= 1
        by = -kernel.SHIFTS[best]
        text = f"mean |d| is {off[2]:.3f} as it stands and {off[best]:.3f} with the record moved by {by:+d} tokens"
        at = MeanShift(CERTAIN_LOG_E, start, float(by), math.nan, math.nan, 0, n)
        return finding("alignment", "shifted", at, arrays, engine, text=text, unit="tokens", detail=f"{-by:+d}")
    text = f"mean |d| {off[2]:.3f} as it stands, {min(off[1], off[3]):.3f} one token off"
    return finding("alignment", "aligned", MeanShift(0.0, 0, 0.0, 0.0, 0.0, 0, n), arrays, engine, text=text, unit="tokens")


LEAST_SLOPE = 0.03
"""A temperature that differs by so much (as a share) is a fault."""

MIN_LINE = 100
"""Tokens before a slope is shift."""

TEMPERATURE_LIKE = 0.85
"""Share of the squares of matched d that goes with surprisal, from which on a temperature is what explains it: of a
temperature it is most, of other weights little."""

UNLIKE = 0.5
"""Up to which it is none. Between the two, contexts that differ much may make a temperature's share smaller: their own
constants, which it has too, are most of what is left."""


def slope(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """How matched d goes with surprisal less entropy: with -(1/T - 1) for a temperature that one side leaves out.

    Within a context ``d = (alpha - 1) (log p + H) + a small constant`` where the trainer's distribution is the record's
    to the power of alpha. Surprisal less entropy has mean 0 within a context, so differences between contexts, which
    bend a line through logprobs themselves, hardly enter.
    """
    for engine, arrays in run_and_engines(evidence):
        if not arrays.moments[:, FIGURE.matched_d_e, MOMENT.n].sum():
            yield unknown("slope", "it needs matched tokens and the trainer's entropy", engine)
            continue
        yield _slope(arrays, engine, bound_of(evidence, engine)[0])


def _slope(arrays: EvidenceArrays, engine: str | None, least: float) -> Finding:
    off = exceeds(arrays, least)
    n, rows, line, share = _line(arrays, off.start)
    alpha = 1 - line
    if off.log_e < ALARM_LOG_E or n < MIN_LINE or rows < sequential.MIN_SEQUENCES:
        at = MeanShift(0.0, 0, 1.0, math.nan, math.nan, 0, int(n))
        return finding("slope", "flat", at, arrays, engine, text="no matched gap that could go with surprisal")
    error = math.sqrt(max(1 - share, 1e-6) / max(share, 1e-6) / rows) * abs(line)
    shift = MeanShift(off.log_e, off.start, alpha, alpha - 1.96 * error, alpha + 1.96 * error, int(rows), int(n))
    if UNLIKE < share < TEMPERATURE_LIKE:
        return unknown("slope", f"{share:.0%} of d d goes with surprisal: contexts may hide a temperature", engine)
    if share < TEMPERATURE_LIKE or abs(line) <= max(LEAST_SLOPE, 3 * error):
        return finding("slope", "flat", shift, arrays, engine, text=f"{share:.0%} of d d goes with surprisal")
    text = f"the trainer's distribution is the record's to the power of {alpha:.2f}, {share:.0%} of d d"
    outcome = "sharper" if alpha > 1 else "flatter"
    if _sides(arrays, engine).outcome == {"sharper": "negative", "flatter": "positive"}[outcome]:
        text = "d has one sign, and that which a temperature gives to unlikely tokens alone: it is a context's constant"
        return finding("slope", "flat", shift, arrays, engine, text=text)
    return finding("slope", outcome, shift, arrays, engine, text=text, detail=f"{alpha:.2f}")


def _line(arrays: EvidenceArrays, start: int) -> tuple[float, float, float, float]:
    """From step ``start`` on: tokens, sequences, slope of d on e, share of the squares of d that goes with it."""
    part = arrays.moments[start:]
    n, all_n = float(part[:, FIGURE.matched_d_e, MOMENT.n].sum()), float(part[:, FIGURE.matched_d, MOMENT.n].sum())
    rows = float(part[:, FIGURE.matched_d_e, MOMENT.sequences].sum())
    if not n:
        return 0.0, 0.0, 0.0, 0.0
    e, de, ee = (float(part[:, figure, 2].sum()) / n for figure in (FIGURE.matched_e, FIGURE.matched_d_e, FIGURE.matched_e2))
    d, dd = (float(part[:, figure, 2].sum()) / all_n for figure in (FIGURE.matched_d, FIGURE.matched_d2))
    cov, of_e, of_d = de - d * e, ee - e * e, dd - d * d
    if of_e <= 0 or of_d <= 0:
        return n, rows, 0.0, 0.0
    return n, rows, cov / of_e, min(cov * cov / (of_e * of_d), 1.0)


def shape(arrays: EvidenceArrays, least: float) -> str:
    """``temperature`` or ``truncation`` where the matched gap has that form, else nothing."""
    if _slope(arrays, None, least).outcome in ("sharper", "flatter"):
        return "temperature"
    return "truncation" if _sides(arrays, None).outcome != "both" else ""
