"""The effect panel: what a change did to the run, asked of the hub again and again while it is open."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from rltop.backend.api import AskEffect, Effect, EffectEstimate, EffectRow
from rltop.backend.effects.estimate import FIGURES
from rltop.backend.text import effect_text
from rltop.tui.dialogs.info_dialogs import Page
from rltop.tui.model.source import SnapshotSource
from rltop.tui.widgets import theme
from rltop.tui.widgets.theme import wrap

REFRESH_S = 2.0
"""How often an open panel asks anew."""

PATIENCE_S = 6.0
"""A question that is not answered by then is asked again, and the panel says that the hub is silent."""

VERDICTS: dict[str, tuple[str, Style]] = {
    "up": ("▲", theme.WARN),
    "down": ("▼", theme.WARN),
    "none": ("=", theme.GOOD),
    "not_yet": ("◔", theme.PLAIN),
    "unclear": ("?", theme.PLAIN),
    "confounded": ("≈", theme.WARN),
    "unknown": ("-", theme.FAINT),
}
"""Sign and style of what is said of a figure."""

_TITLES = {figure.name: figure.title for figure in FIGURES}


class EffectPage(Page):
    """What ``command`` did, kept up to date.

    Args:
        command: id of the command.
        what: the command in words.
        client: takes the questions, has the answers.
        clock: monotonic seconds.
        width: cells of a line.
    """

    def __init__(self, command: str, what: str, client: SnapshotSource, clock: Callable[[], float], width: int) -> None:
        super().__init__(Text(f"Effect of {what}\nasking the hub"))
        self._command = command
        self._what = what
        self._client = client
        self._clock = clock
        self._width = width
        self._question = ""
        self._asked = float("-inf")
        self._said: Text | None = None

    def on_mount(self) -> None:
        """Ask at once, then look for answers."""
        self.set_interval(0.25, self.look)
        self.look()

    def look(self) -> None:
        """Take an answer if there is one; ask again when it is time."""
        answer = self._client.answers.pop(self._question, None)
        if answer is not None:
            self._question = ""
            said = answer_text(answer.effect, answer.error or "the hub gave no effect", self._width)
            self._show(said)
        waited = self._clock() - self._asked
        if self._question and waited > PATIENCE_S:
            self._show(self._said, f"the hub has not answered for {theme.duration(waited)}")
            self._question = ""
        if not self._question and waited >= REFRESH_S:
            question = AskEffect(uuid.uuid4().hex, self._command)
            self._question, self._asked = question.id, self._clock()
            self._client.ask(question)

    def _show(self, said: Text | None, note: str = "") -> None:
        head = Text.assemble((f"Effect of {theme.clean(self._what, len(self._what))}", "bold"), "\n")
        if note:
            head.append(f"▲ {note}\n", str(theme.WARN))
        self._said = said
        self.query_one(Static).update(head if said is None else Text.assemble(head, said))


def answer_text(effect: Effect | None, error: str, width: int) -> Text:
    """What the hub says, in lines of ``width`` cells."""
    text = Text()
    if effect is None:
        _wrapped(text, error, width)
        return text
    lines = effect_text.lines(effect)
    for line in lines[: lines.index("")]:
        _wrapped(text, line, width)
    text.append("\n")
    for row in effect.rows:
        _row(text, row, effect, width)
    text.append("\n")
    _wrapped(text, lines[-1], width)
    return text


def _row(text: Text, row: EffectRow, effect: Effect, width: int) -> None:
    """Figure and verdict; levels and difference; against the others, where there are any."""
    sign, style = VERDICTS.get(row.verdict, ("?", theme.WARN))
    text.append(f"{theme.clean(_TITLES.get(row.figure, row.figure), 15)} ", "bold")
    counts = f" · n {row.before} / {row.after} {'steps' if row.every == 'step' else f'x {row.every}'}"
    for i, line in enumerate(wrap(effect_text.verdict(row) + (counts if row.own else ""), max(width - 18, 20))):
        text.append(f"{sign} " if not i else " " * 18, str(style))
        text.append(f"{line}\n", str(style))
    if row.own is not None:
        levels = f"{row.own.before:.4g} > {row.own.after:.4g} {row.unit if row.unit != 'share' else ''}"
        text.append(f"  {levels:<26} {_difference(row.own)}\n")
    if row.against is not None:
        others = f"against {', '.join(effect.against)}" if len(effect.against) < 4 else f"against {len(effect.against)}"
        text.append(f"  {theme.clean(others, 26)} {_difference(row.against)}\n")


def _difference(found: EffectEstimate) -> str:
    return f"{found.difference:+.3g}".ljust(10) + f"95 % {found.low:+.3g} to {found.high:+.3g}"


def _wrapped(text: Text, said: str, width: int) -> None:
    for i, line in enumerate(wrap(theme.clean(said, len(said)), max(width - 2, 20))):
        text.append(f"{'  ' if i else ''}{line}\n")
