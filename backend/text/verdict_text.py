"""A verdict as JSON, and as text that fits one screen. Pure."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import msgspec

from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES

WIDTH, HEIGHT = 80, 24
"""The least screen that a verdict has to fit."""

_MOST_EVIDENCE = 4


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The report of ``rltop diagnose --json``: the fields of ``Verdict``; unknown is None, never NaN or infinite."""
    built: dict[str, Any] = msgspec.to_builtins(verdict)
    for finding in built["findings"]:
        for name in ("value", "low", "high"):
            if finding[name] is not None and not math.isfinite(finding[name]):
                finding[name] = None
    return built


def lines(verdict: Verdict, *, width: int = WIDTH, height: int | None = HEIGHT) -> list[str]:
    """The verdict first, then causes best first, then what is needed; at most ``height`` lines of ``width``."""
    found = _wrapped("", headline(verdict), width)
    for cause in verdict.causes[:1]:
        found += _cause(cause, verdict, width)
    for cause in verdict.causes[1:]:
        found += _briefly(cause, width)
    for need in verdict.needs:
        found += _wrapped("needs  ", need, width)
    for note in verdict.notes:
        found += _wrapped("noted  ", note, width)
    if height is None or len(found) <= height:
        return found
    return [*found[: height - 1], "... `rltop diagnose --json` has the rest"[:width]]


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    seen = f"as of step {verdict.step}" if verdict.step is not None else "before the first step"
    looked = f"{seen} ({verdict.steps} steps, {verdict.sequences} sequences, {verdict.tokens} tokens)"
    if verdict.verdict == HEALTHY:
        return f"run {verdict.run}: HEALTHY {looked}"
    best = verdict.causes[0] if verdict.causes else None
    if verdict.verdict == FAULT and best is not None:
        since = f" since step {best.since_step}" if best.since_step is not None else ""
        return f"run {verdict.run}: FAULT{since} on {where(best)}, {looked}"
    said = "something is off, and what it is can't be told yet" if best else "CANNOT TELL YET"
    return f"run {verdict.run}: {said if best is None else 'UNDECIDED: ' + said}, {looked}"


def where(cause: Cause) -> str:
    """On which engines."""
    return ", ".join(cause.engines) if cause.engines else "all engines"


def in_place(cause: Cause) -> str:
    """What is to be said of an order that is not to be given again."""
    return (
        f"`{cause.in_place}` is in place. If it was given just now, tokens of before are trained on for some steps "
        "yet; if not, it is no cure."
    )


def _cause(cause: Cause, verdict: Verdict, width: int) -> list[str]:
    found = ["", *_wrapped("", _title(cause), width)]
    found += _wrapped("  what   ", cause.what, width)
    for sentence in cause.evidence[:_MOST_EVIDENCE]:
        found += _wrapped("  seen   ", sentence, width)
    found += _wrapped("  do     ", cause.remedy, width)
    if cause.command:
        found += _wrapped("  live   ", f"{cause.command} --run {verdict.run}", width)
    if cause.in_place:
        found += _wrapped("  live   ", in_place(cause), width)
    if cause.confusable_with:
        found += _wrapped("  or     ", ", ".join(cause.confusable_with), width)
    if cause.probe:
        probe = PROBES[cause.probe]
        order = f" (`{probe.runs} --run {verdict.run}`)" if probe.runs else ""
        found += _wrapped("  probe  ", f"{probe.name}{order}: {probe.does}", width)
    return found


def _title(cause: Cause) -> str:
    return f"{cause.code} {cause.title} [{cause.layer}, {_percent(cause.confidence)}]"


def _percent(share: float) -> str:
    """Never a certainty."""
    return f"{min(100 * share, 99):.0f} %"


def _briefly(cause: Cause, width: int) -> list[str]:
    since = f", since step {cause.since_step}" if cause.since_step is not None else ""
    return _wrapped("also   ", f"{_title(cause)} {cause.id} on {where(cause)}{since}", width)


def findings(verdict: Verdict, width: int = WIDTH) -> list[str]:
    """What every test found, the alarming ones first."""
    found = []
    for finding in verdict.findings:
        of = f" of {finding.engine}" if finding.engine else ""
        detail = f" ({finding.detail})" if finding.detail else ""
        head = f"{finding.test} {TESTS[finding.test].title}{of}: {finding.outcome}{detail}"
        found += _wrapped("", f"{head}. {finding.text}" if finding.text else head, width)
    return found


def _wrapped(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    ) or [label.rstrip()]
