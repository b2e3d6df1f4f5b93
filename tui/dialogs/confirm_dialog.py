"""Questions that stand before every command. Nothing happens by mistake: the focus is on No, and y means yes."""

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
"""Cells of text in a question, beside a scrollbar; narrower screens wrap it once more."""

OTHER_LINES = 13
"""Lines of the screen that a question needs beside its facts."""

MAX_WHY = 200
"""Characters of a reason for the record."""

T = TypeVar("T")

Facts = Sequence[tuple[str, str]]
"""Names with what is to be said of them."""


class Question(ModalScreen[T | None], Generic[T]):
    """A headline, options, a reason for the record, facts to weigh, and two buttons. Answers None for No."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "yes", "Yes"),
        Binding("n,escape,q", "no", "No"),
        Binding("left,right,tab,shift+tab", "other", "Other button"),
        Binding("r", "reason", "Reason"),
        Binding("j,down", "scroll(1)", "Down"),
        Binding("k,up", "scroll(-1)", "Up"),
    ]

    reason = ""
    """For the record, until another is typed."""

    def compose(self) -> ComposeResult:
        """Headline and options, reason, facts, buttons."""
        with Vertical(classes="dialog"):
            yield Static(self.head(), id="question")
            with Horizontal(id="reason"):
                yield Static(f"{'r':>4}  why    ", id="reason-name")
                yield Input(self.reason, "for the record; may stay empty", max_length=MAX_WHY, compact=True, id="why")
            with VerticalScroll(id="weigh", can_focus=False):
                yield Static(self.weigh(), id="weighed")
            with Horizontal(id="buttons"):
                yield Button("n  No", id="no", compact=True)
                yield Button(self._yes(), id="yes", compact=True)

    def verb(self) -> str:
        """Word of the Yes button."""
        raise NotImplementedError

    def _yes(self) -> str:
        return f"y  Yes, {self.verb()}"

    def head(self) -> Text:
        """Headline and options."""
        raise NotImplementedError

    def facts(self) -> Facts:
        """What to weigh."""
        raise NotImplementedError

    def answer(self) -> T:
        """What Yes means now."""
        raise NotImplementedError

    @property
    def why(self) -> str:
        """The reason as typed."""
        return " ".join(self.query_one("#why", Input).value.split())

    def on_mount(self) -> None:
        """Nothing happens by mistake."""
        self.query_one("#no").focus()
        self.on_resize()

    def on_resize(self) -> None:
        """The facts take what the rest leaves, and scroll."""
        self.query_one("#weigh").styles.max_height = max(2, self.app.size.height - OTHER_LINES)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A button was chosen."""
        self.dismiss(self.answer() if event.button.id == "yes" else None)

    def on_input_submitted(self) -> None:
        """The reason is typed; back to No."""
        self.query_one("#no").focus()

    def action_yes(self) -> None:
        """Do it."""
        self.dismiss(self.answer())

    def action_no(self) -> None:
        """Leave it; from the reason, only leave that."""
        if self.query_one("#why").has_focus:
            self.query_one("#no").focus()
        else:
            self.dismiss(None)

    def action_other(self) -> None:
        """To the other button."""
        self.query_one("#no" if self.query_one("#yes").has_focus else "#yes").focus()

    def action_reason(self) -> None:
        """To the reason."""
        self.query_one("#why").focus()

    def action_scroll(self, by: int) -> None:
        """The facts, line by line."""
        self.query_one("#weigh").scroll_relative(y=by, animate=False)

    def redraw(self) -> None:
        """An option changed."""
        self.query_one("#question", Static).update(self.head())
        self.query_one("#weighed", Static).update(self.weigh())
        self.query_one("#yes", Button).label = self._yes()

    def weigh(self) -> Text:
        """The facts, their names in a column."""
        text = Text()
        for name, said in self.facts():
            for i, line in enumerate(wrap(theme.clean(said, len(said)), INNER - 11)):
                text.append(f"{'' if i else name:>9}  ", str(theme.FAINT))
                text.append(f"{line}\n")
        text.rstrip()
        return text


class ConfirmPlain(Question[str]):
    """Asks before something without options. Answers with the reason for the record."""

    def __init__(self, headline: str, facts: Facts, verb: str) -> None:
        super().__init__()
        self._headline = headline
        self._facts = facts
        self._verb = verb

    def verb(self) -> str:
        """As given."""
        return self._verb

    def head(self) -> Text:
        """What is about to happen."""
        return Text(theme.clean(self._headline, len(self._headline)) + "\n", "bold")

    def facts(self) -> Facts:
        """As given."""
        return self._facts

    def answer(self) -> str:
        """The reason."""
        return self.why
