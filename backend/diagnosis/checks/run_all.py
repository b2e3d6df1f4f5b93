"""Runs every check. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME, SUSPECT, UNKNOWN
from rltop.backend.diagnosis.checks import (
    calibration,
    deterministic,
    exact,
    level,
    location,
    probe_answers,
    refit,
    trends,
    version_fit,
    weight_versions,
)
from rltop.backend.diagnosis.checks.findings import HOW_TO_MATCH, unknown
from rltop.backend.diagnosis.checks.level import bound_of
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, MOMENT, SUM

FUNCTIONS: dict[str, Callable[[EvidenceByEngine], Iterator[Finding]]] = {
    "mean_ratio": calibration.mean_ratio,
    "sign": calibration.sign,
    "one_sided": calibration.one_sided,
    "calibration": calibration.calibration,
    "nll_minus_entropy": calibration.nll_minus_entropy,
    "alignment": calibration.alignment,
    "position": location.position,
    "trend": level.trend,
    "lag_slope": location.lag_slope,
    "engine_gap": location.engine_gap,
    "cache_gap": location.cache_gap,
    "tail": location.tail,
    "logit_lattice": level.logit_lattice,
    "floor": level.floor,
    "fit": version_fit.fit,
    "slope": calibration.slope,
    "in_flight": location.in_flight,
    "turn_gap": location.turn_gap,
    "repetition": location.repetition,
    "repeat": level.repeat,
    "repeat_engine": level.repeat_engine,
    "copies": exact.copies,
    "record": exact.record,
    "join": exact.join,
    "mask": exact.mask,
    "facts": deterministic.facts_agree,
    "versions": weight_versions.versions,
    "lag": weight_versions.lag,
    "entropy": trends.entropy,
    "reward": trends.reward,
    "gradient": trends.gradient,
    "clip": trends.clip,
    "speed": trends.speed,
    "aborts": trends.aborts,
    "truncation": trends.truncation,
    "refit": refit.refit,
    "weight_digest": probe_answers.weight_digest,
    "cache_salt": probe_answers.cache_salt,
    "prefill_rescore": probe_answers.prefill_rescore,
    "cross_replica": probe_answers.cross_replica,
}
"""The function of each check that can be computed from what collectors send."""

NOT_COMPUTED: dict[str, str] = {
    "batch_load": "needs the size of the batch that sampled each token, which collectors do not record",
}


OF_MATCHED = frozenset(
    {
        "sign",
        "one_sided",
        "position",
        "trend",
        "cache_gap",
        "turn_gap",
        "tail",
        "floor",
        "fit",
        "slope",
        "in_flight",
        "repetition",
    }
)
"""Checks of version-matched tokens: if these are few, or not recent, a healthy outcome becomes unknown."""

LATE_STEPS = 5
"""The latest steps that must have matched tokens: as soon is a fault to be shift."""


def run_all(run: DiagnosisInput) -> list[Finding]:
    """The findings of every check, the alarming first."""
    evidence = EvidenceByEngine(run)
    findings = [f for name, check in FUNCTIONS.items() if run.steps or name == "facts" for f in check(evidence)]
    findings += [unknown(name, why) for name, why in NOT_COMPUTED.items()]
    with_gap = {f.engine for f in findings if f.test == "floor" and BY_NAME["floor"].alarms(f.outcome)}
    uninformative = {
        engine: why
        for engine in (None, *evidence.engines)
        if engine not in with_gap and (why := _uninformative(evidence, engine))
    }
    findings = [
        unknown(f.test, why := uninformative[f.engine], f.engine, detail=SUSPECT if why == TOO_FEW else "")
        if f.test in OF_MATCHED and f.engine in uninformative and f.outcome == BY_NAME[f.test].healthy
        else f
        for f in findings
    ]
    return sorted(findings, key=lambda f: f.outcome in (BY_NAME[f.test].healthy, UNKNOWN))


def _uninformative(evidence: EvidenceByEngine, engine: str | None) -> str:
    """Why matched tokens can't show that a run, or one of its engines, is healthy; empty if they can."""
    arrays = evidence.run if engine is None else evidence.engine(engine)
    late = arrays.from_step(max(arrays.steps - LATE_STEPS, 0))
    if not late.sums[:, SUM.matched].sum():
        return f"no version-matched tokens in the last {LATE_STEPS} steps; {HOW_TO_MATCH}"
    bound, _ = bound_of(evidence, engine)
    square = late.moments[:, FIGURE.matched_d2, MOMENT.s].sum() / max(float(late.sums[:, SUM.complement].sum()), 1e-9)
    return TOO_FEW if square > bound**2 else ""


TOO_FEW = "the latest version-matched gap is above its bound, in too few sequences to be certain"
