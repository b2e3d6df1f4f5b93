"""Check of which weight version rollout logprobs fit: weights may be stale as a whole or in part. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.checks import gap_course
from rltop.backend.diagnosis.checks.calibration import shape
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E, NOT_MATCHED, finding, run_and_engines, unknown
from rltop.backend.diagnosis.checks.level import bound_of, exceeds, max_rounding
from rltop.backend.evidence import sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import MeanShift


def fit(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``fit``: which fault of the weights the version-matched gap is like, in units of the trainer's own drift."""
    return _agreed(list(_fits(evidence)))


def _agreed(findings: list[Finding]) -> Iterator[Finding]:
    """The findings, of which those of engines count only if they agree with each other or with the run's.

    A fault of the whole fleet is the same on all engines, while the figures of some are too few to tell.
    """
    outcomes = {found.outcome for found in findings if found.engine is not None and found.outcome != "matches"}
    of_run = next((found.outcome for found in findings if found.engine is None), UNKNOWN)
    for found in findings:
        if found.engine is None or len(outcomes) < 2 or found.outcome in (of_run, "matches", UNKNOWN):
            yield found
        else:
            yield unknown("fit", f"{found.text}; other engines do not show it yet", found.engine)


def _fits(evidence: EvidenceByEngine) -> Iterator[Finding]:
    for engine, arrays in run_and_engines(evidence):
        if not arrays.sums[:, SUM.matched].sum():
            yield unknown("fit", NOT_MATCHED, engine)
            continue
        least, _ = bound_of(evidence, engine)
        off = exceeds(arrays, least)
        if off.log_e < ALARM_LOG_E:
            yield finding(
                "fit",
                "matches",
                off,
                arrays,
                engine,
                text="rollout logprobs fit the version that they are labelled with",
            )
            continue
        if _before_updates(arrays, least):
            yield unknown("fit", "the gap precedes the first update: it is not due to the weights' version", engine)
            continue
        if shape(arrays, least):
            yield unknown("fit", "the gap has the shape of another distribution, not of other weights", engine)
            continue
        yield _fit(arrays, engine, off, max_rounding(evidence, engine))


def _fit(arrays: EvidenceArrays, engine: str | None, off: MeanShift, most_rounding: float) -> Finding:
    matched = np.flatnonzero(arrays.sums[off.start :, SUM.matched] > 0) + off.start
    late = arrays.from_step(int(matched[-LATE_STEPS:][0]))
    by_old = bool(arrays.sums[:, SUM.by_old].sum())
    drift, lag = _drift(late) if by_old else _drift_before(arrays, off.start)
    if not drift or not lag:
        return unknown("fit", "no tokens of an older version yet, so the drift of an update is unknown", engine)
    k3 = float(sequential.stretches(late.moments[:, FIGURE.matched_k3]).mean[0])
    updates = k3 / (drift / lag)
    behind = math.sqrt(updates * lag) if updates > lag else updates
    since = int(arrays.last[-1]) - int(arrays.first[off.start])
    if since < 1 or behind > since + lag + SLACK:
        return unknown("fit", "one step only, or a gap larger than the drift since it began", engine)
    text = f"version-matched k3 {k3:.2g}; the trainer's own drift is {drift:.2g} over {lag:.1f} versions"
    text += f": a gap of {updates:.1f} weight updates, {since} steps after it began"
    path = _path(arrays, off.start, late) if by_old else drift / lag * since
    since_start = _drift(arrays.from_step(off.start)) if by_old else (drift, lag)
    course = gap_course.course(arrays, matched, since_start[1])
    outcome = gap_course.outcome(course, since_start[0], k3 / max(path, 1e-12), updates, late, most_rounding)
    if not outcome:
        return unknown("fit", f"{text}; {gap_course.WORDS[course.how]}: too close to decide", engine)
    text += f"; {gap_course.WORDS[course.how]}: {gap_course.MEANING[outcome].format(max(round(updates), 1))}"
    shift = MeanShift(off.log_e, off.start, behind, math.nan, math.nan, off.sequences, off.tokens)
    detail = f"{behind:.1f}" if by_old else ""
    return finding("fit", outcome, shift, arrays, engine, text=text, unit="versions", detail=detail)


LATE_STEPS = 8
"""Latest steps with matched tokens that the current gap is computed from."""


def _path(arrays: EvidenceArrays, start: int, late: EvidenceArrays) -> float:
    """The trainer's drift from one update to the next, added up from the start of the gap to the middle of ``late``."""
    moments, lags = arrays.moments[start:, FIGURE.drift], arrays.sums[start:, SUM.lag]
    there = (moments[:, MOMENT.n] > 0) & (lags > 0)
    each = float(moments[there, MOMENT.s].sum() / lags[there].sum())
    return each * float((late.first[0] + late.last[-1]) / 2 - arrays.first[start] + 1)


def _before_updates(arrays: EvidenceArrays, least: float) -> bool:
    """Whether step 0, before any update, already has the gap."""
    moments = arrays.moments[0, FIGURE.matched_abs_d]
    return bool(
        arrays.first[0] == 0
        and arrays.last[0] == 0
        and moments[MOMENT.n]
        and moments[MOMENT.s] / moments[MOMENT.n] > least
    )


def _drift(arrays: EvidenceArrays) -> tuple[float, float]:
    """Mean k3 between the trainer's own logprobs under the old version and now, and the mean lag between the two."""
    n = arrays.moments[:, FIGURE.drift, MOMENT.n].sum()
    if not n:
        return 0.0, 0.0
    return float(arrays.moments[:, FIGURE.drift, MOMENT.s].sum() / n), float(arrays.sums[:, SUM.lag].sum() / n)


def _drift_before(arrays: EvidenceArrays, start: int) -> tuple[float, float]:
    """The same without old logprobs: mean k3 and lag of tokens whose version is certain.

    These were trained on while matched tokens had no gap, or sampled by the run's first version.
    """
    clean = np.flatnonzero(arrays.sums[:start, SUM.matched] > 0)
    lags = np.arange(arrays.lags.shape[1]) - 1.0  # stratum 0 is "ahead", the last one "unknown"
    older = (lags >= 1) & (lags < lags[-1])
    sure = (np.arange(arrays.steps) <= clean.max(initial=-1))[:, None] | (arrays.first[:, None] == lags)
    n, k3 = (np.where(sure & older, arrays.lags[:, :, column], 0.0) for column in (MOMENT.n, MOMENT.s))
    total = float(n.sum())
    return (float(k3.sum()) / total, float((n * lags).sum()) / total) if total >= MIN_DRIFT else (0.0, 0.0)


MIN_DRIFT = 200
"""Tokens of an older version that the drift of an update is estimated from, at least."""

SLACK = 3.0
"""Versions by which the estimate may be too high, since updates differ in size."""
