"""Builds the findings of checks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import ALPHA, BY_NAME, UNKNOWN
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM
from rltop.backend.evidence.sequential import MeanShift

ALARM_LOG_E = -math.log(ALPHA)
"""Log evidence from which a check alarms."""

CERTAIN_LOG_E = ALARM_LOG_E + 1.0
"""Log evidence assigned to a deterministic check."""

HOW_TO_MATCH = (
    "pass old logprobs of some rows a step, sequences(old_logprobs=..., old_version=...), or train on tokens of lag 0"
)
NOT_MATCHED = f"no version-matched tokens yet; {HOW_TO_MATCH}"
NO_LOGPROBS = "no tokens with logprobs on both sides yet"


def run_and_engines(evidence: EvidenceByEngine) -> Iterator[tuple[str | None, EvidenceArrays]]:
    """The evidence of the run (None), and of each engine if there are several."""
    yield None, evidence.run
    if len(evidence.engines) > 1:
        for engine in evidence.engines:
            yield engine, evidence.engine(engine)


def finding(
    check: str,
    outcome: str,
    shift: MeanShift,
    arrays: EvidenceArrays,
    engine: str | None = None,
    *,
    offset: float = 0.0,
    text: str = "",
    unit: str = "",
    detail: str = "",
) -> Finding:
    """The finding of a statistical check; ``offset`` is added to the mean and its interval."""
    healthy = outcome == BY_NAME[check].healthy
    since = None if healthy or not arrays.steps else int(arrays.first[shift.start])
    return Finding(
        check,
        outcome,
        _finite(shift.mean + offset),
        unit,
        _finite(shift.low + offset),
        _finite(shift.high + offset),
        1.0 if healthy else shift.p,
        since,
        engine,
        shift.tokens,
        shift.sequences or int(arrays.moments[shift.start :, FIGURE.d, MOMENT.sequences].sum()),
        text,
        detail=detail,
    )


def unknown(
    check: str, why: str, engine: str | None = None, more_sequences: int | None = None, detail: str = ""
) -> Finding:
    """The finding of a check that has no result yet."""
    return Finding(check, UNKNOWN, engine=engine, text=why, more_sequences=more_sequences, detail=detail)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def first_step(arrays: EvidenceArrays, holds: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """The first of the latest steps for which it holds, as a step number; steps without tokens do not count."""
    at = holds.size - 1
    while at > 0 and (holds[at - 1] or not arrays.sums[at - 1, SUM.valid]):
        at -= 1
    return int(arrays.first[at]) if arrays.steps else 0


def certain(
    check: str, outcome: str, since: int | None, engine: str | None, n: int, text: str, detail: str, value: float = 0.0
) -> Finding:
    """The finding of a deterministic check over ``n`` sequences or tokens."""
    healthy = since is None and outcome == BY_NAME[check].healthy
    p = 1.0 if healthy else math.exp(-CERTAIN_LOG_E)
    return Finding(check, outcome, float(value), "", None, None, p, since, engine, 0, n, text, detail=detail)
