"""The effect panel: the effect of a change on the run, refreshed from the hub while it is open."""

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
"""Seconds between two queries of an open panel."""

TIMEOUT_S = 6.0
"""A query without an answer is repeated after this time, and the panel shows that the hub does not answer."""

VERDICTS: dict[str, tuple[str, Style]] = {
    "up": ("▲", theme.WARN),
    "down": ("▼", theme.WARN),
    "none": ("=", theme.GOOD),
    "not_yet": ("◔", theme.PLAIN),
    "unclear": ("?", theme.PLAIN),
    "confounded": ("≈", theme.WARN),
    "unknown": ("-", theme.FAINT),
}
"""Sign and style of a verdict on a metric."""

_TITLES = {figure.name: figure.title for figure in FIGURES}


class EffectPage(Page):
    """The effect of ``command``, kept up to date.

    Args:
        command: id of the command.
        description: the command in words.
        client: takes the questions and has the answers.
        clock: monotonic seconds.
        width: cells of a line.
    """

    def __init__(
        self, command: str, description: str, client: SnapshotSource, clock: Callable[[], float], width: int
    ) -> None:
        super().__init__(Text(f"Effect of {description}\nwaiting for the hub"))
        self._command = command
        self._description = description
        self._client = client
        self._clock = clock
        self._width = width
        self._question = ""
        self._asked = float("-inf")
        self._effect: Text | None = None

    def on_mount(self) -> None:
        """Send the first query, then check for answers."""
        self.set_interval(0.25, self.check_answer)
        self.check_answer()

    def check_answer(self) -> None:
        """Show an answer that has arrived; send the next query when it is due."""
        answer = self._client.answers.pop(self._question, None)
        if answer is not None:
            self._question = ""
            self._show(answer_text(answer.effect, answer.error or "the hub returned no effect", self._width))
        waited = self._clock() - self._asked
        if self._question and waited > TIMEOUT_S:
            self._show(self._effect, f"the hub has not answered for {theme.duration(waited)}")
            self._question = ""
        if not self._question and waited >= REFRESH_S:
            question = AskEffect(uuid.uuid4().hex, self._command)
            self._question, self._asked = question.id, self._clock()
            self._client.ask(question)

    def _show(self, effect: Text | None, note: str = "") -> None:
        head = Text.assemble((f"Effect of {theme.clean(self._description, len(self._description))}", "bold"), "\n")
        if note:
            head.append(f"▲ {note}\n", str(theme.WARN))
        self._effect = effect
        self.query_one(Static).update(head if effect is None else Text.assemble(head, effect))


def answer_text(effect: Effect | None, error: str, width: int) -> Text:
    """The answer of the hub, in lines of ``width`` cells."""
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
    """Metric and verdict; levels and difference; difference to the other engines, if any."""
    sign, style = VERDICTS.get(row.verdict, ("?", theme.WARN))
    text.append(f"{theme.clean(_TITLES.get(row.figure, row.figure), 15)} ", "bold")
    counts = f" · n {row.before} / {row.after} {'steps' if row.every == 'step' else f'x {row.every}'}"
    for i, line in enumerate(wrap(effect_text.verdict(row) + (counts if row.own else ""), max(width - 18, 20))):
        text.append(f"{sign} " if not i else " " * 18, str(style))
        text.append(f"{line}\n", str(style))
    if row.own is not None:
        levels = f"{row.own.before:.4g} → {row.own.after:.4g} {row.unit if row.unit != 'share' else ''}"
        text.append(f"  {levels:<26} {_difference(row.own)}\n")
    if row.against is not None:
        others = f"against {', '.join(effect.against)}" if len(effect.against) < 4 else f"against {len(effect.against)}"
        text.append(f"  {theme.clean(others, 26)} {_difference(row.against)}\n")


def _difference(estimate: EffectEstimate) -> str:
    return f"{estimate.difference:+.3g}".ljust(10) + f"95 % {estimate.low:+.3g} to {estimate.high:+.3g}"


def _wrapped(text: Text, added: str, width: int) -> None:
    for i, line in enumerate(wrap(theme.clean(added, len(added)), max(width - 2, 20))):
        text.append(f"{'  ' if i else ''}{line}\n")
