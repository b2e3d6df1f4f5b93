"""Checks of the size of the version-matched gap and its trend over steps, and of repeated logprobs. Pure.

Version-matched tokens have the same weights on both sides, so a healthy gap is rounding alone, whose size follows from
the dtypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks import rounding_noise
from rltop.backend.diagnosis.checks.findings import (
    ALARM_LOG_E,
    CERTAIN_LOG_E,
    NOT_MATCHED,
    finding,
    run_and_engines,
    unknown,
)
from rltop.backend.evidence import kernel, sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import Floats, MeanShift
from rltop.backend.fleet import facts, rounding

SIXTEEN_BITS = "16 bits"
"""Detail of a gap that rounding to 16 bits may cause."""


def floor_of(evidence: EvidenceByEngine, engine: str | None) -> tuple[float, str]:
    """The normalised RMS gap that the stated dtypes imply at most, and the reason."""
    names = [engine] if engine else evidence.engines or list(evidence.input.engines)
    sides = [facts.of_engine(evidence.input.engines[name]) for name in names if name in evidence.input.engines]
    return rounding.declared_bound(sides, evidence.input.trainer.facts)


def bound_of(evidence: EvidenceByEngine, engine: str | None) -> tuple[float, str]:
    """The bound on the gap that rounding causes, and the reason: by dtypes, or by the run's first steps if lower."""
    declared, why = floor_of(evidence, engine)
    own = rounding_noise.bound_of_first_steps(evidence.run, declared)
    return (own, f"{rounding.WIDER:g} times the run's first steps, {why}") if own < declared else (declared, why)


def max_rounding(evidence: EvidenceByEngine, engine: str | None) -> float:
    """The most that rounding to 16 bits can cause at the run's temperature."""
    names = [engine] if engine else list(evidence.input.engines)
    sides = [facts.of_engine(evidence.input.engines[name]) for name in names if name in evidence.input.engines]
    return rounding.MAX_ROUNDING / rounding.temperature(sides, evidence.input.trainer.facts)


