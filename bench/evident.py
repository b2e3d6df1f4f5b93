"""The first step at which a recorded fault could be reported by an observer who knows its kind, location and onset.

A fault in a weight update changes almost nothing at first. ``evident`` is the first step at which the figure that the
fault moves, computed from the run itself, differs from a healthy run's by the log odds that the checks require, with no
penalty for not knowing the fault, its onset or its size. It does not use verdicts. A fault whose figure is not in
``MOVES`` is evident at its onset.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.fault_runs import Run
from rltop.backend.demo.faults import BY_NAME as FAULTS
from rltop.backend.diagnosis.checks.findings import ALARM_LOG_E
from rltop.backend.diagnosis.checks.rounding_noise import STRAY
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, SUM
from rltop.backend.evidence.sequential import Floats, stretches

HEALTHY_FALL = 0.05
"""Fall of the log entropy per step in healthy runs of the demo (0.036 to 0.058), for runs without enough steps before
the fault."""

HEALTHY_LAG = 2.0
"""Upper bound of the mean lag in healthy runs of the demo, in versions."""

BEFORE = 6
"""Steps before the onset that are needed to estimate a run's own fall."""


def evident(run: Run, onset: int, case: DiagnosisInput) -> int | None:
    """The first step with enough evidence to report the run's fault; None if there is none.

    Args:
        run: the recorded run.
        onset: the first step whose rows have the fault.
        case: the whole run.
    """
    odds = MOVES.get(run.fault)
    if odds is None:
        return onset
    evidence, engine = EvidenceByEngine(case), run.on or FAULTS[run.fault].engine
    arrays = evidence.engine(engine) if engine else evidence.run
    known = odds(arrays, int(np.searchsorted(arrays.first, onset)))
    sure = np.flatnonzero(known >= ALARM_LOG_E)
    return int(arrays.first[sure[0]]) if sure.size else None


def _of_gap(arrays: EvidenceArrays, begin: int) -> Floats:
    """Share of sequences with a version-matched |d| above ``FINE``, against the rate ``STRAY`` of a healthy run."""
    rows = arrays.moments[:, FIGURE.matched_d2, 0]
    beyond = np.minimum(np.maximum(arrays.sums[:, SUM.sequences_below], arrays.sums[:, SUM.sequences_above]), rows)
    share = np.clip(beyond / np.maximum(rows, 1.0), 1e-9, 1 - 1e-9)
    each = beyond * np.log(share / STRAY) + (rows - beyond) * np.log((1 - share) / (1 - STRAY))
    return _since(np.where(share > STRAY, each, 0.0), begin)


def _of_nll(arrays: EvidenceArrays, begin: int) -> Floats:
    """NLL minus entropy against 0, with its standard error over sequences."""
    each = [stretches(step[None]) for step in arrays.moments[:, FIGURE.weighted_nll]]
    return _since(np.array([float(one.mean[0]) ** 2 / (2 * float(one.variance[0])) for one in each]), begin)


def _of_lag(arrays: EvidenceArrays, begin: int) -> Floats:
    """Certain if the mean lag is above that of healthy runs."""
    n = arrays.lags[:, :-1, 1]
    mean = (n @ np.arange(-1.0, n.shape[1] - 1)) / np.maximum(n.sum(axis=1), 1.0)
    return _since(np.where(mean > HEALTHY_LAG, ALARM_LOG_E, 0.0), begin)


def _of_entropy(arrays: EvidenceArrays, begin: int) -> Floats:
    """The fall of the log entropy since the last step before the onset, against the run's fall until then."""
    moments = arrays.moments[:, FIGURE.entropy]
    logs = np.log(moments[:, 2] / moments[:, 1])
    variance = float(np.mean(np.diff(logs, 2) ** 2)) / 6
    normal = -float(np.polyfit(np.arange(begin), logs[:begin], 1)[0]) if begin >= BEFORE else HEALTHY_FALL
    odds = np.zeros(logs.size)
    for end in range(begin + 2, logs.size + 1):
        part = logs[max(begin - 1, 0) : end]
        x = np.arange(part.size) - (part.size - 1) / 2
        spread = float(x @ x)
        excess = max(-float(x @ part) / spread - normal, 0.0)
        odds[end - 1] = excess**2 * spread / (2 * variance)
    return odds


def _since(each: Floats, begin: int) -> Floats:
    return np.cumsum(np.where(np.arange(each.size) >= begin, each, 0.0))


MOVES: dict[str, Callable[[EvidenceArrays, int], Floats]] = {
    "never-updated": _of_gap,
    "head-not-updated": _of_gap,
    "lying-replica": _of_gap,
    "stale-prefix": _of_gap,
    "kept-kv": _of_gap,
    "stale-replica": _of_lag,
    "lag": _of_lag,
    "top-p-raw": _of_nll,
    "raw-temperature-silent": _of_nll,
    "entropy-collapse": _of_entropy,
}
"""Fault -> log odds, at each step, of the figure that it moves [steps]."""
