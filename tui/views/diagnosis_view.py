"""The Diagnosis view: verdict, causes with evidence and fix, and the findings of every check."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TypeVar

from rich.text import Text
from textual.app import ComposeResult

from rltop.backend.api import Answer, AskDiagnosis, Question, Snapshot
from rltop.backend.api.alarm import Alarm
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict, family, shares
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as CHECKS
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES
from rltop.backend.text.verdict_text import MAX_SHARES, where
from rltop.tui.dialogs.info_dialogs import Page, page_width
from rltop.tui.dialogs.notifications import SILENCE_S, probe_of, probe_question
from rltop.tui.model.key_commands import KeyCommand
from rltop.tui.model.state import UnavailableError
from rltop.tui.views.remedy import APPLIED, REQUESTED, LabelledLines, alarm_status, fix_of, fix_status
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Column, Table
from rltop.tui.widgets.theme import wrap

T = TypeVar("T")

VERDICTS = {
    HEALTHY: ("✔ HEALTHY", theme.GOOD),
    FAULT: ("✖ FAULT", theme.BAD),
    UNDECIDED: ("? CAN'T TELL YET", theme.WARN),
}
"""Sign, word and style of a verdict."""

MOST_CAUSES = 5
"""Lines of the table of causes at most; more scroll."""

MIN_FINDING_LINES = 6
"""Lines of the table of findings at least."""

URGENT = ("alarm", APPLIED, REQUESTED, "fix", "command")
"""Labels whose text is printed bold."""


def _since(step: int | None) -> theme.Part:
    return theme.whole(step), theme.PLAIN


CAUSES: tuple[Column[Cause], ...] = (
    Column("sure", 4, lambda c: (f"{min(100 * c.confidence, 99):.0f}%", theme.STRONG)),
    Column("code", 4, lambda c: (c.code, theme.PLAIN), right=False),
    Column("cause", 24, lambda c: (c.id, theme.STRONG), right=False),
    Column("layer", 14, lambda c: (c.layer, theme.PLAIN), right=False),
    Column("since", 5, lambda c: _since(c.since_step)),
    Column("on", 11, lambda c: (where(c), theme.PLAIN), right=False),
    Column("description", 40, lambda c: (c.title, theme.FAINT), rank=1, right=False),
)


def _outcome(finding: Finding) -> theme.Part:
    if finding.outcome == UNKNOWN:
        return "? unknown", theme.FAINT
    check = CHECKS.get(finding.test)
    if check is not None and check.alarms(finding.outcome):
        return f"▲ {finding.outcome}", theme.WARN
    return f"· {finding.outcome}", theme.PLAIN


def _size(finding: Finding) -> theme.Part:
    return theme.figure(finding.value), theme.PLAIN


FINDINGS: tuple[Column[Finding], ...] = (
    Column("check", 17, lambda f: (f.test, theme.STRONG), sort=lambda f: f.test, right=False),
    Column("outcome", 14, _outcome, right=False),
    Column("on", 5, lambda f: (f.engine or "run", theme.PLAIN), sort=lambda f: f.engine or "", right=False),
    Column("value", 7, _size, rank=2),
    Column("since", 5, lambda f: _since(f.since_step), rank=3),
    Column("p", 7, lambda f: (theme.figure(f.p, 1) if f.p < 1 else "", theme.FAINT), rank=4),
    Column("title", 28, lambda f: (CHECKS[f.test].title if f.test in CHECKS else "", theme.PLAIN), rank=5, right=False),
    Column("text", 20, lambda f: (f.text, theme.FAINT), right=False),
)


def cause_lines(cause: Cause, status: LabelledLines, run: str) -> LabelledLines:
    """The explanation of a cause, the most urgent first; ``status`` is that of its fix (``remedy.fix_status``)."""
    fix = [("fix", cause.remedy)]
    lines = [*status, *fix] if status and status[0][0] in (APPLIED, REQUESTED) else [*fix, *status]
    evidence = [("evidence", sentence) for sentence in cause.evidence]
    lines += evidence[:2]
    if cause.confusable_with:
        lines.append(("alternatives", f"{', '.join(cause.confusable_with)}: the evidence fits them too"))
    if cause.probe:
        probe = PROBES.get(cause.probe)
        command = f" (`{probe.runs} --run {run}`, X)" if probe is not None and probe.runs else ""
        lines.append(("probe", f"{cause.probe}{command}" + (f": {probe.does}" if probe is not None else "")))
    return [(name, text) for name, text in (*lines, *evidence[2:], ("meaning", cause.what)) if text]


class DiagnosisView(View):
    """The view. It queries the hub when a step closes or the cursor moves to another step."""

    first_pane = "#causes"
    keys = (
        KeyCommand("fix", ("r",), "r", "Fix", "apply the fix of the selected cause; asks first", "Diagnosis",
                   needs_control=True, footer="fix"),
        KeyCommand("probe", ("X",), "X", "Probe", "start the probe that confirms the selected cause; asks first",
                   "Diagnosis", needs_control=True, footer="probe"),
        KeyCommand("acknowledge", ("a",), "a", "Acknowledge", "acknowledge the open alarm and stop notifying about it",
                   "Diagnosis", footer="ack"),
        KeyCommand("silence", ("A",), "A", "Silence", "stop notifying about the open alarm for 30 minutes",
                   "Diagnosis"),
    )  # fmt: skip

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._snapshot: Snapshot | None = None
        self._verdict: Verdict | None = None
        self._error = ""
        self._requested: object = None
        self._asked = ""
        self._probe_result: ProbeResult | None = None
        self._room = 1

    def compose(self) -> ComposeResult:
        """The verdict, the causes, the selected one explained, the findings."""
        yield LineWidget(id="verdict")
        yield Table(CAUSES, lambda cause: cause.id, empty="", id="causes", log=True, opens=True)
        yield LineWidget(id="explanation")
        yield Table(
            FINDINGS,
            lambda f: f"{f.test}@{f.engine or ''}",
            empty="no checks yet",
            id="findings",
            log=True,
            opens=True,
        )

    # --- questions ---------------------------------------------------------------------------------------------------

    def questions(self, snapshot: Snapshot) -> list[Question]:
        """The diagnosis of the step under the cursor; nothing if it was requested before."""
        last, cursor = max(snapshot.steps, default=None), self.state.viewport.cursor
        step = last
        if cursor is not None:
            step = max((number for number in snapshot.steps if number <= cursor), default=last)
        request = (snapshot.epoch, step)
        if step is None or request == self._requested:
            return []
        self._requested = request
        latest = step == last and self.state.frozen is None
        question = AskDiagnosis(uuid.uuid4().hex, None if latest else step)
        self._asked = question.id
        return [question]

    def take_answers(self, answers: dict[str, Answer]) -> bool:
        """As ``View``."""
        answer = answers.pop(self._asked, None) if self._asked else None
        if answer is None:
            return False
        self._asked = ""
        self._error, self._verdict = answer.error or "", answer.diagnosis
        return True

    @property
    def cause(self) -> Cause | None:
        """The selected cause."""
        table: Table[Cause] = self.query_one("#causes", Table)
        return table.selected

    # --- commands ---------------------------------------------------------------------------------------------------

    def commands(self) -> Mapping[str, Callable[[], object]]:
        """As ``View``."""
        requests = self.dashboard.requests
        return {
            "fix": self._apply_fix,
            "probe": self._start_probe,
            "acknowledge": lambda: requests.acknowledge(self._open_alarm().id),
            "silence": lambda: requests.silence(self._open_alarm().id, SILENCE_S),
        }

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter: the whole text of a cause or finding."""
        width = page_width(self.app.size.width)
        if isinstance(event.item, Finding):
            self.app.push_screen(Page(finding_text(event.item, width)))
        elif isinstance(event.item, Cause):
            self.app.push_screen(Page(cause_text(event.item, self._explanation(event.item), width)))

    def _open_alarm(self) -> Alarm:
        alarm = self.state.live.alarm if self.state.live is not None else None
        if alarm is None:
            raise UnavailableError("no alarm is open")
        return alarm

    def _apply_fix(self) -> None:
        """Open the dialog of the switch that fixes the selected cause."""
        target, request = self._for_cause(fix_of)
        self.confirm_switch(target, request)

    def _start_probe(self) -> None:
        """Open the dialog of the probe that confirms the selected cause."""
        probe = self._for_cause(probe_of)

        def answered(reason: str | None) -> None:
            if reason is not None:
                self.dashboard.requests.probe(probe, reason)

        if self.state.live is not None:
            self.app.push_screen(probe_question(probe, self.state.live), answered)

    def _for_cause(self, find: Callable[[Cause, Snapshot], T]) -> T:
        """``find`` for the selected cause and the run now; its ``ValueError`` is shown as the reason why not."""
        cause, live = self.cause, self.state.live
        if not self.display or cause is None or live is None:
            raise UnavailableError("select a cause in the Diagnosis view")
        try:
            return find(cause, live)
        except ValueError as error:
            raise UnavailableError(str(error), seconds=8) from error

    def _explanation(self, cause: Cause) -> LabelledLines:
        if self._snapshot is None or self._verdict is None:
            return []
        status = fix_status(cause, self._snapshot, self._verdict, control=self.dashboard.control)
        return cause_lines(cause, status, self._verdict.run)

    # --- painting ---------------------------------------------------------------------------------------------------

    def paint(self, snapshot: Snapshot) -> None:
        """Draw the latest answer."""
        self._snapshot = snapshot
        self._probe_result = next(reversed(snapshot.probes.values()), None)
        self._draw()

    def _draw(self) -> None:
        verdict = self._verdict
        causes = verdict.causes if verdict is not None else []
        self._make_room(causes)
        self.query_one("#causes", Table).set_items(causes)
        self.query_one("#findings", Table).set_items(verdict.findings if verdict is not None else [])
        line = self.query_one("#verdict", LineWidget)
        line.show([theme.row(parts, line.size.width) for parts in (self._headline(verdict), self._scope(verdict))])
        self.cursor_moved()

    def cursor_moved(self) -> None:
        """Explain the selected cause; without one, show missing evidence and notes."""
        explanation = self.query_one("#explanation", LineWidget)
        lines = self._lines(self.cause)
        if len(lines) > self._room:
            lines[self._room - 1 :] = [[("  … enter on the cause shows all", theme.FAINT)]]
        explanation.show([theme.row(parts, explanation.size.width) for parts in lines])

    def on_resize(self) -> None:
        """Fit the lines to the new size."""
        self._make_room(self._verdict.causes if self._verdict is not None else [])
        self.call_after_refresh(self._draw)

    def _lines(self, cause: Cause | None) -> list[list[theme.Part]]:
        """The explanation of ``cause`` as lines of parts, the labels in a column."""
        verdict = self._verdict
        if verdict is None:
            return []
        labelled = self._explanation(cause) if cause is not None else []
        if self._snapshot is not None:
            labelled += alarm_status(next(reversed(self._snapshot.alarms.values()), None), verdict)
        if (result := self._probe_result) is not None:
            when = "" if result.step is None else f"after step {result.step}: "
            index = next((i for i, (name, _) in enumerate(labelled) if name == "probe"), len(labelled) - 1) + 1
            labelled.insert(index, ("result", f"{when}{result.probe} {result.verdict}: {result.text}"))
        labelled += [("missing evidence", need) for need in verdict.needs]
        labelled += [("note", note) for note in verdict.notes]
        column = max((len(name) for name, _ in labelled), default=0)
        width = max(self.size.width - column - 2, 20)
        return [
            [(f"{'' if i else name:>{column}}  ", theme.FAINT), (line, theme.STRONG if name in URGENT else theme.PLAIN)]
            for name, text in labelled
            for i, line in enumerate(wrap(theme.clean(text, len(text)), width))
        ]

    def _headline(self, verdict: Verdict | None) -> list[theme.Part]:
        if verdict is None:
            waiting = "waiting for the first training step" if self._requested is None else "waiting for the hub"
            return [(self._error or waiting, theme.WARN if self._error else theme.FAINT)]
        word, style = VERDICTS.get(verdict.verdict, (verdict.verdict, theme.WARN))
        parts: list[theme.Part] = [(f" {word} ", style + theme.ALARM), ("  ", theme.PLAIN)]
        if not verdict.causes:
            return parts
        best = verdict.causes[0]
        if verdict.verdict != FAULT:
            named = verdict.causes[:MAX_SHARES]
            return [*parts, (f"{family(named)}: ", theme.PLAIN), (shares(named), theme.STRONG)]
        return [*parts, (f"{best.layer}: ", theme.PLAIN), (f"{best.code} {best.title}", theme.STRONG)]

    def _scope(self, verdict: Verdict | None) -> list[theme.Part]:
        if verdict is None or verdict.step is None:
            return []
        parts: list[theme.Part] = [(f" as of step {verdict.step}", theme.STRONG)]
        best = verdict.causes[0] if verdict.causes else None
        if best is not None:
            since = f"since step {best.since_step}, " if best.since_step is not None else ""
            parts.append((f"   {since}on {where(best)}", theme.PLAIN))
        counted = f"   of {verdict.steps} steps, {verdict.sequences} sequences, {theme.figure(verdict.tokens)} tokens"
        return [*parts, (counted, theme.FAINT)]

    def _make_room(self, causes: list[Cause]) -> None:
        """Size the explanation by the longest one, leaving room for some findings."""
        rows = min(len(causes), MOST_CAUSES) + 1 if causes else 0
        needed = max([len(self._lines(cause)) for cause in causes] or [len(self._lines(None))])
        self._room = max(1, min(needed, self.size.height - 2 - rows - MIN_FINDING_LINES))
        set_height(self.query_one("#causes"), rows)
        set_height(self.query_one("#explanation"), self._room)


