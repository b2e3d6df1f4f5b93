"""The compiled loop over tokens that computes evidence, and the columns of the arrays that it fills.

numba renews cached code when the file of the compiled function changes, and does not look at other files. So every
constant and function that the loop uses stands in this file; the clamp and the series of k3 repeat those of
``rltop.backend.summary.kernel``.

Columns are declared once, as the fields of a named tuple: ``FIGURE.k3`` is the index of a column in Python and a
constant in compiled code. The order of the columns is the format of stored evidence.
"""

from __future__ import annotations

import functools
import math
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Logprobs = NDArray[np.float32]

CLAMP, BOUND, NEAR = 20.0, 3.5e38, 0.125
"""d is clamped to +-CLAMP; a logprob beyond BOUND is infinite; below NEAR a series replaces expm1."""

ZERO_GAP = 0.5
"""A rollout logprob of 0.0 is suspect if the trainer logprob is below -ZERO_GAP: float32 rounds p near 1 to 0.0."""

FILLER = -9998.0
"""A logprob at or below this is a filler (``rltop.backend.join.copies``)."""

STAKES_ABOVE = np.array([0.02, 0.1, 0.3, 0.6, 0.9])
STAKES_BELOW = np.array([-0.01, -0.04])
"""Stakes of the bets that the mean ratio is above 1, and below it. The first must be below 1, as ratio - 1 is never
below -1; the second above -1 / CLAMP, where ratio - 1 is clamped to CLAMP."""

STAKES_NLL = np.array([0.01, 0.04, -0.01, -0.04])
"""Stakes of the bets on NLL minus entropy, which is clamped to CLAMP on both sides."""

SETTLE_EVERY = 64
"""Tokens after which a product of wealth is turned into a logarithm: a factor is 0.1 to 19, so it stays in range."""

FAR = 0.2
"""Version-matched |d| that rounding to 32 bits never exceeds and rounding to 16 bits rarely does."""

FINE, COARSE = 1e-3, 2e-2
"""|d| from which its sign counts: far above float32 rounding, and four times that of bfloat16 logits."""

LOW_ENTROPY, LOWEST_ENTROPY = 0.4, 0.2
"""Nats. Below the first the likeliest token has at least exp(-H) = 0.67, so a sampled token is the likeliest if and
only if its p is above a half. The second splits these contexts in two."""

BY_OLD, BY_LAG_0 = 1, 2
"""How a token is version-matched: by old logprobs under the version that sampled it, or by a lag of 0."""

HIT, MISS, BEFORE, AFTER = 1, 2, 4, 8
"""Bits of a run's labels: whether its request hit the prefix cache; before or after an update within the request."""

SHIFTS = (-2, -1, 0, 1, 2)
"""Displacements that alignment tries: the trainer logprob against the rollout logprob this many tokens later."""

ALIGNED_TOKENS = 16
"""First tokens of each run that displacements are tried at; all tokens would cost a third of the loop's time."""


class EvidenceFigures(NamedTuple):
    """Quantities of a token that are summed over sequences.

    d is trainer - rollout logprob, clamped; the ratio is exp(d). e is the rollout NLL minus the trainer's entropy.
    ``matched_*`` are of version-matched tokens, and the d of these is the version-matched d.
    """

    excess: int  # ratio - 1
    d: int
    k3: int  # ratio - 1 - d
    weighted_nll: int  # ratio * (trainer NLL - entropy)
    entropy: int
    matched_d: int
    matched_abs_d: int
    matched_d2: int
    matched_k3: int
    matched_excess: int
    matched_coarse: int  # |d| beyond COARSE
    matched_far: int  # |d| beyond FAR
    matched_e: int
    matched_d_e: int
    matched_e2: int
    cache_hit: int  # |d|, at most 1, by label
    cache_miss: int
    before_update: int
    after_update: int
    drift: int  # k3 between the trainer's current and old logprobs
    # Filled by ``rltop.backend.evidence.evidence``.
    repeated_d: int  # d of matched tokens that occur earlier in their context
    new_d: int  # d of the other matched tokens
    token_time: int  # seconds per token of a request
    reward: int


