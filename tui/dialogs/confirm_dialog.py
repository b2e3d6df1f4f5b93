"""Confirmation dialogs. The focus is on No, and only y or the Yes button confirms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from rltop.tui.widgets import theme
from rltop.tui.widgets.theme import wrap

INNER = 71
"""Cells of text in a dialog, without the scrollbar; narrower screens wrap again."""

OTHER_LINES = 13
"""Lines of the screen that a dialog needs besides its facts."""

MAX_REASON = 200
"""Characters of the reason that is stored with a command."""

T = TypeVar("T")

Facts = Sequence[tuple[str, str]]
"""Labels with their text."""


class Question(ModalScreen[T | None], Generic[T]):
    """A headline, options, a reason, facts to consider, and two buttons. Returns None for No."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes"),
        Binding("n,escape,q", "no", "No"),
        Binding("left,right,tab,shift+tab", "other", "Other button"),
        Binding("r", "reason", "Reason"),
        Binding("j,down", "scroll(1)", "Down"),
        Binding("k,up", "scroll(-1)", "Up"),
    ]

    reason = ""
    """Default of the reason."""

    def compose(self) -> ComposeResult:
        """Headline and options, reason, facts, buttons."""
        with Vertical(classes="dialog"):
            yield Static(self.head(), id="question")
            with Horizontal(id="reason"):
                yield Static(f"{'r':>4}  reason ", id="reason-name")
                placeholder = "kept with the command; may stay empty"
                yield Input(self.reason, placeholder, max_length=MAX_REASON, compact=True, id="why")
            with VerticalScroll(id="facts", can_focus=False):
                yield Static(self.facts_text(), id="facts-text")
            with Horizontal(id="buttons"):
                yield Button("n  No", id="no", compact=True)
                yield Button(self._yes(), id="yes", compact=True)

    def verb(self) -> str:
        """The verb of the Yes button."""
        raise NotImplementedError

    def _yes(self) -> str:
        return f"y  Yes, {self.verb()}"

    def head(self) -> Text:
        """Headline and options."""
        raise NotImplementedError

    def facts(self) -> Facts:
        """The facts to consider."""
        raise NotImplementedError

    def answer(self) -> T:
        """The result of Yes with the current options."""
        raise NotImplementedError

    @property
    def typed_reason(self) -> str:
        """The reason as typed."""
        return " ".join(self.query_one("#why", Input).value.split())

    def on_mount(self) -> None:
        """Focus No, so that no accidental key confirms."""
        self.query_one("#no").focus()
        self.on_resize()

    def on_resize(self) -> None:
        """Give the facts the remaining lines; they scroll."""
        self.query_one("#facts").styles.max_height = max(2, self.app.size.height - OTHER_LINES)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the answer of the button."""
        self.dismiss(self.answer() if event.button.id == "yes" else None)

    def on_input_submitted(self) -> None:
        """Move the focus from the reason to No."""
        self.query_one("#no").focus()

    def action_yes(self) -> None:
        """Confirm."""
        self.dismiss(self.answer())

    def action_no(self) -> None:
        """Cancel; in the reason, only leave the field."""
        if self.query_one("#why").has_focus:
            self.query_one("#no").focus()
        else:
            self.dismiss(None)

    def action_other(self) -> None:
        """Focus the other button."""
        self.query_one("#no" if self.query_one("#yes").has_focus else "#yes").focus()

    def action_reason(self) -> None:
        """Focus the reason."""
        self.query_one("#why").focus()

    def action_scroll(self, by: int) -> None:
        """Scroll the facts by lines."""
        self.query_one("#facts").scroll_relative(y=by, animate=False)

    def redraw(self) -> None:
        """Draw the dialog after an option changed."""
        self.query_one("#question", Static).update(self.head())
        self.query_one("#facts-text", Static).update(self.facts_text())
        self.query_one("#yes", Button).label = self._yes()

    def facts_text(self) -> Text:
        """The facts with their labels in a column."""
        text = Text()
        for name, value in self.facts():
            for i, line in enumerate(wrap(theme.clean(value, len(value)), INNER - 11)):
                text.append(f"{'' if i else name:>9}  ", str(theme.FAINT))
                text.append(f"{line}\n")
        text.rstrip()
        return text


class ConfirmPlain(Question[str]):
    """A confirmation without options. Returns the reason."""

    def __init__(self, headline: str, facts: Facts, verb: str) -> None:
        super().__init__()
        self._headline = headline
        self._facts = facts
        self._verb = verb

    def verb(self) -> str:
        """As given."""
        return self._verb

    def head(self) -> Text:
        """The headline."""
        return Text(theme.clean(self._headline, len(self._headline)) + "\n", "bold")

    def facts(self) -> Facts:
        """As given."""
        return self._facts

    def answer(self) -> str:
        """The reason."""
        return self.typed_reason
