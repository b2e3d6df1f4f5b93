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
from rltop.backend.diagnosis.checks.findings import FOUND, LOG_FOUND, asked, finding, unknown
from rltop.backend.diagnosis.checks.level import bound_of, exceeds
from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
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


def mean_ratio(piles: EvidenceByEngine) -> Iterator[Finding]:
    """mean_ratio: the mean of exp(d), by betting above 1 and by its interval below."""
    for engine, pile in asked(piles):
        yield _mean_ratio(pile, engine)


def _mean_ratio(pile: EvidenceArrays, engine: str | None) -> Finding:
    if not pile.sums[:, kernel.N].sum():
        return unknown("mean_ratio", "no logprobs of both sides yet", engine)
    high = _bets(pile)
    if high.log_e >= LOG_FOUND and high.low > LEAST_RATIO:
        text = f"mean ratio {1 + high.mean:.4f} ({1 + high.low:.4f} to {1 + high.high:.4f}) over {high.tokens} tokens"
        which, also = ("old", ", as matched tokens do") if _is_true_of_matched(pile, high.start) else ("all", "")
        text += f"; a true record has 1{also}"
        return finding("mean_ratio", "above", high, pile, engine, shift_by=1.0, text=text, detail=which)
    low = _bets(pile, down=True)
    if low.log_e >= LOG_FOUND and low.high < -LEAST_RATIO:
        text = f"mean ratio {1 + low.mean:.4f} ({1 + low.low:.4f} to {1 + low.high:.4f}) over {low.tokens} tokens"
        return finding(
            "mean_ratio", "below", low, pile, engine, shift_by=1.0, text=f"{text}: some of the trainer's mass is cut off"
        )
    known = pile.moments[:, kernel.M_X, 1].sum() >= pile.moments[:, kernel.X, 1].sum() / 10
    calm = sequential.above(pile.moments[:, kernel.M_X if known else kernel.X], pile.first, 0.02, LEAST_RATIO)
    text = f"mean ratio {1 + calm.mean:.4f} ({1 + calm.low:.4f} to {1 + calm.high:.4f})"
    return finding("mean_ratio", "calibrated", calm, pile, engine, shift_by=1.0, text=text)


def _is_true_of_matched(pile: EvidenceArrays, start: int) -> bool:
    """Whether the mean ratio of matched tokens, which have next to no noise, is 1 for sure."""
    of = sequential.stretches(pile.moments[start:, kernel.M_X])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    return bool(of.tokens[0] and abs(float(of.mean[0])) + error < LEAST_RATIO)


def _bets(pile: EvidenceArrays, *, down: bool = False) -> MeanShift:
    """The betting test: each token multiplies a wealth by 1 + stake (ratio - 1), of which a true record expects 1.

    Ratios are held to 21: that lowers wealth for stakes above 0; for those below it is an assumption, that larger
    ones add little to the mean. A mean and its error do not do for ratios below 1: the rare large ones that make the
    mean 1 may not have come yet, and the error does not know.
    """
    first, last = (2 * len(kernel.BETS), 2 * len(kernel.BETS) + len(kernel.DOWN)) if down else (0, 2 * len(kernel.BETS))
    logs = pile.sums[:, kernel.WEALTH + first : kernel.WEALTH + last]
    log_e, start = sequential.bets(logs, pile.first)
    matched = not down and int(np.argmax(logs[start:].sum(axis=0))) >= len(kernel.BETS)
    return _of(pile, kernel.M_X if matched else kernel.X, log_e, start)


def _of(pile: EvidenceArrays, figure: int, log_e: float, start: int) -> MeanShift:
    """The figure's mean from a step on, with evidence that was found otherwise; of all steps where there is none."""
    start = start if log_e >= LOG_FOUND else 0
    of = sequential.stretches(pile.moments[start:, figure])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    mean = float(of.mean[0])
    return MeanShift(log_e, start, mean, mean - error, mean + error, int(of.sequences[0]), int(of.tokens[0]))


