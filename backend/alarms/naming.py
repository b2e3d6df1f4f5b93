"""What an alarm is called: its cause if one stands out, else the family with the shares and the probe. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from rltop.backend.api.alarm import MAX_EVIDENCE, AlarmCandidate
from rltop.backend.api.verdict import FAULT, Cause, Finding, Verdict, family, fixes, percent
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES
from rltop.backend.diagnosis.infer import is_alarming

MIN_SHARE = 0.05
"""Causes with a lower share are not named."""

UNEXPLAINED = "unexplained"
"""The layer of an alarm that no listed cause explains."""


def is_wrong(verdict: Verdict) -> bool:
    """Whether the verdict reports something that healthy runs do not show."""
    return bool(verdict.causes) or any(map(is_alarming, verdict.findings))


def is_certain(verdict: Verdict) -> bool:
    """Whether something is wrong, whichever of the causes it is."""
    return verdict.verdict == FAULT or sum(cause.confidence for cause in verdict.causes) >= FAULT_SHARE


FAULT_SHARE = 0.8
"""Least joint share of the causes for a certain fault: odds of 4 to 1."""


def of_cause(cause: Cause) -> dict[str, Any]:
    """The fields of an alarm that is named after ``cause``."""
    return {
        "cause": cause.id, "code": cause.code, "layer": cause.layer, "title": cause.title, "sure": True,
        "engines": cause.engines, "since_step": cause.since_step, "evidence": cause.evidence[:MAX_EVIDENCE],
        "remedy": cause.remedy, "command": cause.command, "candidates": [], "probe": cause.probe,
    }  # fmt: skip


def of_family(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The fields of an alarm of which no cause stands out, by the latest ``verdicts`` in a row, with mean shares."""
    causes = _mean_shares(verdicts)
    if not causes:
        return _unexplained(verdicts[-1].findings)
    first = causes[0]
    sure_fixes = [fix for fix in fixes(causes) if fix.command]
    everywhere = any(not cause.engines for cause in causes)
    return {
        "cause": "", "code": "", "layer": family(causes), "title": "several causes fit", "sure": False,
        "engines": [] if everywhere else sorted({engine for cause in causes for engine in cause.engines}),
        "since_step": min((c.since_step for c in causes if c.since_step is not None), default=None),
        "evidence": first.evidence[:MAX_EVIDENCE],
        "remedy": _first_step(first, causes),
        "command": sure_fixes[0].command if sure_fixes else "",
        "candidates": [AlarmCandidate(cause.id, cause.code, cause.confidence) for cause in causes],
        "probe": first.probe,
    }  # fmt: skip


def _mean_shares(verdicts: Sequence[Verdict]) -> list[Cause]:
    """The causes of the verdicts as last reported, with their mean shares, most likely first."""
    last = {cause.id: cause for verdict in verdicts for cause in verdict.causes}
    totals = dict.fromkeys(last, 0.0)
    for verdict in verdicts:
        for cause in verdict.causes:
            totals[cause.id] += cause.confidence / len(verdicts)
    named = [msgspec.structs.replace(cause, confidence=totals[cause.id]) for cause in last.values()]
    return sorted((c for c in named if c.confidence >= MIN_SHARE), key=lambda cause: -cause.confidence)


def _first_step(first: Cause, causes: Sequence[Cause]) -> str:
    """What to do while the cause is not certain: the probe, then the fix of the largest share."""
    probe = PROBES.get(first.probe)
    words = [f"Find out which first: probe {probe.name}, {probe.does}."] if probe is not None else []
    best = fixes(causes)[0]
    codes = " and ".join(dict.fromkeys(cause.code for cause in best.causes))
    action = f"`{best.command}`" if best.command else best.remedy
    return " ".join([*words, f"The fix that covers most ({codes}, {percent(best.share)}): {action}"])


def _unexplained(findings: Sequence[Finding]) -> dict[str, Any]:
    alarming = [finding for finding in findings if is_alarming(finding)]
    probe = PROBES["triad"]
    return {
        "cause": "", "code": "", "layer": UNEXPLAINED, "title": "no listed cause explains it", "sure": False,
        "engines": [], "since_step": min((f.since_step for f in alarming if f.since_step is not None), default=None),
        "evidence": [finding.text for finding in alarming if finding.text][:MAX_EVIDENCE],
        "remedy": f"Find the side first: probe {probe.name}, {probe.does}.", "command": "", "candidates": [],
        "probe": probe.name,
    }  # fmt: skip
