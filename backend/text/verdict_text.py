"""Formats a verdict as JSON, and as text that fits one screen. Pure."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import msgspec

from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Verdict, family, fixes, percent, shares
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as CHECKS
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES

WIDTH, HEIGHT = 80, 24
"""The smallest screen that a verdict must fit."""

_LABEL = 18
"""Width of the column of labels."""

_MAX_EVIDENCE = 4

MAX_SHARES = 3
"""Causes that an undecided verdict names in its first sentence."""


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The output of ``rltop diagnose --json``: the fields of ``Verdict``; a value that is not finite becomes None."""
    built: dict[str, Any] = msgspec.to_builtins(verdict)
    for finding in built["findings"]:
        for name in ("value", "low", "high"):
            if finding[name] is not None and not math.isfinite(finding[name]):
                finding[name] = None
    return built


def lines(verdict: Verdict, *, width: int = WIDTH, height: int | None = HEIGHT) -> list[str]:
    """The verdict, its causes best first, then missing evidence; at most ``height`` lines of ``width``."""
    text = textwrap.wrap(headline(verdict), width, break_on_hyphens=False)
    for label, advice in first_steps(verdict):
        text += _labelled(label, advice, width)
    for cause in verdict.causes[:1]:
        text += _cause(cause, verdict, width)
    for cause in verdict.causes[1:]:
        text += _labelled("also", _summary(cause), width)
    for need in verdict.needs:
        text += _labelled("missing evidence", need, width)
    for note in verdict.notes:
        text += _labelled("note", note, width)
    if height is None or len(text) <= height:
        return text
    return [*text[: height - 1], "... `rltop diagnose --json` shows the rest"[:width]]


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence."""
    as_of = f"as of step {verdict.step}" if verdict.step is not None else "before the first step"
    scope = f"{as_of} ({verdict.steps} steps, {verdict.sequences} sequences, {verdict.tokens} tokens)"
    if verdict.verdict == HEALTHY:
        return f"run {verdict.run}: HEALTHY {scope}"
    best = verdict.causes[0] if verdict.causes else None
    if verdict.verdict == FAULT and best is not None:
        since = f" since step {best.since_step}" if best.since_step is not None else ""
        return f"run {verdict.run}: FAULT{since} on {where(best)}, {scope}"
    undecided = "NOT ENOUGH EVIDENCE YET" if best is None else f"UNDECIDED: {doubt(verdict)}"
    return f"run {verdict.run}: {undecided}, {scope}"


def doubt(verdict: Verdict) -> str:
    """What an undecided verdict is sure of: the layers, and the shares of their causes."""
    named, first = verdict.causes[:MAX_SHARES], verdict.causes[0]
    since = f" since step {first.since_step}" if first.since_step is not None else ""
    return (
        f"something is wrong{since} on {where(first)}, the cause is not clear yet. {family(named).capitalize()}: "
        f"{shares(named)}"
    )


def first_steps(verdict: Verdict) -> list[tuple[str, str]]:
    """What to do while no cause stands out, as label and text: the probe, then the fixes, the largest share first.

    Of a fault: live commands that cure less likely causes, if its own cause has none.
    """
    if not verdict.causes or verdict.verdict == HEALTHY:
        return []
    first, rows = verdict.causes[0], []
    if verdict.verdict != FAULT and first.probe:
        probe = PROBES[first.probe]
        command = f" (`{probe.runs} --run {verdict.run}`)" if probe.runs else ""
        rows.append(("first", f"probe {probe.name}{command}: {probe.does}"))
    for fix in fixes(verdict.causes):
        if fix.command and (verdict.verdict != FAULT or first not in fix.causes) and not first.command:
            codes = ", ".join(dict.fromkeys(cause.code for cause in fix.causes))
            rows.append(("live command", f"{fix.command} --run {verdict.run} (if it is {codes}: {percent(fix.share)})"))
    return rows


def where(cause: Cause) -> str:
    """The affected engines."""
    return ", ".join(cause.engines) if cause.engines else "all engines"


def in_place(cause: Cause) -> str:
    """The explanation for a command whose value is already set."""
    return (
        f"`{cause.in_place}` is applied. If it was applied recently, older tokens are still trained on for some steps; "
        "if not, it does not fix this."
    )


def _cause(cause: Cause, verdict: Verdict, width: int) -> list[str]:
    rows = [("meaning", cause.what), *(("evidence", sentence) for sentence in cause.evidence[:_MAX_EVIDENCE])]
    rows.append(("fix", cause.remedy))
    if cause.command:
        rows.append(("live command", f"{cause.command} --run {verdict.run}"))
    if cause.in_place:
        rows.append(("applied", in_place(cause)))
    if cause.confusable_with:
        rows.append(("alternatives", ", ".join(cause.confusable_with)))
    if cause.probe and verdict.verdict == FAULT:  # else it is the first step
        probe = PROBES[cause.probe]
        command = f" (`{probe.runs} --run {verdict.run}`)" if probe.runs else ""
        rows.append(("probe" if probe.runs else "experiment", f"{probe.name}{command}: {probe.does}"))
    title = textwrap.wrap(_title(cause), width, break_on_hyphens=False)
    return ["", *title, *(line for label, text in rows for line in _labelled(f"  {label}", text, width))]


def _title(cause: Cause) -> str:
    return f"{cause.code} {cause.title} [{cause.layer}, {percent(cause.confidence)}]"


def _summary(cause: Cause) -> str:
    since = f", since step {cause.since_step}" if cause.since_step is not None else ""
    return f"{_title(cause)} {cause.id} on {where(cause)}{since}"


def findings(verdict: Verdict, width: int = WIDTH) -> list[str]:
    """The finding of every check, the alarming ones first."""
    text = []
    for finding in verdict.findings:
        engine = f" on {finding.engine}" if finding.engine else ""
        detail = f" ({finding.detail})" if finding.detail else ""
        head = f"{finding.test} ({CHECKS[finding.test].title}){engine}: {finding.outcome}{detail}"
        text += textwrap.wrap(f"{head}. {finding.text}" if finding.text else head, width, break_on_hyphens=False)
    return text


def _labelled(label: str, text: str, width: int) -> list[str]:
    """The text wrapped beside its label."""
    first, rest = f"{label:<{_LABEL}}", " " * _LABEL
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [label]