def sign(piles: EvidenceByEngine) -> Iterator[Finding]:
    """sign: the mean of d against 0 and against its spread."""
    for engine, pile in asked(piles):
        if not pile.sums[:, kernel.N].sum():
            yield unknown("sign", "no logprobs of both sides yet", engine)
            continue
        matched = bool(pile.sums[:, kernel.MATCHED].sum())
        figure = kernel.M_D if matched else kernel.D
        up = sequential.above(pile.moments[:, figure], pile.first, 0.02, LEAST_MEAN)
        if up.log_e >= LOG_FOUND and up.tokens >= MIN_SHAPED:
            text = f"mean d {up.mean:+.4f} ({up.low:+.4f} to {up.high:+.4f}), above 0"
            yield finding("sign", "positive", up, pile, engine, text=text, unit="nats")
            continue
        square = sequential.stretches(pile.moments[:, kernel.M_DD]).mean
        down = sequential.below(pile.moments[:, kernel.M_D], pile.first, 0.02, MAX_RHO / 2 * square + LEAST_MEAN)
        if down.log_e >= LOG_FOUND and down.tokens >= MIN_SHAPED:
            rho = -2 * down.mean / max(float(square[down.start]), 1e-12)
            text = f"mean d {down.mean:+.4f}, {rho:.0f} times what its spread explains"
            yield finding("sign", "too_negative", down, pile, engine, text=text, unit="nats")
            continue
        yield finding("sign", "lognormal", up, pile, engine, text=f"mean d {up.mean:+.2g}", unit="nats")


MIN_SIDED = 20
"""Tokens with a sign before one side can be called empty."""


def sides(piles: EvidenceByEngine) -> Iterator[Finding]:
    """one_sided: sequences whose matched d has one sign alone, as tosses of a coin."""
    for engine, pile in asked(piles):
        if not pile.sums[:, kernel.MATCHED].sum():
            yield unknown("one_sided", "no version-matched tokens yet: old logprobs, or tokens of lag 0", engine)
            continue
        yield _sides(pile, engine)


def _sides(pile: EvidenceArrays, engine: str | None) -> Finding:
    tails = np.cumsum(pile.sums[::-1], axis=0)[::-1]
    rows_below, rows_above = tails[:, kernel.BELOW_ROWS], tails[:, kernel.ABOVE_ROWS]
    for outcome, few, many, coarse, rows_few, rows_many in (
        (
            "negative",
            kernel.FINE_ABOVE,
            kernel.FINE_BELOW,
            (kernel.COARSE_ABOVE, kernel.COARSE_BELOW),
            rows_above,
            rows_below,
        ),
        (
            "positive",
            kernel.FINE_BELOW,
            kernel.FINE_ABOVE,
            (kernel.COARSE_BELOW, kernel.COARSE_ABOVE),
            rows_below,
            rows_above,
        ),
    ):
        log_e = _coins(rows_few, rows_many) + sequential.log_weights(pile.first)
        rare = (tails[:, few] <= tails[:, many] / 100) & (tails[:, many] >= MIN_SIDED)
        rough_few, rough_many = tails[:, coarse[0]], tails[:, coarse[1]]
        rough = (rough_few <= rough_many / 100) & (rough_many >= MIN_SIDED)
        of_tokens = _coins(rough_few, np.minimum(rough_many, rows_many)) + sequential.log_weights(pile.first)
        each = np.maximum(np.where(rare, log_e, -np.inf), np.where(rough, of_tokens, -np.inf))
        start = int(np.argmax(each))
        if each[start] < LOG_FOUND or _silent_now(pile, coarse[1] if rough[start] and not rare[start] else many):
            continue
        low, high = float(pile.extremes[start:, 0].min()), float(pile.extremes[start:, 1].max())
        edge = low if outcome == "negative" else high
        start += int(np.argmax(pile.sums[start:, many] > 0))
        n = int(tails[start, many])
        text = (
            f"{n} matched tokens have d {'below' if outcome == 'negative' else 'above'} 0 and {int(tails[start, few])}"
        )
        text += f" the other sign; none beyond {edge:+.4f}"
        at = MeanShift(
            float(each.max()), start, edge, low, high, int(rows_many[start]), int(tails[start, kernel.MATCHED])
        )
        return finding("one_sided", outcome, at, pile, engine, text=text, unit="nats", detail=f"{math.exp(edge):.3f}")
    n = int(tails[0, kernel.MATCHED])
    both = MeanShift(0.0, 0, 0.0, -math.inf, math.inf, 0, n)
    counts = f"{int(tails[0, kernel.FINE_BELOW])} below and {int(tails[0, kernel.FINE_ABOVE])} above"
    return finding("one_sided", "both", both, pile, engine, text=f"of {n} matched tokens {counts} {kernel.FINE} nats")


