"""Asks every test of a case. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, UNKNOWN
from rltop.backend.diagnosis.checks import calibration, deterministic, level, location, trends, version_fit
from rltop.backend.diagnosis.checks.findings import unknown
from rltop.backend.diagnosis.checks.level import bound_of
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM

ASK: dict[str, Callable[[EvidenceByEngine], Iterator[Finding]]] = {
    "mean_ratio": calibration.mean_ratio,
    "sign": calibration.sign,
    "one_sided": calibration.sides,
    "calibration": calibration.sampler,
    "nll_minus_entropy": calibration.surprisal,
    "alignment": calibration.alignment,
    "position": location.position,
    "trend": level.course,
    "lag_slope": location.lag,
    "engine_gap": location.engines,
    "cache_gap": location.cache,
    "tail": location.tail,
    "logit_lattice": level.lattice,
    "floor": level.floor,
    "fit": version_fit.fit,
    "slope": calibration.slope,
    "in_flight": location.in_flight,
    "repetition": location.repetition,
    "repeat": level.repeat,
    "repeat_engine": level.repeat_engine,
    "copies": deterministic.copies,
    "record": deterministic.record,
    "join": deterministic.join,
    "mask": deterministic.mask,
    "facts": deterministic.stated,
    "versions": deterministic.versions,
    "lag": deterministic.lag,
    "entropy": trends.entropy,
    "reward": trends.reward,
    "gradient": trends.gradient,
    "clip": trends.clips,
    "speed": trends.speed,
    "aborts": trends.aborts,
    "truncation": trends.truncation,
}
"""The function of each test that can be computed from what collectors have."""

NOT_COMPUTED: dict[str, str] = {
    "batch_load": "it needs the size of the batch that sampled each token, which collectors do not take",
}


OF_MATCHED = frozenset({"sign", "one_sided", "position", "trend", "cache_gap", "tail", "floor", "fit", "slope", "in_flight", "repetition"})
"""Tests of version-matched tokens: where those are few, or of earlier steps alone, nothing is healthy for that."""

LATE_STEPS = 5
"""The latest steps that must have matched tokens: as soon is a fault to be shift."""


def ask(case: DiagnosisInput) -> list[Finding]:
    """What every test finds, the alarming first."""
    evidence = EvidenceByEngine(case)
    found = [one for name, test in ASK.items() for one in (test(evidence) if case.steps or name == "facts" else ())]
    found += [unknown(name, why) for name, why in NOT_COMPUTED.items()]
    seen = {one.engine for one in found if one.test == "floor" and BY_NAME["floor"].alarms(one.outcome)}
    blind = {engine: why for engine in (None, *evidence.engines) if (why := _blind(evidence, engine, engine in seen))}
    found = [
        unknown(one.test, blind[one.engine], one.engine)
        if one.test in OF_MATCHED and one.engine in blind and one.outcome == BY_NAME[one.test].healthy
        else one
        for one in found
    ]
    return sorted(found, key=lambda one: one.outcome in (BY_NAME[one.test].healthy, UNKNOWN))


def _blind(evidence: EvidenceByEngine, engine: str | None, seen: bool) -> str:
    """Why matched tokens can't say that a run, or an engine of it, is healthy; empty where they can.

    ``seen``: they have a gap that is above the floor for sure; then what they say is of its shape.
    """
    if seen:
        return ""
    arrays = evidence.run if engine is None else evidence.engine(engine)
    late = arrays.from_step(max(arrays.steps - LATE_STEPS, 0))
    if not late.sums[:, SUM.matched].sum():
        return f"no version-matched tokens in the latest {LATE_STEPS} steps"
    least, _ = bound_of(evidence, engine)
    square = late.moments[:, FIGURE.matched_d2, MOMENT.s].sum() / max(float(late.sums[:, SUM.room].sum()), 1e-9)
    if square > least**2:
        return "the latest matched gap is above its floor, in too few sequences to be sure"
    return ""
