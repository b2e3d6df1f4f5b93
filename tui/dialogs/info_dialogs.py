"""Pages of text in front of a view: the help, the facts of an engine, the explanation of numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from rltop.backend.api import Engine
from rltop.backend.fleet import facts as known_facts
from rltop.backend.metrics import BY_NAME as METRICS
from rltop.backend.metrics import Metric
from rltop.backend.metrics.document import explain
from rltop.backend.text.fingerprint_text import MARK
from rltop.collectors.contract.actions import ACTIONS
from rltop.collectors.contract.flags import FLAGS
from rltop.tui.model.charts import CHARTS
from rltop.tui.model.explain import ShownFigure
from rltop.tui.model.fleet_table import health_text
from rltop.tui.model.key_commands import NEEDS_CONTROL, KeyCommand
from rltop.tui.model.timeline import KINDS
from rltop.tui.widgets import theme
from rltop.tui.widgets.theme import wrap

WIDEST = 110
"""Width of a page with its border, as in the style sheet."""


def page_width(screen: int) -> int:
    """Cells of text on a page, without border, padding and scrollbar."""
    return min(WIDEST, screen * 96 // 100) - 5


class Page(ModalScreen[None]):
    """Text to read; any of several keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,f1,h,i", "dismiss", "Close"),
        Binding("j", "scroll('down')", "Down"),
        Binding("k", "scroll('up')", "Up"),
    ]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text; it scrolls."""
        with VerticalScroll(classes="dialog page"):
            yield Static(self._text)

    def action_scroll(self, direction: str) -> None:
        """Scroll one line."""
        box = self.query_one(VerticalScroll)
        (box.scroll_down if direction == "down" else box.scroll_up)(animate=False)


class GoTo(ModalScreen[int | None]):
    """Asks for a step. Returns None for empty input."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def compose(self) -> ComposeResult:
        """A label and an input field."""
        with Horizontal(classes="dialog", id="go-to"):
            yield Static("go to step ", id="go-to-name")
            yield Input(type="integer", max_length=12, compact=True, id="step")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the number."""
        self.dismiss(int(event.value) if event.value.strip("+-") else None)


class FilterInput(ModalScreen[str | None]):
    """Asks for the filter of a table. Returns None if it was left."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Close")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """A label and an input field."""
        with Horizontal(classes="dialog", id="filter"):
            yield Static("show lines with ", id="filter-name")
            yield Input(self._text, placeholder="text, regex, lag>2", max_length=200, compact=True, id="terms")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return the terms."""
        self.dismiss(event.value)


SIGNS = (
    (MARK, "a fact that differs from other engines or from the trainer; enter on the engine explains it"),
    ("↶", "reverted: by a timer, by the engine itself, or by an undo"),
    *((sign, f"a change is {state.replace('_', ' ')}") for state, (sign, _) in theme.OUTCOME.items()),
)


def help_page(commands: Sequence[KeyCommand], width: int, *, control: bool) -> Page:
    """All commands and signs in lines of ``width`` cells, from the tables that define them."""
    text = Text()
    for group in dict.fromkeys(command.group for command in commands):
        text.append(f"{group}\n", "bold")
        members = [command for command in commands if command.group == group]
        if not control and any(command.needs_control for command in members):
            text.append(f"  {NEEDS_CONTROL}\n", str(theme.WARN))
        for command in members:
            off = str(theme.FAINT) if command.needs_control and not control else ""
            meaning = f"{command.title}: {command.help}"
            _listed(text, f"{command.shown:<12}", meaning, width, off or str(theme.SERIES[0]), off)
    text.append("Charts\n", "bold")
    for chart in CHARTS:
        for series in chart.series:
            metric = METRICS[series.metric]
            unit = {"": "", "share": " [%]"}.get(metric.unit, f" [{metric.unit}]")
            _listed(text, f"{chart.id + ' ' + series.label:<12}", f"{metric.formula}{unit}", width)
    for kind in KINDS:
        _listed(text, f"{kind.sign + ' ' + kind.name:<12}", kind.help, width)
    _listed(text, f"{'┴':<12}", "a weight update, in runs that do not update at every step", width)
    _listed(text, " " * 12, "a row of single dots is a threshold; a gap in a line was not measured", width)
    for series in (series for chart in CHARTS for series in chart.series if series.noise):
        _listed(text, f"{'┈' + series.label:<12}", METRICS[series.noise].formula, width)
    _listed(text, " " * 12, "dotted lines are noise floors; none is drawn where it is not measurable", width)
    text.append("Flags and actions\n", "bold")
    for flag in FLAGS:
        labels = " ".join(theme.flag_label(flag.name, value, short=True) for value in flag.values)
        _listed(text, f"{labels:<16}", f"{flag.name}: {flag.summary}", width)
    for action in ACTIONS:
        _listed(text, f"{action.word:<16}", f"{action.subject}: {action.summary}", width)
    text.append("Signs\n", "bold")
    for sign, meaning in SIGNS:
        _listed(text, f"{sign:<16}", meaning, width)
    return Page(text)


def _listed(text: Text, label: str, meaning: str, width: int, label_style: str = "", style: str = "") -> None:
    """A label and its meaning, wrapped beside the label."""
    for i, line in enumerate(wrap(meaning, max(width - len(label) - 2, 20))):
        text.append(f"  {label if i == 0 else ' ' * len(label)}", label_style)
        text.append(f"{line}\n", style)


def numbers_page(place: str, figures: Iterable[ShownFigure], width: int) -> Page:
    """The explanation of numbers in lines of ``width`` cells; ``place`` names the plot or row they belong to."""
    text = Text()
    text.append(f"Numbers of {theme.clean(place, min(len(place), width))}\n", theme.FAINT)
    for figure in figures:
        metric = METRICS[figure.metric]
        text.append(f"{metric.name}", theme.STRONG)
        text.append(f", shown as {figure.label}\n" if figure.label else "\n", theme.FAINT)
        fact_line(text, width, "now", _now(metric, figure))
        for name, value in explain(metric):
            fact_line(text, width, name, value)
    return Page(text)


def _now(metric: Metric, figure: ShownFigure) -> str:
    if figure.value is None:
        return "not measurable" if metric.needs else "unknown"
    shown = theme.percent(figure.value) if metric.unit == "share" else theme.figure(figure.value, 4)
    unit = "" if metric.unit in ("", "share") else f" {metric.unit}"
    of = f", of {figure.of[0]:,.0f} {figure.of[1]}" if figure.of else ""
    return f"{shown}{unit}{of}"


def engine_page(engine: Engine, width: int) -> Page:
    """The facts of one engine in lines of ``width`` cells."""
    facts = {
        "engine": f"{engine.id} on {engine.host}, pid {engine.pid}, {health_text(engine.health)}",
        "vLLM": engine.vllm_version,
        "policy": f"{theme.whole(engine.policy_version)} ({engine.version_source}), lag {theme.whole(engine.lag)}",
        "requests": f"{engine.running} running, {engine.waiting} waiting, {engine.finished} finished",
        "finished requests": f"{engine.aborted} aborted, {engine.without_logprobs} without logprobs",
    }
    facts |= {
        f"{kind} records": f"{counts.sent} sent, {counts.dropped} dropped, {counts.queued} queued"
        for kind, counts in engine.counts.items()
    }
    facts |= {f"faults in {place}": str(count) for place, count in engine.faults.items()}
    known = known_facts.of_engine(engine)
    for name, state in engine.flags.items():
        if not state.switchable:
            known[name] = f"{known.get(name, theme.UNKNOWN)}, fixed: {state.reason}"
    text = Text()
    line = partial(fact_line, text, width)
    if engine.differs:
        text.append("Mismatches\n", "bold")
        for name, mismatch in engine.differs.items():
            value = known_facts.of_engine(engine).get(name, theme.UNKNOWN)
            line(name, f"{value}: {mismatch}{known_facts.because(name)}", mark=True)
    for heading, entries in (("Now", facts), ("Read from the live objects", known)):
        text.append(f"{heading}\n", "bold")
        for name, value in entries.items():
            line(name, value, mark=entries is known and name in engine.differs)
    if filled := known_facts.defaults(engine.fingerprint):
        text.append("Defaults of sampling parameters that a request does not set\n", "bold")
        for name, value in filled.items():
            line(name, value)
    return Page(text)


def fact_line(text: Text, width: int, name: str, value: str, *, mark: bool = False) -> None:
    """A name and its value on a page; a long value is wrapped."""
    for i, part in enumerate(wrap(theme.clean(value, len(value)), max(width - 27, 20))):
        text.append(f"{MARK} " if mark and not i else "  ", str(theme.WARN))
        text.append(f"{theme.clean('' if i else name, 24)} ", str(theme.FAINT))
        text.append(f"{part}\n")