def _silent_now(pile: EvidenceArrays, many: int) -> bool:
    """Whether the latest steps have matched tokens but none of that sign."""
    late = pile.sums[-sequential.RECOVERY_STEPS :]
    return bool(
        len(late) >= sequential.RECOVERY_STEPS and late[:, kernel.MATCHED].sum() >= 60 and not late[:, many].sum()
    )


def _coins(few: Floats, many: Floats) -> Floats:
    """Logarithm of the evidence that a coin is not fair: uniform mixture over its bias."""
    a, b = few.astype(np.int64), many.astype(np.int64)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, (a + b).max(initial=0) + 2)))])
    found: Floats = log_factorial[a] + log_factorial[b] - log_factorial[a + b + 1] + (a + b) * math.log(2)
    return found


def surprisal(piles: EvidenceByEngine) -> Iterator[Finding]:
    """nll_minus_entropy: the trainer's surprisal at what was sampled less its entropy, weighted by the ratio: by betting.

    The weight makes its mean 0 at any lag, and whatever the trainer does, if the record is what was sampled from.
    """
    for engine, pile in asked(piles):
        if not pile.moments[:, kernel.SURPRISAL, 1].sum():
            yield unknown("nll_minus_entropy", "the trainer passes no entropy (sequences(entropy=...))", engine)
            continue
        base = kernel.WEALTH + 2 * len(kernel.BETS) + len(kernel.DOWN)
        accounts = pile.sums[:, base : base + len(kernel.SURPRISE)]
        for outcome, logs in (("above", accounts[:, :2]), ("below", accounts[:, 2:])):
            told = _of(pile, kernel.SURPRISAL, *sequential.bets(logs, pile.first))
            beyond = told.low > LEAST_SURPRISAL if outcome == "above" else told.high < -LEAST_SURPRISAL
            if told.log_e >= LOG_FOUND and beyond:
                break
        else:
            outcome = "equal"
        text = f"surprisal less entropy {told.mean:+.3f} ({told.low:+.3f} to {told.high:+.3f}) nats a token"
        yield finding("nll_minus_entropy", outcome, told, pile, engine, text=text, unit="nats")


LEAST_OTHER = 0.3
"""Share by which other tokens than the likeliest may be more or fewer than the trainer says: a lag of one or two
versions made 0.1 in the demo's runs."""

CUT = 0.02
CUT_DUE = 60.0
"""So small a share of what is due, where so many are due, says that others are cut off: in such contexts a temperature
of 0.6 leaves 0.05 to 0.08 of them."""


SHARPER, FLATTER = (0.02, 0.2, 0.4), (1.6, 2.0)
"""Shares of what is due that are bet on. More than twice is no bet that expects nothing where p is as low as 0.67."""


def sampler(piles: EvidenceByEngine) -> Iterator[Finding]:
    """calibration: how often another token than the likeliest is sampled where the trainer is nearly sure, without top logprobs.

    Where the entropy is below ``loop.PEAK`` a token with more than a half is the likeliest. The number of others that
    are due is estimated from the likeliest alone, sum of ``(1 - p) / p`` over them, which has the same expectation
    (Horvitz and Thompson 1952) if tokens are sampled from the trainer's distribution. By betting: for a share s below
    the least that is healthy, l, wealth is multiplied by ``(s / l)^others exp((l - s) due)``, of which a healthy run
    expects 1 or less; for one above the most that is healthy likewise.
    """
    for engine, pile in asked(piles):
        seen = pile.sums[:, [kernel.OTHER, kernel.OTHER_NARROW]]
        due = pile.sums[:, [kernel.OTHER_DUE, kernel.OTHER_NARROW_DUE]]
        if not due.sum():
            yield unknown("calibration", "no context where the trainer's entropy is low, or no entropy is passed", engine)
            continue
        outcome, start, log_e = "calibrated", 0, 0.0
        more, less = _by_lag(pile)
        for word, shares, usual, by_lag in (
            ("flatter", FLATTER, 1 + LEAST_OTHER, more), ("sharper", SHARPER, 1 - LEAST_OTHER, less),
        ):  # fmt: skip
            bound = usual * by_lag[:, None]
            s = np.array(shares) * by_lag[:, None]
            logs = seen.sum(axis=1)[:, None] * np.log(s / bound) + due.sum(axis=1)[:, None] * (bound - s)
            evidence, at = sequential.bets(logs, pile.first)
            if evidence >= LOG_FOUND:
                outcome, start, log_e = word, at, evidence
                break
        seen_now, due_now = seen[start:].sum(axis=0), due[start:].sum(axis=0)
        if outcome == "sharper" and bool(((due_now >= CUT_DUE) & (seen_now <= CUT * due_now)).any()):
            outcome = "truncated"
        ratio = float(seen_now.sum() / max(due_now.sum(), 1e-9))
        told = MeanShift(log_e, start, ratio, math.nan, math.nan, 0, int(pile.sums[start:, kernel.N].sum()))
        text = (
            f"where the trainer is nearly sure, {seen_now.sum():.0f} other tokens were sampled, {due_now.sum():.0f} due"
        )
        yield finding("calibration", outcome, told, pile, engine, text=text, detail=f"{ratio:.2f}")


