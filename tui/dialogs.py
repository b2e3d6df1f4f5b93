"""What stands in front of a view for a moment: the question before a switch, the help, the facts of an engine."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from rltop.backend.metrics import BY_NAME as METRICS
from rltop.backend.view import Engine
from rltop.collectors.flags import FLAGS
from rltop.tui import look
from rltop.tui.commands import COMMANDS, NEEDS_CONTROL
from rltop.tui.control import Target, wrap
from rltop.tui.overview import CHARTS

INNER = 72
"""Cells of text in the question; narrower screens wrap it once more."""


class ConfirmSwitch(ModalScreen[str | None]):
    """Asks before a flag is switched; answers with the wanted value, or None. The focus is on No."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes"),
        Binding("n,escape,q", "no", "No"),
        Binding("left,right,tab,shift+tab", "other", "Other button"),
        Binding("v", "value", "Other value"),
    ]

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._choice = 0

    def compose(self) -> ComposeResult:
        """The question, its reasons, two buttons."""
        with Vertical(classes="dialog"):
            yield Static(self._question(), id="question")
            with Horizontal(id="buttons"):
                yield Button("n  No", id="no", compact=True)
                yield Button("y  Yes, switch", id="yes", compact=True)

    def on_mount(self) -> None:
        """Nothing happens by mistake."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A button was chosen."""
        self.dismiss(self._wanted if event.button.id == "yes" else None)

    def action_yes(self) -> None:
        """Switch."""
        self.dismiss(self._wanted)

    def action_no(self) -> None:
        """Leave it."""
        self.dismiss(None)

    def action_other(self) -> None:
        """To the other button."""
        self.query_one("#no" if self.query_one("#yes").has_focus else "#yes").focus()

    def action_value(self) -> None:
        """Ask for the next value."""
        self._choice = (self._choice + 1) % len(self._target.choices)
        self.query_one("#question", Static).update(self._question())

    @property
    def _wanted(self) -> str:
        return self._target.choices[self._choice]

    def _question(self) -> Text:
        target = self._target
        many = f"the fleet, {len(target.engines)} live: {', '.join(target.engines)}"
        text = Text.assemble(
            ("Switch ", ""), (target.flag.name, "bold"), (f" from {target.value or 'unknown'} to ", ""),
            (self._wanted, "bold reverse"), (" ?\n\n", ""),
        )  # fmt: skip
        facts = [
            ("where", f"engine {target.engine}" if target.engine else many),
            (
                "in flight",
                f"{target.in_flight} requests when last heard of; all are kept, the switch waits for a step boundary",
            ),
            ("expect", target.flag.effect),
            ("undo", "switch it back; every change is on the charts and in the log"),
        ]
        facts += [("refuses", said) for said in target.refusing]
        for name, said in facts:
            for i, line in enumerate(wrap(look.clean(said, len(said)), INNER - 11)):
                text.append(f"{'' if i else name:>9}  ", str(look.FAINT))
                text.append(f"{line}\n")
        if len(target.choices) > 1:
            text.append(f"\n{'v':>9}  another value ({', '.join(target.choices)})\n")
        return text


class Page(ModalScreen[None]):
    """Text to read; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,f1,h", "dismiss", "Close"),
        Binding("j", "scroll('down')", "Down"),
        Binding("k", "scroll('up')", "Up"),
    ]

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """The text, scrolling where it is long."""
        with VerticalScroll(classes="dialog page"):
            yield Static(self._text)

    def action_scroll(self, way: str) -> None:
        """One line up or down."""
        box = self.query_one(VerticalScroll)
        (box.scroll_down if way == "down" else box.scroll_up)(animate=False)


def help_page(*, control: bool) -> Page:
    """All commands and signs, from the tables that the dashboard itself is made from."""
    text = Text()
    for group in dict.fromkeys(command.group for command in COMMANDS):
        text.append(f"{group}\n", "bold")
        for command in (command for command in COMMANDS if command.group == group):
            off = command.needs_control and not control
            text.append(f"  {command.shown:<12}", str(look.FAINT if off else look.SERIES[0]))
            text.append(f"{command.title}: {command.help}\n", str(look.FAINT) if off else "")
            if off:
                text.append(f"  {'':<12}{NEEDS_CONTROL}\n", str(look.WARN))
    text.append("Charts\n", "bold")
    for chart in CHARTS:
        for series in chart.series:
            metric = METRICS[series.metric]
            unit = {"": "", "share": " [%]"}.get(metric.unit, f" [{metric.unit}]")
            text.append(f"  {chart.id + ' ' + series.label:<12}{metric.formula}{unit}\n")
    text.append("  ▲pc-        a switch: its first letters, + on, - off; a dotted row is a threshold\n")
    text.append("Flags\n", "bold")
    for flag in FLAGS:
        labels = " ".join(look.flag_label(flag.name, value, short=True) for value in flag.values)
        text.append(f"  {labels:<16}")
        text.append(f"{flag.name}: {flag.summary}\n")
    return Page(text)


def engine_page(engine: Engine) -> Page:
    """What is known of one engine beyond its line in the table."""
    facts = {
        "engine": f"{engine.id} on {engine.host}, pid {engine.pid}, {engine.health}",
        "vLLM": engine.vllm_version,
        "policy": f"{look.whole(engine.policy_version)} ({engine.version_source}), lag {look.whole(engine.lag)}",
        "requests": f"{engine.running} running, {engine.waiting} waiting, {engine.finished} finished",
        "of those finished": f"{engine.aborted} aborted, {engine.without_logprobs} without logprobs",
    }
    facts |= {
        name: f"{state.value or look.UNKNOWN}" + ("" if state.switchable else f", fixed: {state.reason}")
        for name, state in engine.flags.items()
    }
    facts |= {
        f"{kind} records": f"{counts.sent} sent, {counts.dropped} dropped, {counts.queued} queued"
        for kind, counts in engine.counts.items()
    }
    facts |= {f"faults in {place}": str(count) for place, count in engine.faults.items()}
    text = Text()
    for heading, entries in (("Now", facts), ("Read from the live objects", engine.fingerprint)):
        text.append(f"{heading}\n", "bold")
        for name, value in entries.items():
            text.append(f"  {look.clean(name, 24)} ", str(look.FAINT))
            text.append(f"{look.clean(value, len(value))}\n")
    return Page(text)