class EvidenceMoments(NamedTuple):
    """Sums over sequences of a figure, for a sequence of n tokens over which the figure's sum is s."""

    sequences: int
    n: int
    s: int
    nn: int
    ss: int
    ns: int


class Sums(NamedTuple):
    """Sums over tokens, log-wealths of bets, and counts. ``log_wealth_*`` have one column for each stake."""

    valid: int  # tokens with a logprob on both sides
    filler: int
    suspect_zero: int
    matched: int  # version-matched tokens
    by_old: int  # matched by old logprobs
    complement: int  # 1 - p of matched tokens
    beyond_2x: int  # matched tokens with |d| above ln 2, and so on
    fine_below: int
    fine_above: int
    coarse_below: int
    coarse_above: int
    sequences_below: int  # sequences with a version-matched d below -FINE
    sequences_above: int
    unlikely: int  # sampled tokens that are not the likeliest, with an entropy of LOWEST_ENTROPY to LOW_ENTROPY
    unlikely_expected: int
    lowest_unlikely: int  # with an entropy below LOWEST_ENTROPY
    lowest_unlikely_expected: int
    lag: int  # of tokens matched by old logprobs
    log_wealth_above: int
    log_wealth_above_matched: int
    log_wealth_below: int
    log_wealth_nll: int
    # Filled by ``rltop.backend.evidence.evidence``: squared deviations of logprobs of equal tokens after equal
    # contexts, and their degrees of freedom, of the trainer and of the engine.
    repeat: int
    repeat_free: int
    engine_repeat: int
    engine_repeat_free: int
    # Pairs of different tokens after equal contexts; those whose logprobs differ by a multiple of GRID, as they are and
    # times the temperature.
    pairs: int
    on_grid: int
    on_grid_heated: int
    engine_pairs: int
    engine_on_grid: int
    engine_on_grid_heated: int
    requests: int
    aborted: int
    failed: int
    truncated: int
    unsampled: int  # trained tokens without a rollout
    rows: int


class EvidenceExtremes(NamedTuple):
    """Extremes over version-matched tokens, and the least seconds per token of a request."""

    low: int
    high: int
    token_time: int


_WIDTHS = {
    "log_wealth_above": STAKES_ABOVE.size, "log_wealth_above_matched": STAKES_ABOVE.size,
    "log_wealth_below": STAKES_BELOW.size, "log_wealth_nll": STAKES_NLL.size,
}  # fmt: skip
_STARTS = tuple(accumulate((_WIDTHS.get(name, 1) for name in Sums._fields), initial=0))

FIGURE = EvidenceFigures(*range(len(EvidenceFigures._fields)))
MOMENT = EvidenceMoments(*range(len(EvidenceMoments._fields)))
SUM = Sums(*_STARTS[:-1])
EXTREME = EvidenceExtremes(*range(len(EvidenceExtremes._fields)))
SUM_COLUMNS = _STARTS[-1]

BETS_ABOVE = slice(SUM.log_wealth_above, SUM.log_wealth_below)  # over all tokens, then over matched tokens
BETS_BELOW = slice(SUM.log_wealth_below, SUM.log_wealth_nll)
BETS_NLL = slice(SUM.log_wealth_nll, SUM.repeat)

_FIRST_ACCOUNT, ACCOUNTS = SUM.log_wealth_above, sum(_WIDTHS.values())
_MATCHED_ACCOUNT, _BELOW_ACCOUNT, _NLL_ACCOUNT = (
    SUM.log_wealth_above_matched - _FIRST_ACCOUNT,
    SUM.log_wealth_below - _FIRST_ACCOUNT,
    SUM.log_wealth_nll - _FIRST_ACCOUNT,
)


class TokenColumns(NamedTuple):
    """Logprobs and entropies [tokens]; ``old`` and ``entropy`` are empty if not passed.

    ``old`` is the trainer's logprob under the version that sampled, ``entropy`` the trainer's, in nats.
    """

    trainer: Logprobs
    rollout: Logprobs
    old: Logprobs
    entropy: Logprobs