def _by_lag(pile: EvidenceArrays) -> tuple[Floats, Floats]:
    """By how many times more other tokens, and fewer, may come for the age of what is trained on [steps].

    They were sampled when the entropy was what it was so many steps before; where the trainer is sure, others become
    fewer about as the square of it does. And what one or two versions make, twice as many make twice.
    """
    further = np.maximum(np.nan_to_num(mean_lags(pile)) - USUAL_LAG, 0)
    sums = np.cumsum(pile.moments[:, kernel.ENTROPY, 1:3], axis=0)
    sums[SMOOTH:] -= sums[:-SMOOTH].copy()
    there = sums[:, 0] > 0
    if not further.any() or not there.any():
        return np.ones(pile.steps), np.ones(pile.steps)
    entropy = np.maximum(sums[there, 1] / sums[there, 0], 1e-6)
    then, now = (np.interp(at, pile.last[there], entropy) for at in (pile.last - further, pile.last))
    change, times = (then / now) ** 2, further / USUAL_LAG
    return np.maximum(change, 1.0) * (1 + LEAST_OTHER) ** times, np.minimum(change, 1.0) * (1 - LEAST_OTHER) ** times


SMOOTH = 5
"""Steps that an entropy is a mean of."""

USUAL_LAG = 2.0
"""Versions that ``LEAST_OTHER`` is of."""

MIN_ALIGNED = 200
"""Tokens at a displacement before it can be called the right one."""


def alignment(piles: EvidenceByEngine) -> Iterator[Finding]:
    """alignment: at which displacement the record is nearest to the trainer's logprobs."""
    for engine, pile in asked(piles):
        found: Finding | None = None
        for steps in (1, 3, 10):  # the shortest that has enough tokens
            late = pile.aligned[-steps:].sum(axis=0)
            if late[2, 0] < MIN_ALIGNED:
                continue
            found = _alignment(pile, late, engine, pile.aligned[-2] if steps == 1 and pile.steps > 1 else None)
            break
        yield found or unknown("alignment", f"fewer than {MIN_ALIGNED} tokens", engine)


DISPLACED = 4.0
"""By so much nearer must the record be elsewhere, in two steps: where nearly all tokens are sure, a few make the mean,
and of one step it was twice as near elsewhere once in 500 healthy steps."""


def _alignment(pile: EvidenceArrays, late: Floats, engine: str | None, before: Floats | None) -> Finding:
    with np.errstate(invalid="ignore", divide="ignore"):
        off = np.where(late[:, 0] >= MIN_ALIGNED, late[:, 1] / late[:, 0], np.inf)
        earlier = off if before is None else before[:, 1] / before[:, 0]
    best = int(np.argmin(off))
    n = int(late[best, 0])
    stands = not earlier[best] > earlier[2] / 2  # NaN of a step without tokens says nothing against it
    if kernel.SHIFTS[best] and off[best] < off[2] / DISPLACED and stands:
        with np.errstate(invalid="ignore", divide="ignore"):
            each = pile.aligned[:, :, 1] / pile.aligned[:, :, 0]
        wrong = each[:, best] < each[:, 2] / 2
        start = pile.steps - 1
        while start and (wrong[start - 1] or not pile.aligned[start - 1, 2, 0]):
            start -= 1
        by = -kernel.SHIFTS[best]
        text = f"mean |d| is {off[2]:.3f} as it stands and {off[best]:.3f} with the record moved by {by:+d} tokens"
        at = MeanShift(FOUND, start, float(by), math.nan, math.nan, 0, n)
        return finding("alignment", "shifted", at, pile, engine, text=text, unit="tokens", detail=f"{-by:+d}")
    text = f"mean |d| {off[2]:.3f} as it stands, {min(off[1], off[3]):.3f} one token off"
    return finding("alignment", "aligned", MeanShift(0.0, 0, 0.0, 0.0, 0.0, 0, n), pile, engine, text=text, unit="tokens")


