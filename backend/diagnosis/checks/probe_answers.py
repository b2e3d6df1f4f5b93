"""Answers of probes as findings: each counts for the versions that it covers, until a later answer or until it expires.

A probe examines the weights and caches of the versions up to its own. Its answer counts while the latest steps still
train on tokens of these versions: afterwards an update may have changed what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.checks.findings import certain, unknown
from rltop.backend.evidence.diagnosis_input import DiagnosisInput, last_mixed
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine

RECENT_STEPS = 5
"""Steps after the last one with tokens of a covered version for which an answer counts, as for matched tokens."""

PROBES = {
    "weight_digest": "weight-digest",
    "cache_salt": "cache-salt",
    "prefill_rescore": "prefill-rescore",
    "cross_replica": "cross-replica",
}
"""The probe of each check."""

OF_CACHE = frozenset({"cache-salt"})
"""Probes whose answer no longer holds once a flag is switched or the cache is flushed."""


def weight_digest(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``weight_digest``: the answer of the probe of that name."""
    return _findings("weight_digest", evidence.input, _digest_outcome)


def cache_salt(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``cache_salt``: the answer of the probe of that name."""
    return _findings("cache_salt", evidence.input, lambda result: result.verdict)


def prefill_rescore(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``prefill_rescore``: the answer of the probe of that name."""
    return _findings("prefill_rescore", evidence.input, lambda result: result.verdict)


def cross_replica(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``cross_replica``: the answer of the probe of that name."""
    return _findings("cross_replica", evidence.input, lambda result: result.verdict)


def _findings(check: str, run: DiagnosisInput, outcome_of: Callable[[ProbeResult], str]) -> Iterator[Finding]:
    """The finding of each answer that counts, one for every deviating engine."""
    answers = _counting(check, run)
    if not answers:
        yield unknown(check, f"no answer for the latest versions; `rltop probe {PROBES[check]}`")
    for result in answers:
        some = set(result.odd) < (run.engines.keys() or set(result.engines))
        places: list[str | None] = [*result.odd] if result.odd and some else [None]
        for engine in places:
            outcome = outcome_of(result)
            healthy = not BY_NAME[check].alarms(outcome)
            text = f"{result.probe} after step {result.step}: {result.text}"
            yield certain(check, outcome, None if healthy else result.step, engine, 0, text, "")


def _counting(check: str, run: DiagnosisInput) -> list[ProbeResult]:
    """The latest answer about each engine, as far as it still holds."""
    latest: dict[str, ProbeResult] = {}
    for result in (event.probe for event in run.events if event.probe is not None):
        if result.probe == PROBES[check] and result.verdict in ANSWERS:
            latest.update(dict.fromkeys(result.engines, result))
    distinct = {result.command: result for result in latest.values()}
    return [result for result in distinct.values() if not _is_expired(result, run)]


def _is_expired(result: ProbeResult, run: DiagnosisInput) -> bool:
    if run.steps and last_mixed(run.steps, _step(result)) + RECENT_STEPS < run.steps[-1].step:
        return True
    return result.probe in OF_CACHE and any(_changes_cache(change, result) for change in run.changes)


def _step(result: ProbeResult) -> int:
    return -1 if result.step is None else result.step


def _changes_cache(change: api.Change, result: ProbeResult) -> bool:
    later = change.state == "applied" and (change.closed or change.requested) > result.time
    return later and change.verb in ("set", "flush_cache") and change.engine in result.engines


ANSWERS = frozenset({
    "agree", "differ", "not_applied", "partial", "not_the_trainer", "fresh", "stale", "match",
})  # fmt: skip
"""Verdicts that answer the probe's question; ``overtaken`` and the like do not."""

OF_TRAINER, OF_UPDATES = "weights that differ from the trainer's", "weights changed by updates"
"""Names of two numbers in the evidence of a weight digest."""


def _digest_outcome(result: ProbeResult) -> str:
    """What agreeing digests were compared with: the trainer's, those before an update, or other engines'."""
    if result.verdict != "agree":
        return result.verdict
    of_trainer = {entry.engine for entry in result.evidence if entry.name == OF_TRAINER and entry.value == 0}
    if of_trainer >= set(result.engines):
        return "agree"
    updated = {entry.engine for entry in result.evidence if entry.name == OF_UPDATES and entry.value}
    return "updated" if updated >= set(result.engines) else "alike"
