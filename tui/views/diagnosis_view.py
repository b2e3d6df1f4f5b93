"""The Diagnosis view: what is wrong, why that is thought, what to do, and what every test found."""

from __future__ import annotations

import uuid

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical

from rltop.backend.api import Answer, AskDiagnosis, Question, Snapshot
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME as TESTS
from rltop.backend.diagnosis.catalogue.all_checks import UNKNOWN
from rltop.backend.diagnosis.causes.confirming_probes import BY_NAME as PROBES
from rltop.backend.text.verdict_text import where
from rltop.tui.dialogs.info_dialogs import page_width
from rltop.tui.model.viewport import Viewport
from rltop.tui.views.remedy import Sayings, alarm_sayings, standing
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Column, Table
from rltop.tui.widgets.theme import wrap

VERDICTS = {
    HEALTHY: ("✔ HEALTHY", theme.GOOD),
    FAULT: ("✖ FAULT", theme.BAD),
    UNDECIDED: ("? CAN'T TELL YET", theme.WARN),
}
"""Sign, word and style of a verdict."""

MOST_CAUSES = 5
"""Lines of the table of causes at most; more scroll."""

FINDING_LINES = 6
"""Lines of the table of findings at least."""


PRESSING = ("alarm", "given", "do", "live")
"""What is to be read first."""


def _since(step: int | None) -> theme.Part:
    return theme.whole(step), theme.PLAIN


CAUSES: tuple[Column[Cause], ...] = (
    Column("sure", 4, lambda c: (f"{min(100 * c.confidence, 99):.0f}%", theme.STRONG)),
    Column("code", 4, lambda c: (c.code, theme.PLAIN), right=False),
    Column("cause", 24, lambda c: (c.id, theme.STRONG), right=False),
    Column("layer", 14, lambda c: (c.layer, theme.PLAIN), right=False),
    Column("since", 5, lambda c: _since(c.since_step)),
    Column("on", 11, lambda c: (where(c), theme.PLAIN), right=False),
    Column("what is wrong", 40, lambda c: (c.title, theme.FAINT), rank=1, right=False),
)


def _outcome(finding: Finding) -> theme.Part:
    if finding.outcome == UNKNOWN:
        return "? unknown", theme.FAINT
    test = TESTS.get(finding.test)
    if test is not None and test.alarms(finding.outcome):
        return f"▲ {finding.outcome}", theme.WARN
    return f"· {finding.outcome}", theme.PLAIN


def _size(finding: Finding) -> theme.Part:
    return theme.figure(finding.value), theme.PLAIN


FINDINGS: tuple[Column[Finding], ...] = (
    Column("check", 17, lambda f: (f.test, theme.STRONG), sort=lambda f: f.test, right=False),
    Column("found", 14, _outcome, right=False),
    Column("on", 5, lambda f: (f.engine or "run", theme.PLAIN), sort=lambda f: f.engine or "", right=False),
    Column("value", 7, _size, rank=2),
    Column("since", 5, lambda f: _since(f.since_step), rank=3),
    Column("p", 7, lambda f: (theme.figure(f.p, 1) if f.p < 1 else "", theme.FAINT), rank=4),
    Column(
        "asked of", 28, lambda f: (TESTS[f.test].title if f.test in TESTS else "", theme.PLAIN), rank=5, right=False
    ),
    Column("in words; enter shows all", 20, lambda f: (f.text, theme.FAINT), right=False),
)


def explained(cause: Cause, order: Sayings, run: str) -> Sayings:
    """What is to be said of a cause, and of its order, each with a word for what it is, the most urgent first."""
    do = [("do", cause.remedy)]
    said = [*order, *do] if order and order[0][0] == "given" else [*do, *order]
    seen = [("seen", sentence) for sentence in cause.evidence]
    said += seen[:2]
    if cause.confusable_with:
        said.append(("or", f"{', '.join(cause.confusable_with)}: can't be told apart by what was seen"))
    if cause.probe:
        probe = PROBES.get(cause.probe)
        typed = f" (`{probe.runs} --run {run}`, X)" if probe is not None and probe.runs else ""
        said.append(("probe", f"{cause.probe}{typed}" + (f": {probe.does}" if probe is not None else "")))
    return [(name, text) for name, text in (*said, *seen[2:], ("what", cause.what)) if text]