LEAST_SLOPE = 0.03
"""A temperature that differs by so much (as a share) is a fault."""

MIN_LINE = 100
"""Tokens before a slope is told."""

TEMPERATURE_LIKE = 0.85
"""Share of the squares of matched d that goes with surprisal, from which on a temperature is what explains it: of a
temperature it is most, of other weights little."""

UNLIKE = 0.5
"""Up to which it is none. Between the two, contexts that differ much may make a temperature's share smaller: their own
constants, which it has too, are most of what is left."""


def slope(piles: EvidenceByEngine) -> Iterator[Finding]:
    """How matched d goes with surprisal less entropy: with -(1/T - 1) for a temperature that one side leaves out.

    Within a context ``d = (alpha - 1) (log p + H) + a small constant`` where the trainer's distribution is the record's
    to the power of alpha. Surprisal less entropy has mean 0 within a context, so differences between contexts, which
    bend a line through logprobs themselves, hardly enter.
    """
    for engine, pile in asked(piles):
        if not pile.moments[:, kernel.M_DE, 1].sum():
            yield unknown("slope", "it needs matched tokens and the trainer's entropy", engine)
            continue
        yield _slope(pile, engine, bound_of(piles, engine)[0])


def _slope(pile: EvidenceArrays, engine: str | None, least: float) -> Finding:
    off = exceeds(pile, least)
    n, rows, line, share = _line(pile, off.start)
    alpha = 1 - line
    if off.log_e < LOG_FOUND or n < MIN_LINE or rows < sequential.MIN_SEQUENCES:
        at = MeanShift(0.0, 0, 1.0, math.nan, math.nan, 0, int(n))
        return finding("slope", "flat", at, pile, engine, text="no matched gap that could go with surprisal")
    error = math.sqrt(max(1 - share, 1e-6) / max(share, 1e-6) / rows) * abs(line)
    told = MeanShift(off.log_e, off.start, alpha, alpha - 1.96 * error, alpha + 1.96 * error, int(rows), int(n))
    if UNLIKE < share < TEMPERATURE_LIKE:
        return unknown("slope", f"{share:.0%} of d d goes with surprisal: contexts may hide a temperature", engine)
    if share < TEMPERATURE_LIKE or abs(line) <= max(LEAST_SLOPE, 3 * error):
        return finding("slope", "flat", told, pile, engine, text=f"{share:.0%} of d d goes with surprisal")
    text = f"the trainer's distribution is the record's to the power of {alpha:.2f}, {share:.0%} of d d"
    outcome = "sharper" if alpha > 1 else "flatter"
    if _sides(pile, engine).outcome == {"sharper": "negative", "flatter": "positive"}[outcome]:
        text = "d has one sign, and that which a temperature gives to unlikely tokens alone: it is a context's constant"
        return finding("slope", "flat", told, pile, engine, text=text)
    return finding("slope", outcome, told, pile, engine, text=text, detail=f"{alpha:.2f}")


def _line(pile: EvidenceArrays, start: int) -> tuple[float, float, float, float]:
    """From step ``start`` on: tokens, sequences, slope of d on e, share of the squares of d that goes with it."""
    part = pile.moments[start:]
    n, all_n = float(part[:, kernel.M_DE, 1].sum()), float(part[:, kernel.M_D, 1].sum())
    rows = float(part[:, kernel.M_DE, 0].sum())
    if not n:
        return 0.0, 0.0, 0.0, 0.0
    e, de, ee = (float(part[:, figure, 2].sum()) / n for figure in (kernel.M_E, kernel.M_DE, kernel.M_EE))
    d, dd = (float(part[:, figure, 2].sum()) / all_n for figure in (kernel.M_D, kernel.M_DD))
    cov, of_e, of_d = de - d * e, ee - e * e, dd - d * d
    if of_e <= 0 or of_d <= 0:
        return n, rows, 0.0, 0.0
    return n, rows, cov / of_e, min(cov * cov / (of_e * of_d), 1.0)


def shape(pile: EvidenceArrays, least: float) -> str:
    """``temperature`` or ``truncation`` where the matched gap has that form, else nothing."""
    if _slope(pile, None, least).outcome in ("sharper", "flatter"):
        return "temperature"
    return "truncation" if _sides(pile, None).outcome != "both" else ""
