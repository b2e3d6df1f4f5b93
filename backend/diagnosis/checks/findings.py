"""Builds the findings of checks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import ALPHA, BY_NAME, UNKNOWN
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT
from rltop.backend.evidence.sequential import MeanShift

ALARM_LOG_E = -math.log(ALPHA)
"""Log evidence from which a check alarms."""

CERTAIN_LOG_E = ALARM_LOG_E + 1.0
"""Log evidence assigned to a deterministic check."""

NOT_MATCHED = "no version-matched tokens yet: old logprobs, or tokens of lag 0"
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


def unknown(check: str, why: str, engine: str | None = None, more_sequences: int | None = None) -> Finding:
    """The finding of a check that has no result yet."""
    return Finding(check, UNKNOWN, engine=engine, text=why, more_sequences=more_sequences)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