def finding_text(finding: Finding, width: int) -> Text:
    """A finding and its check, in lines of ``width`` cells."""
    text = Text()
    check = CHECKS.get(finding.test)
    title = check.title if check is not None else ""
    text.append(f"{finding.test} {title}: {finding.outcome}\n", "bold")
    scope = "the whole run" if finding.engine is None else f"engine {finding.engine}"
    labelled = [("outcome", finding.text), ("on", scope)]
    if finding.value is not None:
        interval = ""
        if finding.low is not None and finding.high is not None:
            interval = f"  (95 %: {finding.low:.4g} to {finding.high:.4g})"
        labelled.append(("value", f"{finding.value:.4g} {finding.unit}{interval}"))
    if finding.p < 1:
        labelled.append(("p", f"{finding.p:.1g}: probability of this outcome in a healthy run"))
    if finding.since_step is not None:
        labelled.append(("since", f"step {finding.since_step}"))
    if finding.sequences:
        labelled.append(("data", f"{finding.sequences} sequences, {finding.tokens} tokens"))
    if finding.more_sequences is not None:
        labelled.append(("missing evidence", f"about {finding.more_sequences} more sequences"))
    if check is not None:
        meaning = check.meaning.get(finding.outcome, "as in a healthy run")
        labelled += [("meaning", meaning), ("statistic", check.formula)]
        labelled += [("computed on", check.on), ("error rate", check.rate), ("source", check.source)]
    return _append_labelled(text, labelled, width)


def cause_text(cause: Cause, explanation: LabelledLines, width: int) -> Text:
    """A cause and its explanation, in lines of ``width`` cells."""
    text = Text()
    text.append(f"{cause.code} {cause.title}\n", "bold")
    since = f" since step {cause.since_step}" if cause.since_step is not None else ""
    head = [("id", cause.id), ("layer", cause.layer), ("on", f"{where(cause)}{since}")]
    return _append_labelled(text, [*head, *explanation], width)


def _append_labelled(text: Text, labelled: LabelledLines, width: int) -> Text:
    column = max(len(name) for name, _ in labelled)
    for name, value in labelled:
        for i, line in enumerate(wrap(theme.clean(value, len(value)), max(width - column - 2, 20))):
            text.append(f"{'' if i else name:>{column}}  ", str(theme.FAINT))
            text.append(f"{line}\n")
    text.rstrip()
    return text