class DiagnosisView(Vertical):
    """The view. It asks the hub when a step closes or another step is looked at."""

    def __init__(self, *, allowed: bool, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._allowed = allowed
        self._view: Snapshot | None = None
        self._verdict: Verdict | None = None
        self._error = ""
        self._wanted: object = None
        self._asked = ""
        self._probed: ProbeResult | None = None
        self._room = 1

    def compose(self) -> ComposeResult:
        """Two lines, the causes, one of them explained, the findings."""
        yield LineWidget(id="verdict")
        yield Table(CAUSES, lambda cause: cause.id, empty="", id="causes", log=True, opens=True)
        yield LineWidget(id="because")
        yield Table(
            FINDINGS,
            lambda f: f"{f.test}@{f.engine or ''}",
            empty="no test was made yet",
            id="findings",
            log=True,
            opens=True,
        )

    # --- asking -----------------------------------------------------------------------------------------------------

    def questions(self, view: Snapshot, sight: Viewport, *, frozen: bool = False) -> list[Question]:
        """What to ask the hub now: nothing, unless another step is looked at than before."""
        last = max(view.steps, default=None)
        step = last
        if sight.cursor is not None:
            step = max((number for number in view.steps if number <= sight.cursor), default=last)
        wanted = (view.epoch, step)
        if step is None or wanted == self._wanted:
            return []
        self._wanted = wanted
        of_now = step == last and not frozen
        question = AskDiagnosis(uuid.uuid4().hex, None if of_now else step)
        self._asked = question.id
        return [question]

    def take(self, answers: dict[str, Answer]) -> bool:
        """Take the answer if it has come. Whether there is something new to show."""
        answer = answers.pop(self._asked, None) if self._asked else None
        if answer is None:
            return False
        self._asked = ""
        self._error, self._verdict = answer.error or "", answer.diagnosis
        return True

    @property
    def cause(self) -> Cause | None:
        """The cause under the cursor."""
        table: Table[Cause] = self.query_one("#causes", Table)
        return table.selected

    def choose(self, item: object) -> Text | None:
        """Enter on a line: all that is to be said of it."""
        width = page_width(self.app.size.width)
        if isinstance(item, Finding):
            return finding_text(item, width)
        if isinstance(item, Cause):
            return cause_text(item, self._explained(item), width)
        return None

    def _explained(self, cause: Cause) -> Sayings:
        if self._view is None or self._verdict is None:
            return []
        order = standing(cause, self._view, self._verdict, allowed=self._allowed)
        return explained(cause, order, self._verdict.run)

    # --- showing ----------------------------------------------------------------------------------------------------

    def paint(self, view: Snapshot) -> None:
        """Show what was answered last."""
        self._view = view
        self._probed = next(reversed(view.probes.values()), None)
        self._show()

    def _show(self) -> None:
        verdict = self._verdict
        causes = verdict.causes if verdict is not None else []
        self._make_room(causes)
        self.query_one("#causes", Table).set_items(causes)
        self.query_one("#findings", Table).set_items(verdict.findings if verdict is not None else [])
        line = self.query_one("#verdict", LineWidget)
        line.show([theme.row(parts, line.size.width) for parts in (self._headline(verdict), self._scope(verdict))])
        self.explain()

    def explain(self) -> None:
        """Say what the cause under the cursor is; of a run without one, what is needed or was noted."""
        about = self.query_one("#because", LineWidget)
        lines = self._lines(self.cause)
        if len(lines) > self._room:
            lines[self._room - 1 :] = [[(" " * 8, theme.PLAIN), ("… enter on the cause shows all", theme.FAINT)]]
        about.show([theme.row(parts, about.size.width) for parts in lines])

    def on_resize(self) -> None:
        """Other lines fit now."""
        self._make_room(self._verdict.causes if self._verdict is not None else [])
        self.call_after_refresh(self._show)

    def _lines(self, cause: Cause | None) -> list[list[theme.Part]]:
        verdict, width = self._verdict, max(self.size.width - 8, 20)
        if verdict is None:
            return []
        said = self._explained(cause) if cause is not None else []
        if self._view is not None:
            said += alarm_sayings(next(reversed(self._view.alarms.values()), None), verdict)
        if (found := self._probed) is not None:
            when = "" if found.step is None else f"after step {found.step}: "
            at = next((place for place, (name, _) in enumerate(said) if name == "probe"), len(said) - 1) + 1
            said.insert(at, ("found", f"{when}{found.probe} {found.verdict}: {found.text}"))
        said += [*(("needs", need) for need in verdict.needs), *(("noted", note) for note in verdict.notes)]
        return [
            [(f"{'' if i else name:>6}  ", theme.FAINT), (line, theme.STRONG if name in PRESSING else theme.PLAIN)]
            for name, text in said
            for i, line in enumerate(wrap(theme.clean(text, len(text)), width))
        ]

    def _headline(self, verdict: Verdict | None) -> list[theme.Part]:
        if verdict is None:
            waiting = "no step has closed yet" if self._wanted is None else "waiting for the hub"
            return [(self._error or waiting, theme.WARN if self._error else theme.FAINT)]
        word, style = VERDICTS.get(verdict.verdict, (verdict.verdict, theme.WARN))
        parts: list[theme.Part] = [(f" {word} ", style + theme.ALARM), ("  ", theme.PLAIN)]
        if not verdict.causes:
            return parts
        best = verdict.causes[0]
        known = (f"{best.layer}: ", theme.PLAIN), (f"{best.code} {best.title}", theme.STRONG)
        return [*parts, *known] if verdict.verdict == FAULT else [*parts, ("perhaps ", theme.PLAIN), *known]

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
        """What any of the causes needs to be explained, and some findings at least."""
        rows = min(len(causes), MOST_CAUSES) + 1 if causes else 0
        needed = max([len(self._lines(cause)) for cause in causes] or [len(self._lines(None))])
        self._room = max(1, min(needed, self.size.height - 2 - rows - FINDING_LINES))
        set_height(self.query_one("#causes"), rows)
        set_height(self.query_one("#because"), self._room)


def finding_text(finding: Finding, width: int) -> Text:
    """A finding, and what the test is, to be read in lines of ``width`` cells."""
    text = Text()
    test = TESTS.get(finding.test)
    title = test.title if test is not None else ""
    text.append(f"{finding.test} {title}: {finding.outcome}\n", "bold")
    of = "of the run" if finding.engine is None else f"of engine {finding.engine}"
    shown = [("found", finding.text), ("on", of)]
    if finding.value is not None:
        interval = ""
        if finding.low is not None and finding.high is not None:
            interval = f"  (95 %: {finding.low:.4g} to {finding.high:.4g})"
        shown.append(("value", f"{finding.value:.4g} {finding.unit}{interval}"))
    if finding.p < 1:
        shown.append(("p", f"{finding.p:.1g}: how often a healthy run would show this"))
    if finding.since_step is not None:
        shown.append(("since", f"step {finding.since_step}"))
    if finding.sequences:
        shown.append(("made on", f"{finding.sequences} sequences, {finding.tokens} tokens"))
    if finding.more_sequences is not None:
        shown.append(("needs", f"about {finding.more_sequences} more sequences"))
    if test is not None:
        shown += [("means", test.meaning.get(finding.outcome, "as in a healthy run")), ("statistic", test.formula)]
        shown += [("computed on", test.on), ("error rate", test.rate), ("source", test.source)]
    return _listed(text, shown, width)


def cause_text(cause: Cause, said: Sayings, width: int) -> Text:
    """Everything of a cause, likewise."""
    text = Text()
    text.append(f"{cause.code} {cause.title}\n", "bold")
    since = f" since step {cause.since_step}" if cause.since_step is not None else ""
    head = [("id", cause.id), ("lies in", cause.layer), ("on", f"{where(cause)}{since}")]
    return _listed(text, [*head, *said], width)


def _listed(text: Text, shown: list[tuple[str, str]], width: int) -> Text:
    for name, said in shown:
        for i, line in enumerate(wrap(theme.clean(said, len(said)), max(width - 13, 20))):
            text.append(f"{'' if i else name:>11}  ", str(theme.FAINT))
            text.append(f"{line}\n")
    text.rstrip()
    return text