def floor(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``floor``: the normalised RMS gap of matched tokens against the bound of dtypes and of the run's first steps."""
    for engine, arrays in run_and_engines(evidence):
        n = arrays.sums[:, SUM.matched]
        if not n.sum():
            yield unknown("floor", NOT_MATCHED, engine)
            continue
        bound, why = bound_of(evidence, engine)
        over = exceeds(arrays, bound)
        size = math.sqrt(max(over.mean, 0.0) / _mean_complement(arrays)[over.start])
        text = f"normalised RMS gap (|d| / sqrt(1-p)) {size:.2g}"
        if over.log_e < ALARM_LOG_E:
            text += f", at most {bound:g} ({why})"
            yield finding("floor", "at_floor", _root(over, size), arrays, engine, text=text, unit="nats")
            continue
        from_start, fits = over.start == 0 and _is_constant(arrays), size <= max_rounding(evidence, engine)
        outcome, detail = ("rounding", "") if from_start and fits else ("above", SIXTEEN_BITS if fits else "")
        text += f", above {bound:g} ({why})"
        yield finding("floor", outcome, _root(over, size), arrays, engine, text=text, unit="nats", detail=detail)


def _mean_complement(arrays: EvidenceArrays) -> Floats:
    """Mean of 1 - p over matched tokens, from each step on [steps]."""
    complement, n = (np.cumsum(arrays.sums[::-1, column])[::-1] for column in (SUM.complement, SUM.matched))
    mean: Floats = np.maximum(complement, 1e-6) / np.maximum(n, 1.0)
    return mean


def mean_bound(bound: float, arrays: EvidenceArrays) -> float:
    """The mean |d| that a normalised RMS gap of ``bound`` implies at most."""
    return bound * math.sqrt(float(_mean_complement(arrays)[0])) if arrays.steps else 0.0


def exceeds(arrays: EvidenceArrays, least: float) -> MeanShift:
    """Evidence that the normalised RMS gap of matched tokens is above ``least``; the mean is that of d^2.

    A mean over several statistics: d^2; |d|, whose mean is at most the RMS; and the share of tokens beyond a bound c,
    which is at most ``(least / c)^2 (1 - p)`` (Chebyshev). Squares have too heavy a tail if the fault is in few tokens,
    and say most if it is in all. Tokens after an update within their request, which may carry the whole fault, are also
    tested alone, with 1 - p taken as 1. If ``least`` is fine enough, bets on sequences with a token far beyond it are
    added: a few sequences suffice.
    """
    complement = _mean_complement(arrays)
    beyond, bound = (
        (FIGURE.matched_coarse, kernel.COARSE) if least < kernel.COARSE / 2 else (FIGURE.matched_far, kernel.FAR)
    )
    share = np.minimum(least**2 * complement / bound**2, 1.0)
    found = (
        sequential.above(
            arrays.moments[:, FIGURE.matched_d2], arrays.first, max(4 * least**2, 1e-4), least**2 * complement
        ),
        sequential.above(
            arrays.moments[:, FIGURE.matched_abs_d], arrays.first, max(least, 0.02), least * np.sqrt(complement)
        ),
        sequential.above(arrays.moments[:, beyond], arrays.first, 0.2, share),
        sequential.above(arrays.moments[:, FIGURE.after_update], arrays.first, max(least, 0.02), least),
    )
    tried = [(shift.log_e, shift.begin) for shift in found]
    if least < kernel.FINE:
        tried.append((rounding_noise.bet_on_sequences(arrays, least)[0], 0))
    log_e = float(np.logaddexp.reduce([own for own, _ in tried])) - math.log(len(tried))
    start = _first_above(arrays, least, max(tried)[1]) if log_e >= ALARM_LOG_E else 0
    of = sequential.stretches(arrays.moments[start:, FIGURE.matched_d2])
    error = sequential.Z95 * math.sqrt(of.variance[0])
    mean = float(of.mean[0])
    return MeanShift(log_e, start, mean, mean - error, mean + error, int(of.sequences[0]), int(of.tokens[0]))


def _first_above(arrays: EvidenceArrays, least: float, begin: int) -> int:
    """Index of the step from which the normalised RMS gap is above ``least``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        square = arrays.moments[:, FIGURE.matched_d2, MOMENT.s] / np.maximum(arrays.sums[:, SUM.complement], 1e-6)
        size = np.where(arrays.sums[:, SUM.matched] > 0, np.sqrt(square), np.nan)
    return sequential.change_point(np.log1p(size / least), math.log(2), begin)


def _root(shift: MeanShift, size: float) -> MeanShift:
    """The shift of d^2 as one of its root, scaled to ``size``."""
    unit = size / math.sqrt(shift.mean) if shift.mean > 0 else 0.0
    low, high = (unit * math.sqrt(max(x, 0.0)) if math.isfinite(x) else x for x in (shift.low, shift.high))
    return MeanShift(shift.log_e, shift.start, size, low, high, shift.sequences, shift.tokens)


def _is_constant(arrays: EvidenceArrays) -> bool:
    """Whether step 0, before any update, has as large a normalised gap as the rest."""
    complement, moments = arrays.sums[:, SUM.complement], arrays.moments[:, FIGURE.matched_d2]
    first = int(np.argmax(moments[:, 1] > 0))
    rest = moments[first + 1 :, 2].sum() / max(float(complement[first + 1 :].sum()), 1e-9)
    at_start = moments[first, 2] / max(float(complement[first]), 1e-9)
    return bool(arrays.first[first] == 0 and at_start > rest / 9) or bool(rest == 0)


RAMP, RAMP_STEPS = 2.0, 6
"""A gap that has lasted RAMP_STEPS grows if its later half is RAMP times the earlier half."""


def trend(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``trend``: the step from which the version-matched gap is larger than before, and whether it jumped or grows.

    Without matched tokens, k3 of all tokens is compared with four times that of the first steps with a lag. If it is
    higher the result is unknown, since a larger learning rate has the same effect.
    """
    for engine, arrays in run_and_engines(evidence):
        matched = _has_matched(evidence, engine, arrays)
        moments = arrays.moments[:, FIGURE.matched_abs_d if matched else FIGURE.k3]
        if arrays.steps < 3 or not moments[:, 1].sum():
            yield unknown("trend", "fewer than three steps", engine)
            continue
        first = int(np.argmax(moments[:, 1] > 0)) if matched else FIRST_STEPS - 2
        base = _first_level(moments[first : first + 1] if matched else moments[1 : 1 + FIRST_STEPS])
        if matched:
            over = exceeds(arrays, max(2 * _size_at(arrays, first), bound_of(evidence, engine)[0]))
        else:
            over = sequential.above(moments, arrays.first, max(2 * base, 0.02), 4 * base + MIN_K3_RISE)
        part = moments[over.start :]
        level = part[:, 2].sum() / max(part[:, 1].sum(), 1.0)
        shift = MeanShift(over.log_e, over.start, level, math.nan, math.nan, over.sequences, over.tokens)
        size = "version-matched |d|" if matched else "k3"
        if over.log_e < ALARM_LOG_E or over.start <= first:
            yield finding(
                "trend", "steady", shift, arrays, engine, text=f"{size} {level:.2g} in all steps", unit=("nats")
            )
            continue
        if not matched:
            yield unknown("trend", f"k3 of all tokens rose from {base:.2g} to {level:.2g}, {_LARGER_UPDATES}", engine)
            continue
        half = len(part) // 2
        early, late = (x[:, 2].sum() / max(x[:, 1].sum(), 1.0) for x in (part[:half], part[half:]))
        outcome = "ramp" if len(part) >= RAMP_STEPS and late > RAMP * early else "jump"
        text = f"version-matched |d| {base:.2g} before step {int(arrays.first[over.start])}, {level:.2g} since"
        yield finding("trend", outcome, shift, arrays, engine, text=text, unit="nats")


def _size_at(arrays: EvidenceArrays, step: int) -> float:
    """Normalised RMS gap at a step with matched tokens."""
    return math.sqrt(
        arrays.moments[step, FIGURE.matched_d2, MOMENT.s] / max(float(arrays.sums[step, SUM.complement]), 1e-9)
    )


def _has_matched(evidence: EvidenceByEngine, engine: str | None, arrays: EvidenceArrays) -> bool:
    """Whether recent steps have matched tokens, or earlier ones show a gap."""
    n = arrays.sums[:, SUM.matched]
    if n[-RECENT_STEPS:].sum() or not n.sum():
        return bool(n.sum())
    return exceeds(arrays, bound_of(evidence, engine)[0]).log_e >= ALARM_LOG_E


_LARGER_UPDATES = "as larger updates also cause: pass sequences(old_logprobs=..., old_version=...)"

RECENT_STEPS, FIRST_STEPS = 5, 5
MIN_K3_RISE = 5e-3
"""Least rise of k3 of all tokens: half of what makes a lag high."""


def _first_level(moments: Floats) -> float:
    """Median over steps of the mean."""
    there = moments[moments[:, 1] > 0]
    return float(np.median(there[:, 2] / there[:, 1])) if len(there) else 0.0


MIN_PAIRS = 30
FINE_SHARE, GRID_SHARE = 0.1, 0.5
"""Share of pairs on the grid up to which logits are finer than the grid, and from which they are on it."""


def logit_lattice(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``logit_lattice``: on which side logprobs at one position differ by multiples of bfloat16's grid.

    Answers to one prompt begin in the same context, so logprobs of the sampled tokens suffice.
    """
    trainer = _on_grid(evidence.run, SUM.pairs, SUM.on_grid)
    for engine, arrays in run_and_engines(evidence):
        own = _on_grid(arrays, SUM.engine_pairs, SUM.engine_on_grid)
        if _is_shifted(arrays):
            yield unknown("logit_lattice", "rollout logprobs belong to other tokens", engine)
            continue
        if trainer is None or own is None:
            yield unknown(
                "logit_lattice", f"fewer than {MIN_PAIRS} pairs of different tokens after equal contexts", engine
            )
            continue
        outcome = "alike"
        if own >= GRID_SHARE and trainer <= FINE_SHARE:
            outcome = "engine_coarse"
        elif trainer >= GRID_SHARE and own <= FINE_SHARE:
            outcome = "trainer_coarse"
        shift = MeanShift(0.0 if outcome == "alike" else CERTAIN_LOG_E, 0, own - trainer, math.nan, math.nan, 0, 0)
        text = f"{own:.0%} of the engine's pairs of logprobs at a position are on bfloat16's grid, {trainer:.0%} of the"
        yield finding("logit_lattice", outcome, shift, arrays, engine, text=text + " trainer's")


LATTICE_STEPS = 10


def _is_shifted(arrays: EvidenceArrays) -> bool:
    """Whether rollout logprobs fit the trainer's logprobs of other tokens better (see ``alignment``)."""
    n, off = arrays.aligned[-LATTICE_STEPS:].sum(axis=0).T
    mean = off / np.maximum(n, 1.0)
    return bool((n > 0).all() and mean.min() < mean[kernel.SHIFTS.index(0)] / 2)


def _on_grid(arrays: EvidenceArrays, pairs: int, on: int) -> float | None:
    late = arrays.sums[-LATTICE_STEPS:].sum(axis=0) if arrays.steps else np.zeros(pairs + 1)
    return float(max(late[on], late[on + 1]) / late[pairs]) if late[pairs] >= MIN_PAIRS else None


MIN_FREE = 16
"""Degrees of freedom before repeated logprobs are compared."""


def repeat(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``repeat``: how much the trainer's logprobs of equal tokens after equal contexts differ within a step."""
    least, _ = rounding.declared_bound((), evidence.input.trainer.facts)
    yield _repeat("repeat", evidence.run, None, SUM.repeat, SUM.repeat_free, 2 * least)


def repeat_engine(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``repeat_engine``: the same for rollout logprobs of one engine and version."""
    for engine, arrays in run_and_engines(evidence):
        least, _ = floor_of(evidence, engine)
        yield _repeat("repeat_engine", arrays, engine, SUM.engine_repeat, SUM.engine_repeat_free, 2 * least)


def _repeat(check: str, arrays: EvidenceArrays, engine: str | None, squares: int, free: int, least: float) -> Finding:
    n = np.cumsum(arrays.sums[::-1, free])[::-1]
    if n.size == 0 or n[0] < MIN_FREE:
        return unknown(check, "too few rows of one prompt with the same first tokens", engine)
    least *= math.sqrt(min(_mean_complement(arrays)[0], 1.0)) if arrays.sums[:, SUM.matched].any() else 1.0
    each = arrays.sums[:, squares] / np.maximum(arrays.sums[:, free], 1e-9)
    late = arrays.sums[-3:]
    now = late[:, squares].sum() / max(float(late[:, free].sum()), 1e-9)
    off = now > least**2 and late[:, free].sum() >= MIN_FREE
    start = arrays.steps - 1
    while off and start and (each[start - 1] > least**2 or not arrays.sums[start - 1, free]):
        start -= 1
    size = math.sqrt(max(float(now), 0.0))
    shift = MeanShift(CERTAIN_LOG_E if off else 0.0, start, size, math.nan, math.nan, 0, int(late[:, free].sum()))
    text = f"equal tokens after equal contexts have logprobs that differ by {size:.2g} nats (RMS)"
    return finding(check, "differs" if off else "same", shift, arrays, engine, text=text, unit="nats")