class RunColumns(NamedTuple):
    """Runs of tokens that were sampled alike [runs].

    ``start``, ``end``: tokens of the run. ``first``, ``last``: bounds of the span of tokens, sampled one after the
    other, that it lies in. ``matched``: 0, BY_OLD or BY_LAG_0. ``labels``: bits HIT to AFTER. ``lag``: versions, or
    NaN. ``position``: bin of the position in the sequence. ``place``: index of the engine. ``sequence``: rising.
    """

    start: Ints
    end: Ints
    first: Ints
    last: Ints
    matched: Ints
    labels: Ints
    lag: Floats
    position: Ints
    place: Ints
    sequence: Ints


class EvidenceColumns(NamedTuple):
    """The arrays that are added to, by engine.

    ``moments`` [places, FIGURE, MOMENT]. ``sums`` [places, SUM_COLUMNS]. ``extremes`` [places, EXTREME]. ``aligned``
    [places, SHIFTS, 2]: tokens, sum of |trainer - displaced rollout|. ``profile`` [places, position bins, 3], of
    matched tokens: number, sum of d^2 (at most 1 each), sum of 1 - p.
    """

    moments: Floats
    sums: Floats
    extremes: Floats
    aligned: Floats
    profile: Floats


def tokens(columns: TokenColumns, runs: RunColumns, out: EvidenceColumns) -> None:
    """Add the tokens of all runs to ``out``."""
    trainers, rollouts, olds, entropies = columns
    sequence = np.zeros((len(FIGURE), 2))  # n and s of each figure
    signs = np.zeros(2, np.bool_)  # whether the sequence has a version-matched d below -FINE, above FINE
    wealth = np.ones(ACCOUNTS)
    for run in range(runs.start.size):
        place, start, matched_by = runs.place[run], runs.start[run], runs.matched[run]
        sums, extremes, aligned = out.sums[place], out.extremes[place], out.aligned[place]
        profile = out.profile[place, runs.position[run]]
        for token in range(start, runs.end[run]):
            trainer, rollout = np.float64(trainers[token]), np.float64(rollouts[token])
            if not (abs(trainer) < BOUND and abs(rollout) < BOUND) or rollout <= FILLER:
                sums[SUM.filler] += 1
                continue
            excess = _add_token(trainer, rollout, sums, sequence, wealth)
            if token - start < ALIGNED_TOKENS:
                _add_alignment(trainer, rollouts, token, runs.first[run], runs.last[run], aligned)
            e = math.nan
            if entropies.size and abs(entropies[token]) < BOUND:
                entropy = np.float64(entropies[token])
                e = -rollout - entropy
                _add_entropy(trainer, entropy, 1 + excess, sums, sequence, wealth)
            if (token - start) % SETTLE_EVERY == 0:
                _settle(wealth, sums)
            matched = trainer
            if matched_by == BY_OLD:
                matched = np.float64(olds[token])
                if not abs(matched) < BOUND:
                    continue
                _add_drift(trainer - matched, runs.lag[run], sums, sequence)
            if matched_by:
                d = _clamped(matched - rollout)
                _add_matched(d, rollout, e, sums, sequence, signs, wealth, extremes, profile)
                _add_labels(min(abs(d), 1.0), runs.labels[run], sequence)
        _settle(wealth, sums)
        if run + 1 == runs.sequence.size or runs.sequence[run + 1] != runs.sequence[run]:
            _close_sequence(sequence, signs, out.moments[place], sums)


def _clamped(d: float) -> float:
    return min(max(d, -CLAMP), CLAMP)


def _excess_and_k3(d: float) -> tuple[float, float]:
    """exp(d) - 1 and exp(d) - 1 - d, both without cancellation."""
    if abs(d) < NEAR:
        k3 = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720 + d / 5040)))))
        return d + k3, k3
    excess = math.expm1(d)
    return excess, excess - d


def _add_token(trainer: float, rollout: float, sums: Floats, sequence: Floats, wealth: Floats) -> float:
    """Add any valid token; returns its ratio - 1."""
    d = _clamped(trainer - rollout)
    excess, k3 = _excess_and_k3(d)
    sums[SUM.valid] += 1
    sums[SUM.suspect_zero] += (rollout == 0.0) & (trainer < -ZERO_GAP)
    sequence[FIGURE.excess, 0] += 1
    sequence[FIGURE.excess, 1] += excess
    sequence[FIGURE.d, 1] += d
    sequence[FIGURE.k3, 1] += k3
    gain = min(excess, CLAMP)
    for stake in range(STAKES_ABOVE.size):
        wealth[stake] *= 1 + STAKES_ABOVE[stake] * gain
    for stake in range(STAKES_BELOW.size):
        wealth[_BELOW_ACCOUNT + stake] *= 1 + STAKES_BELOW[stake] * gain
    return excess


