"""How tests say what they find. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import ALPHA, BY_NAME, UNKNOWN
from rltop.backend.evidence import kernel
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.sequential import MeanShift

LOG_FOUND = -math.log(ALPHA)
"""Evidence from which on a test alarms."""

FOUND = LOG_FOUND + 1.0
"""Of tests without a statistic: what is there is there."""


def asked(piles: EvidenceByEngine) -> Iterator[tuple[str | None, EvidenceArrays]]:
    """The run, and each of its engines if there are several."""
    yield None, piles.run
    if len(piles.engines) > 1:
        for engine in piles.engines:
            yield engine, piles.engine(engine)


def finding(
    test: str,
    outcome: str,
    shift: MeanShift,
    pile: EvidenceArrays,
    engine: str | None = None,
    *,
    shift_by: float = 0.0,
    text: str = "",
    unit: str = "",
    detail: str = "",
) -> Finding:
    """What a test says; ``shift_by`` is added to its figures."""
    healthy = outcome == BY_NAME[test].healthy
    since = None if healthy or not pile.steps else int(pile.first[shift.start])
    return Finding(
        test,
        outcome,
        _number(shift.mean + shift_by),
        unit,
        _number(shift.low + shift_by),
        _number(shift.high + shift_by),
        1.0 if healthy else shift.p,
        since,
        engine,
        shift.tokens,
        shift.sequences or int(pile.moments[shift.start :, kernel.D, 0].sum()),
        text,
        detail=detail,
    )


def unknown(test: str, why: str, engine: str | None = None, more: int | None = None) -> Finding:
    """A test that can't say."""
    return Finding(test, UNKNOWN, engine=engine, text=why, more_sequences=more)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
