"""What a report of a run says, as blocks: the verdict first, then why, what to do, what was done. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.api.alarm import status_text, summary_line
from rltop.backend.api.verdict import Cause, Finding, Verdict
from rltop.backend.commands.messages import title as deed
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES
from rltop.backend.report.blocks import Block, Bullets, Code, Heading, Paragraph, SvgBlock, TableBlock
from rltop.backend.report.svg import Floats, PlotLine, PlotMark, svg
from rltop.backend.text import fingerprint_text
from rltop.backend.text import status as lines
from rltop.backend.text.verdict_text import headline, in_place, where

PLOTS: tuple[tuple[str, tuple[tuple[str, str], ...], str], ...] = (
    ("gap |d|, nats", (("mean", "logp_abs_diff_mean"), ("p95", "logp_abs_diff_p95")), "logp_abs_diff_mean"),
    ("KL k3, nats", (("k3", "kl_k3"),), ""),
    ("mean ratio", (("ratio", "ratio_mean"),), ""),
    ("clipped tokens, share", (("low", "clip_frac_low"), ("high", "clip_frac_high")), ""),
    ("entropy, nats", (("mean", "entropy"),), ""),
    ("reward", (("mean", "reward_mean"),), ""),
)
"""Title, lines with their metrics, and the metric that each engine has a line of too."""

MAX_ENGINES = 4
"""Engines with lines of their own; of a larger fleet none."""

MAX_TICKS = 200
"""Weight updates that are drawn."""

MAX_EVENTS = 60
"""Warnings and errors that are listed, the newest."""


def blocks(picture: api.Snapshot, verdict: Verdict, now: float) -> list[Block]:
    """The report of a run.

    Args:
        picture: the run, as far as it is known.
        verdict: what is wrong with it.
        now: when the report is made, wall clock.
    """
    found: list[Block] = [
        Heading(f"Run {picture.run}: {_short(verdict)}", 1),
        Paragraph(f"Made {_at(now)} UTC by rltop, from what was known at {_at(picture.time)} UTC."),
        Paragraph(headline(verdict), strong=True),
    ]
    for place, cause in enumerate(verdict.causes):
        found += _cause(cause, verdict.run, first=place == 0)
    if verdict.needs or verdict.notes:
        needs = [("needs", need) for need in verdict.needs]
        found.append(Bullets([*needs, *(("noted", note) for note in verdict.notes)]))
    found += [Heading("Alarms"), *_alarms(picture)]
    found += [Heading("Figures"), *_figures(picture, verdict)]
    found += [Heading("Switches"), *_changes(picture)]
    found += [Heading("Weight updates"), *_updates(picture)]
    found += [Heading("Engines and trainer"), Code(fingerprint_text.as_text(picture))]
    found += [Heading("Warnings and errors"), *_events(picture)]
    found += [Heading("What every test found"), _findings(verdict.findings)]
    return found


def _short(verdict: Verdict) -> str:
    if not verdict.causes:
        return verdict.verdict
    best = verdict.causes[0]
    return f"{'' if verdict.verdict == 'fault' else 'perhaps '}{best.title} ({best.code})"


def _cause(cause: Cause, run: str, *, first: bool) -> list[Block]:
    since = f", since step {cause.since_step}" if cause.since_step is not None else ""
    head = f"{cause.code} {cause.title}: {cause.layer}, {min(100 * cause.confidence, 99):.0f} % sure"
    said = [("where", f"{where(cause)}{since}"), ("what it does", cause.what)]
    said += [("seen", sentence) for sentence in cause.evidence]
    said.append(("what to do", cause.remedy))
    if cause.in_place:
        said.append(("in place", in_place(cause)))
    if cause.confusable_with:
        said.append(("fits as well", ", ".join(cause.confusable_with)))
    if cause.probe:
        probe = PROBES.get(cause.probe)
        said.append(("would tell", f"{cause.probe}: {probe.does}" if probe is not None else cause.probe))
    made: list[Block] = [Heading(head, 2 if first else 3), Bullets([(name, text) for name, text in said if text])]
    if cause.command:
        made.append(Code(f"{cause.command} --run {run}"))
    return made


def _alarms(picture: api.Snapshot) -> list[Block]:
    if not picture.alarms:
        return [Paragraph("None was raised.")]
    rows = [
        (
            alarm.id, _at(alarm.raised), str(alarm.raised_step), summary_line(alarm), status_text(alarm, picture.time),
            "" if alarm.acknowledged_at is None else _at(alarm.acknowledged_at),
        )
        for alarm in picture.alarms.values()
    ]  # fmt: skip
    heads = ("alarm", "raised, UTC", "after step", "what", "how it stands", "acknowledged, UTC")
    seen = [(f"{a.id} seen", sentence) for a in picture.alarms.values() for sentence in a.evidence]
    return [TableBlock(heads, rows), *([Bullets(seen)] if seen else [])]


def _figures(picture: api.Snapshot, verdict: Verdict) -> list[Block]:
    steps = sorted(picture.steps.values(), key=lambda step: step.step)
    if not steps:
        return [Paragraph("No step has closed.")]
    numbers = np.array([step.step for step in steps], dtype=np.float64)
    marks = _marks(picture, steps)
    updates, joined = _update_steps(steps), _joined(steps)
    since = verdict.causes[0].since_step if verdict.causes else None
    explained = "Lines across: switches (dashed), alarms raised (whole) and over (dotted). Ticks below: new weights."
    wrong = None
    if since is not None and verdict.step is not None:
        wrong = float(since), float(verdict.step)
        explained += f" Shaded: from step {since}, where what is wrong shows first, to the step of the verdict."
    found: list[Block] = [Paragraph(explained)]
    for title, metrics, by_engine in PLOTS:
        series = [PlotLine(label, _column([step.values.get(metric) for step in steps])) for label, metric in metrics]
        if by_engine and len(picture.engines) <= MAX_ENGINES:
            series += [
                PlotLine(engine, _column([step.engines.get(engine, {}).get(by_engine) for step in steps]))
                for engine in sorted(picture.engines)
            ]
        found.append(SvgBlock(svg(title, numbers, series, marks, updates=updates, wrong=wrong, joined=joined)))
    return found


def _joined(steps: Sequence[api.Step]) -> NDArray[np.bool_]:
    """Whether a line may lead from each step to the next [steps - 1]: not past what nobody measured, or lacks a part.

    Of the old part of a long run some steps are left out on purpose.
    """
    whole = [not (step.partial or step.lost) for step in steps]
    near = [a.level or b.level or b.step == a.step + 1 for a, b in pairwise(steps)]
    return np.array([bool(n and a and b) for n, (a, b) in zip(near, pairwise(whole), strict=True)], bool)


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _update_steps(steps: Sequence[api.Step]) -> list[float]:
    """Where the weights were new; nothing where ticks would run together."""
    found = [b.step - 0.5 for a, b in pairwise(steps) if a.policy_version != b.policy_version]
    return found if len(found) <= MAX_TICKS else []


def _marks(picture: api.Snapshot, steps: Sequence[api.Step]) -> list[PlotMark]:
    marks: dict[tuple[float, str], PlotMark] = {}
    for change in picture.changes.values():
        if change.state == "applied" and change.verb != "keep":
            step = change.step if change.step is not None else _step_at(steps, change.requested)
            label = f"{change.flag} {change.new}" if change.verb == "set" else deed(change)
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
            _at(change.requested), "-" if change.step is None else str(change.step), lines.change_text(change),
            f"{change.who}@{change.host}" if change.who else "", change.why, change.command,
        )
        for change in picture.changes.values()
    ]  # fmt: skip
    return [TableBlock(("asked, UTC", "step", "what became of it", "who", "why", "command"), rows)]


def _updates(picture: api.Snapshot) -> list[Block]:
    steps = [step for step in picture.steps.values() if step.policy_version is not None]
    said = [("trainer", f"{picture.trainer.health}, policy version {_or_dash(picture.trainer.policy_version)}")]
    if steps:
        first, last = min(steps, key=lambda s: s.step), max(steps, key=lambda s: s.step)
        text = f"{_or_dash(first.policy_version)} at step {first.step}, {_or_dash(last.policy_version)} at {last.step}"
        said.append(("policy version", text))
    for engine in picture.engines.values():
        stands = f"{engine.health}, version {_or_dash(engine.policy_version)} ({engine.version_source}), "
        said.append((engine.id, f"{stands}{_or_dash(engine.lag)} behind the trainer"))
    return [Bullets(said)]


def _events(picture: api.Snapshot) -> list[Block]:
    found = [event for event in picture.events if event.severity != "info"][-MAX_EVENTS:]
    if not found:
        return [Paragraph("None.")]
    rows = [(_at(e.time), _or_dash(e.step), e.severity, e.kind, e.engine or "", e.text) for e in found]
    return [TableBlock(("when, UTC", "step", "", "of", "engine", "what happened"), rows)]


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
    return TableBlock(("test", "of", "found", "p", "since step", "in words"), rows)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _at(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))