def _add_alignment(trainer: float, rollout: Logprobs, token: int, first: int, last: int, aligned: Floats) -> None:
    """Compare a trainer logprob with its rollout logprob and with those of its neighbours."""
    for shift in range(5):  # SHIFTS
        neighbour = token + shift - 2
        if first <= neighbour < last:
            distance = abs(trainer - np.float64(rollout[neighbour]))
            if distance < BOUND:
                aligned[shift, 0] += 1
                aligned[shift, 1] += distance


def _add_entropy(trainer: float, entropy: float, ratio: float, sums: Floats, sequence: Floats, wealth: Floats) -> None:
    """Add what the trainer's entropy says about a token: NLL minus entropy, and whether the token is unlikely."""
    weighted = ratio * (-trainer - entropy)
    sequence[FIGURE.entropy, 0] += 1
    sequence[FIGURE.entropy, 1] += entropy
    sequence[FIGURE.weighted_nll, 0] += 1
    sequence[FIGURE.weighted_nll, 1] += weighted
    gain = _clamped(weighted)
    for stake in range(STAKES_NLL.size):
        wealth[_NLL_ACCOUNT + stake] *= 1 + STAKES_NLL[stake] * gain
    if entropy < LOW_ENTROPY:
        p = math.exp(min(trainer, 0.0))
        unlikely = p < 0.5
        expected = 0.0 if unlikely else (1 - p) / p
        if entropy < LOWEST_ENTROPY:
            sums[SUM.lowest_unlikely] += unlikely
            sums[SUM.lowest_unlikely_expected] += expected
        else:
            sums[SUM.unlikely] += unlikely
            sums[SUM.unlikely_expected] += expected


def _add_drift(drift: float, lag: float, sums: Floats, sequence: Floats) -> None:
    """Add how far the trainer's weights have moved since the version that sampled the token."""
    sequence[FIGURE.drift, 0] += 1
    sequence[FIGURE.drift, 1] += _excess_and_k3(_clamped(drift))[1]
    sums[SUM.by_old] += 1
    if not math.isnan(lag):
        sums[SUM.lag] += lag


def _add_matched(
    d: float, rollout: float, e: float, sums: Floats, sequence: Floats, signs: NDArray[np.bool_], wealth: Floats,
    extremes: Floats, profile: Floats,
) -> None:  # fmt: skip
    """Add a version-matched token with a clamped version-matched d; e is NaN without an entropy."""
    excess, k3 = _excess_and_k3(d)
    size, complement = abs(d), 1 - math.exp(min(rollout, 0.0))
    sums[SUM.matched] += 1
    sums[SUM.complement] += complement
    sums[SUM.beyond_2x] += size > math.log(2)
    sums[SUM.fine_below] += d < -FINE
    sums[SUM.fine_above] += d > FINE
    sums[SUM.coarse_below] += d < -COARSE
    sums[SUM.coarse_above] += d > COARSE
    signs[0] |= d < -FINE
    signs[1] |= d > FINE
    extremes[EXTREME.low] = min(extremes[EXTREME.low], d)
    extremes[EXTREME.high] = max(extremes[EXTREME.high], d)
    sequence[FIGURE.matched_d, 0] += 1
    sequence[FIGURE.matched_d, 1] += d
    sequence[FIGURE.matched_abs_d, 1] += size
    sequence[FIGURE.matched_d2, 1] += d * d
    sequence[FIGURE.matched_k3, 1] += k3
    sequence[FIGURE.matched_excess, 1] += excess
    sequence[FIGURE.matched_coarse, 1] += size > COARSE
    sequence[FIGURE.matched_far, 1] += size > FAR
    if not math.isnan(e):
        sequence[FIGURE.matched_d_e, 0] += 1
        sequence[FIGURE.matched_e, 1] += e
        sequence[FIGURE.matched_d_e, 1] += d * e
        sequence[FIGURE.matched_e2, 1] += e * e
    gain = min(excess, CLAMP)
    for stake in range(STAKES_ABOVE.size):
        wealth[_MATCHED_ACCOUNT + stake] *= 1 + STAKES_ABOVE[stake] * gain
    profile[0] += 1
    profile[1] += min(d * d, 1.0)
    profile[2] += complement


