"""Check of which weight version rollout logprobs fit: weights may be stale as a whole or in part. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.calibration import shape
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E, NOT_MATCHED, finding, run_and_engines, unknown
from rltop.backend.diagnosis.checks.level import bound_of, exceeds
from rltop.backend.evidence import sequential
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import MeanShift


def fit(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``fit``: by how many versions rollout logprobs lag behind their label, in units of the trainer's own drift."""
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
        yield _fit(arrays, engine, off)


def _fit(arrays: EvidenceArrays, engine: str | None, off: MeanShift) -> Finding:
    since_off = np.flatnonzero(arrays.sums[off.start :, SUM.matched] > 0) + off.start
    late = arrays.from_step(int(since_off[-LATE_STEPS:][0]))
    by_old = bool(arrays.sums[:, SUM.by_old].sum())
    drift, lag = _drift(late) if by_old else _drift_before(arrays, off.start)
    if not drift or not lag:
        return unknown("fit", "no tokens of an older version yet, so the drift of an update is unknown", engine)
    k3 = float(sequential.stretches(late.moments[:, FIGURE.matched_k3]).mean[0])
    most = k3 / (drift / lag)
    behind = math.sqrt(most * lag) if most > lag else most
    since = int(arrays.last[-1]) - int(arrays.first[off.start])
    if since < 1 or behind > since + lag + SLACK:
        return unknown("fit", "one step only, or a gap larger than the drift since it began", engine)
    estimate, enough = (behind, FROZEN_SHARE * since) if by_old else (most, FROZEN_SHARE / 2 * since)
    frozen = estimate >= max(FROZEN, enough)
    if not frozen and estimate > max(FROZEN, enough) / 2:
        text = f"about {estimate:.1f} versions behind the label after {since} steps: too close to decide"
        return unknown("fit", text, engine)
    text = f"version-matched k3 {k3:.2g}; the trainer's own drift is {drift:.2g} over {lag:.1f} versions"
    text += (
        f": about {behind:.1f} versions behind the label"
        if frozen
        else f": as large as {behind:.1f} weight updates, {since} steps after it began"
    )
    shift = MeanShift(off.log_e, off.start, behind, math.nan, math.nan, off.sequences, off.tokens)
    outcome = "frozen" if frozen else "partial"
    return finding("fit", outcome, shift, arrays, engine, text=text, unit="versions", detail=f"{behind:.1f}")


LATE_STEPS = 8
"""Latest steps with matched tokens that the current gap is computed from."""


def _before_updates(arrays: EvidenceArrays, least: float) -> bool:
    """Whether step 0, before any update, already has the gap."""
    moments = arrays.moments[0, FIGURE.matched_abs_d]
    return bool(
        arrays.first[0] == 0
        and arrays.last[0] == 0
        and moments[MOMENT.n]
        and moments[MOMENT.s] / moments[MOMENT.n] > least
    )


FROZEN, FROZEN_SHARE = 1.0, 0.2
"""Weights are stale as a whole from this many versions behind the label, and this share of the steps since the gap
began. With frozen weights the estimate grows by 1 a step (0.4 to 0.8 if updates become smaller); with one stale tensor
or a stale prefix by far less. Without old logprobs the drift is that of the updates before the gap, the largest of a
run: k3 is then proportional to the lag, not to its square, and half of the share suffices. In runs of the demo without
old logprobs it is 0.24 to 0.3 if no update arrives, and 0.003 if the head is stale."""


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
