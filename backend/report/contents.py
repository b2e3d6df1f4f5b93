"""The contents of a run's report: verdict, causes, alarms, plots, switches, updates, facts and findings. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.api.alarm import status_text, summary_line
from rltop.backend.api.verdict import FAULT, Cause, Finding, Verdict, family, shares
from rltop.backend.commands.messages import title as change_title
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES
from rltop.backend.fleet.rounding import gap_floor, matched_gap
from rltop.backend.report.blocks import Block, Bullets, Code, Heading, Paragraph, SvgBlock, TableBlock
from rltop.backend.report.svg import Floats, PlotLine, PlotMark, svg
from rltop.backend.text import fingerprint_text
from rltop.backend.text import status as lines
from rltop.backend.text.verdict_text import headline, in_place, where
from rltop.backend.util.durations import date_and_time as at

PLOTS: tuple[tuple[str, tuple[tuple[str, str], ...], str], ...] = (
    ("gap |d|, nats", (("mean", "logp_abs_diff_mean"), ("p95", "logp_abs_diff_p95")), "logp_abs_diff_mean"),
    ("KL k3, nats", (("k3", "kl_k3"),), ""),
    ("mean ratio", (("ratio", "ratio_mean"),), ""),
    ("clipped tokens, share", (("low", "clip_frac_low"), ("high", "clip_frac_high")), ""),
    ("entropy, nats", (("mean", "entropy"),), ""),
    ("reward", (("mean", "reward_mean"),), ""),
)
"""Title, lines with their metrics, and the metric that is also drawn per engine."""

MATCHED_TITLE = "version-matched gap |d| with its floor, nats"
"""The first plot."""

MAX_ENGINES = 4
"""Most engines that are drawn as lines; a larger fleet has none."""

MAX_TICKS = 200
"""Most weight updates that are drawn as ticks."""

MAX_EVENTS = 60
"""Most warnings and errors that are listed, the newest."""


def blocks(picture: api.Snapshot, verdict: Verdict, now: float) -> list[Block]:
    """The report of a run.

    Args:
        picture: snapshot of the run.
        verdict: diagnosis of the run.
        now: time of the report, wall clock in seconds.
    """
    document: list[Block] = [
        Heading(f"Run {picture.run}: {_short(verdict)}", 1),
        Paragraph(f"Created by rltop at {at(now)} UTC from the state at {at(picture.time)} UTC."),
        Paragraph(headline(verdict), strong=True),
    ]
    for i, cause in enumerate(verdict.causes):
        document += _cause(cause, verdict.run, first=i == 0)
    if verdict.needs or verdict.notes:
        needs = [("missing evidence", need) for need in verdict.needs]
        document.append(Bullets([*needs, *(("note", note) for note in verdict.notes)]))
    document += [Heading("Alarms"), *_alarms(picture)]
    document += [Heading("Plots"), *_plots(picture, verdict)]
    document += [Heading("Switches"), *_changes(picture)]
    document += [Heading("Weight updates"), *_updates(picture)]
    document += [Heading("Engines and trainer"), Code(fingerprint_text.as_text(picture))]
    document += [Heading("Warnings and errors"), *_events(picture)]
    document += [Heading("Findings of every check"), _findings(verdict.findings)]
    return document


def _short(verdict: Verdict) -> str:
    if not verdict.causes:
        return verdict.verdict
    best = verdict.causes[0]
    if verdict.verdict == FAULT:
        return f"{best.title} ({best.code})"
    return f"{family(verdict.causes)}: {shares(verdict.causes)}"


def _cause(cause: Cause, run: str, *, first: bool) -> list[Block]:
    since = f", since step {cause.since_step}" if cause.since_step is not None else ""
    head = f"{cause.code} {cause.title}: {cause.layer}, {min(100 * cause.confidence, 99):.0f} % confidence"
    rows = [("location", f"{where(cause)}{since}"), ("meaning", cause.what)]
    rows += [("evidence", sentence) for sentence in cause.evidence]
    rows.append(("fix", cause.remedy))
    if cause.in_place:
        rows.append(("applied", in_place(cause)))
    if cause.confusable_with:
        rows.append(("alternatives", ", ".join(cause.confusable_with)))
    if cause.probe:
        probe = PROBES.get(cause.probe)
        rows.append(("probe", f"{cause.probe}: {probe.does}" if probe is not None else cause.probe))
    section: list[Block] = [Heading(head, 2 if first else 3), Bullets([(name, text) for name, text in rows if text])]
    if cause.command:
        section.append(Code(f"{cause.command} --run {run}"))
    return section


def _alarms(picture: api.Snapshot) -> list[Block]:
    if not picture.alarms:
        return [Paragraph("None was raised.")]
    rows = [
        (
            alarm.id, at(alarm.raised), str(alarm.raised_step), summary_line(alarm), status_text(alarm, picture.time),
            "" if alarm.acknowledged_at is None else at(alarm.acknowledged_at),
        )
        for alarm in picture.alarms.values()
    ]  # fmt: skip
    heads = ("alarm", "raised, UTC", "after step", "cause", "status", "acknowledged, UTC")
    evidence = [(f"{a.id} evidence", sentence) for a in picture.alarms.values() for sentence in a.evidence]
    return [TableBlock(heads, rows), *([Bullets(evidence)] if evidence else [])]


def _plots(picture: api.Snapshot, verdict: Verdict) -> list[Block]:
    steps = sorted(picture.steps.values(), key=lambda step: step.step)
    if not steps:
        return [Paragraph("No step has closed.")]
    numbers = np.array([step.step for step in steps], dtype=np.float64)
    marks = _marks(picture, steps)
    updates, connected = _update_steps(steps), _connected(steps)
    since = verdict.causes[0].since_step if verdict.causes else None
    legend = "Vertical lines: switches (dashed), alarms raised (solid) and over (dotted). Ticks: weight updates."
    fault = None
    if since is not None and verdict.step is not None:
        fault = float(since), float(verdict.step)
        legend += f" Shaded: from step {since}, the first that shows the fault, to the step of the verdict."
    plots: list[Block] = [Paragraph(legend)]
    plots.append(_matched(picture, steps, numbers, marks, updates, fault, connected))
    for title, metrics, by_engine in PLOTS:
        series = [PlotLine(label, _column([step.values.get(metric) for step in steps])) for label, metric in metrics]
        if by_engine and len(picture.engines) <= MAX_ENGINES:
            series += [
                PlotLine(engine, _column([step.engines.get(engine, {}).get(by_engine) for step in steps]))
                for engine in sorted(picture.engines)
            ]
        plots.append(SvgBlock(svg(title, numbers, series, marks, updates=updates, fault=fault, connected=connected)))
    return plots


def _matched(
    picture: api.Snapshot,
    steps: Sequence[api.Step],
    numbers: Floats,
    marks: Sequence[PlotMark],
    updates: Sequence[float],
    fault: tuple[float, float] | None,
    connected: NDArray[np.bool_],
) -> SvgBlock:
    """The figure that most checks test: the version-matched gap with its floor, and by engine in a small fleet."""
    series = [PlotLine("all", _column([matched_gap(step.values) for step in steps]))]
    floor = gap_floor(steps, picture.engines.values(), picture.trainer)
    if floor is not None:
        series.append(PlotLine("floor", np.full(len(steps), floor)))
    engines = sorted(picture.engines) if len(picture.engines) <= MAX_ENGINES else []
    series += [PlotLine(name, _column([matched_gap(step.engines.get(name, {})) for step in steps])) for name in engines]
    return SvgBlock(svg(MATCHED_TITLE, numbers, series, marks, updates=updates, fault=fault, connected=connected))


def _connected(steps: Sequence[api.Step]) -> NDArray[np.bool_]:
    """Whether a line connects each step to the next [steps - 1]: not over unmeasured or incomplete steps.

    Gaps between downsampled steps of a long run's old part are connected.
    """
    whole = [not (step.partial or step.lost) for step in steps]
    near = [a.level or b.level or b.step == a.step + 1 for a, b in pairwise(steps)]
    return np.array([bool(n and a and b) for n, (a, b) in zip(near, pairwise(whole), strict=True)], bool)


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _update_steps(steps: Sequence[api.Step]) -> list[float]:
    """Steps after which the weights changed; empty if there are too many for ticks."""
    updates = [b.step - 0.5 for a, b in pairwise(steps) if a.policy_version != b.policy_version]
    return updates if len(updates) <= MAX_TICKS else []


def _marks(picture: api.Snapshot, steps: Sequence[api.Step]) -> list[PlotMark]:
    marks: dict[tuple[float, str], PlotMark] = {}
    for change in picture.changes.values():
        if change.state == "applied" and change.verb != "keep":
            step = change.step if change.step is not None else _step_at(steps, change.requested)
            label = f"{change.flag} {change.new}" if change.verb == "set" else change_title(change)
            marks[step, label] = PlotMark(step + 0.5, label, "switch")
    for alarm in picture.alarms.values():
        marks[alarm.raised_step, alarm.id] = PlotMark(alarm.raised_step, f"{alarm.id} raised", "alarm")
        if alarm.cleared_step is not None:
            marks[alarm.cleared_step, alarm.id] = PlotMark(alarm.cleared_step, f"{alarm.id} over", "over")
    return sorted(marks.values(), key=lambda mark: mark.step)


def _step_at(steps: Sequence[api.Step], moment: float) -> int:
    return max((step.step for step in steps if step.closed <= moment), default=-1)


def _changes(picture: api.Snapshot) -> list[Block]:
    if not picture.changes:
        return [Paragraph("Nothing was switched.")]
    rows = [
        (
            at(change.requested), "-" if change.step is None else str(change.step), lines.change_text(change),
            api.signature(change.who, change.host, change.author) if change.who else "", change.why, change.command,
        )
        for change in picture.changes.values()
    ]  # fmt: skip
    return [TableBlock(("requested, UTC", "step", "outcome", "who", "why", "command"), rows)]


def _updates(picture: api.Snapshot) -> list[Block]:
    steps = [step for step in picture.steps.values() if step.policy_version is not None]
    version = _or_dash(picture.trainer.policy_version)
    rows = [("trainer", f"{api.health_text(picture.trainer.health)}, policy version {version}")]
    if steps:
        first, last = min(steps, key=lambda s: s.step), max(steps, key=lambda s: s.step)
        text = f"{_or_dash(first.policy_version)} at step {first.step}, {_or_dash(last.policy_version)} at {last.step}"
        rows.append(("policy version", text))
    for engine in picture.engines.values():
        version = f"version {_or_dash(engine.policy_version)} ({engine.version_source})"
        lag = f"{_or_dash(engine.lag)} behind the trainer"
        rows.append((engine.id, f"{api.health_text(engine.health)}, {version}, {lag}"))
    return [Bullets(rows)]


def _events(picture: api.Snapshot) -> list[Block]:
    events = [event for event in picture.events if event.severity != "info"][-MAX_EVENTS:]
    if not events:
        return [Paragraph("None.")]
    rows = [(at(e.time), _or_dash(e.step), e.severity, e.kind, e.engine or "", e.text) for e in events]
    return [TableBlock(("time, UTC", "step", "severity", "kind", "engine", "event"), rows)]


def _findings(findings: Sequence[Finding]) -> Block:
    rows = [
        (
            f"{finding.test} {TESTS[finding.test].title if finding.test in TESTS else ''}",
            finding.engine or "run",
            f"▲ {finding.outcome}" if finding.test in TESTS and TESTS[finding.test].alarms(finding.outcome)
            else finding.outcome,
            f"{finding.p:.1g}" if finding.p < 1 else "",
            _or_dash(finding.since_step),
            finding.text,
        )
        for finding in findings
    ]  # fmt: skip
    return TableBlock(("check", "scope", "finding", "p", "since step", "details"), rows)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