def _add_labels(size: float, labels: int, sequence: Floats) -> None:
    """Add a version-matched |d| to the figure of each label of its run."""
    if labels & HIT:
        sequence[FIGURE.cache_hit, 0] += 1
        sequence[FIGURE.cache_hit, 1] += size
    if labels & MISS:
        sequence[FIGURE.cache_miss, 0] += 1
        sequence[FIGURE.cache_miss, 1] += size
    if labels & BEFORE:
        sequence[FIGURE.before_update, 0] += 1
        sequence[FIGURE.before_update, 1] += size
    if labels & AFTER:
        sequence[FIGURE.after_update, 0] += 1
        sequence[FIGURE.after_update, 1] += size


def _settle(wealth: Floats, sums: Floats) -> None:
    """Move the products of wealth to the log-wealths."""
    for account in range(ACCOUNTS):
        sums[_FIRST_ACCOUNT + account] += math.log(wealth[account])
        wealth[account] = 1


def _close_sequence(sequence: Floats, signs: NDArray[np.bool_], moments: Floats, sums: Floats) -> None:
    """Add the sequence's figures to the moments, and clear them. Figures of the same tokens share one count."""
    for figure in range(FIGURE.d, FIGURE.k3 + 1):
        sequence[figure, 0] = sequence[FIGURE.excess, 0]
    for figure in range(FIGURE.matched_abs_d, FIGURE.matched_far + 1):
        sequence[figure, 0] = sequence[FIGURE.matched_d, 0]
    sequence[FIGURE.matched_e, 0] = sequence[FIGURE.matched_e2, 0] = sequence[FIGURE.matched_d_e, 0]
    for figure in range(len(FIGURE)):
        n, s = sequence[figure, 0], sequence[figure, 1]
        if n:
            moments[figure, MOMENT.sequences] += 1
            moments[figure, MOMENT.n] += n
            moments[figure, MOMENT.s] += s
            moments[figure, MOMENT.nn] += n * n
            moments[figure, MOMENT.ss] += s * s
            moments[figure, MOMENT.ns] += n * s
        sequence[figure] = 0
    sums[SUM.sequences_below] += signs[0]
    sums[SUM.sequences_above] += signs[1]
    signs[:] = False


_PER_TOKEN: tuple[Any, ...] = (
    _clamped, _excess_and_k3, _add_token, _add_alignment, _add_entropy, _add_drift, _add_matched, _add_labels,
)  # fmt: skip


@functools.cache
def compiled() -> Any:
    """The loop as machine code, compiled or loaded at the first call with each type of arrays."""
    import numba
    from numba.extending import register_jitable

    for part in _PER_TOKEN:  # a call for every token costs a quarter of the loop's time
        register_jitable(forceinline=True)(part)
    register_jitable(_settle)
    register_jitable(_close_sequence)
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(tokens)
    except RuntimeError:  # no directory for cached code: every process compiles
        return numba.njit(**options)(tokens)


def warm() -> None:
    """Compile the loop, or load its cached code."""
    ints, logprobs = np.zeros(0, np.int64), np.zeros(0, np.float32)
    logprobs.flags.writeable = False
    compiled()(
        TokenColumns(*[logprobs] * 4),
        RunColumns(ints, ints, ints, ints, ints, ints, ints.astype(np.float64), ints, ints, ints),
        EvidenceColumns(
            np.zeros((1, len(FIGURE), len(MOMENT))), np.zeros((1, SUM_COLUMNS)), np.zeros((1, len(EXTREME))),
            np.zeros((1, len(SHIFTS), 2)), np.zeros((1, 1, 3)),
        ),
    )  # fmt: skip
