"""The Control view: flags and actions, the selected one explained, and the log of changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from rich.style import Style
from textual.app import ComposeResult
from textual.events import Resize

from rltop.backend.api import TERMINAL, Change, Snapshot, change_key
from rltop.backend.commands.undoable import last_undoable
from rltop.backend.text.fingerprint_text import MARK
from rltop.backend.util.durations import time_of_day
from rltop.tui.dialogs.effect_panel import EffectPage
from rltop.tui.dialogs.info_dialogs import page_width
from rltop.tui.dialogs.switch_dialog import CommandQuestion, keep_question, undo_question
from rltop.tui.model.changes import Entry, describe, label, log_entries
from rltop.tui.model.key_commands import NEEDS_CONTROL, KeyCommand
from rltop.tui.model.state import UnavailableError
from rltop.tui.model.switchable import MIXED, Target, fold, targets
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Column, Table


def result(change: Change) -> theme.Part:
    """Progress or result of a change, in one line."""
    sign, style = theme.OUTCOME.get(change.state, ("?", theme.WARN))
    revert = "↶ " if change.reverts else ""
    facts = [f"{sign} {revert}{label(change)} {change.state.replace('_', ' ')}"]
    if change.state == "applied":
        facts += [
            f"e.step {theme.whole(change.engine_step)}",
            f"policy {theme.whole(change.policy_version)}",
            f"{theme.whole(change.in_flight)} in flight",
            f"{theme.whole(change.lost_requests)} lost",
            f"{theme.figure(change.milliseconds)} ms",
        ]
    if change.reason:
        facts.append(change.reason)
    return ", ".join(facts), style


def _name(target: Target) -> theme.Part:
    return (target.subject.name, theme.STRONG) if target.engine is None else ("", theme.PLAIN)


def _where(target: Target) -> theme.Part:
    return f"fleet ({len(target.engines)})" if target.engine is None else f"  {target.engine}", theme.PLAIN


def _now(target: Target) -> theme.Part:
    if target.differs:
        return f"{MARK} {target.now}", theme.WARN
    return target.now, theme.WARN if target.value in (MIXED, "paused") else theme.STRONG


def _switch(target: Target) -> theme.Part:
    if target.refusal:
        return "fixed", theme.FAINT
    every = len(target.choices) == len(target.subject.choices) > 1
    return "any" if every else "/".join(choice.word for choice in target.choices), theme.PLAIN


def _last(target: Target) -> theme.Part:
    """The most urgent first: a running timer, the last change, the reason why nothing can be changed."""
    if target.timer is not None:
        engines = "" if len(target.timed) == len(target.engines) else f" on {', '.join(target.timed)}"
        keep = ", K keeps it" if target.timer.verb == "set" else ""
        return f"↶ {target.timer.back_to} in {theme.clock(target.left_s)}{engines}{keep}", theme.WARN
    if target.last is not None and (target.last.state not in TERMINAL or not target.refusal):
        return result(target.last)
    return target.refusal, theme.FAINT


TARGETS: tuple[Column[Target], ...] = (
    Column("flag or action", 19, _name, right=False),
    Column("where", 10, _where, right=False),
    Column("value", 15, _now, right=False),
    Column("choices", 9, _switch, right=False),
    Column("last change", 20, _last, right=False),
)


def _clock(entry: Entry) -> theme.Part:
    return time_of_day(entry.change.requested), theme.FAINT


def _state(entry: Entry) -> theme.Part:
    sign, style = theme.OUTCOME.get(entry.change.state, ("?", theme.WARN))
    return f"{sign} {entry.change.state.replace('_', ' ')}", style


def _revert(entry: Entry) -> theme.Part:
    """Time left until the change auto-reverts."""
    change = entry.change
    if entry.left_s is not None:
        return f"in {theme.clock(entry.left_s)}", theme.WARN
    return ("kept" if change.kept_by else ""), theme.FAINT


def _why(entry: Entry) -> theme.Part:
    change = entry.change
    kept = f"kept by {change.kept_by}" if change.kept_by else ""
    return "; ".join(text for text in (change.reason, change.why, kept) if text), theme.FAINT


JOURNAL: tuple[Column[Entry], ...] = (
    Column("time", 8, _clock, right=False),
    Column("change", 27, lambda e: (describe(e.change), theme.PLAIN), sort=lambda e: describe(e.change), right=False),
    Column("engine", 7, lambda e: (e.change.engine, theme.PLAIN), sort=lambda e: e.change.engine, right=False),
    Column("state", 12, _state, sort=lambda e: e.change.state, right=False),
    Column("reverts", 8, _revert, right=False),
    Column("step", 5, lambda e: (theme.whole(e.change.step), theme.PLAIN), rank=4),
    Column("e.step", 7, lambda e: (theme.whole(e.change.engine_step), theme.PLAIN), rank=3),
    Column("policy", 6, lambda e: (theme.whole(e.change.policy_version), theme.PLAIN), rank=3),
    Column("in flight", 9, lambda e: (theme.whole(e.change.in_flight), theme.PLAIN), rank=3),
    Column(
        "lost", 4,
        lambda e: (theme.whole(e.change.lost_requests), theme.BAD if e.change.lost_requests else theme.PLAIN), rank=1,
    ),
    Column("ms", 6, lambda e: (theme.figure(e.change.milliseconds), theme.PLAIN), sort=lambda e: e.change.milliseconds,
           rank=2),
    Column("who", 10, lambda e: (e.change.who, theme.FAINT), rank=5, right=False),
    Column("reason", 5, _why, right=False),
)  # fmt: skip


class ControlView(View):
    """Flags and actions above, the selected one explained, the log of changes below.

    The tables show the run as it is now, since commands act on it; the log scrolls to the step under the cursor.
    """

    first_pane = "#flags"
    shows_live = True
    keys = (
        KeyCommand("switch", ("t",), "t", "Switch", "change the selected flag or action; asks first", "Control",
                   needs_control=True, footer="switch"),
        KeyCommand("keep", ("K",), "K", "Keep", "stop the selected timer, so that the change stays; asks first",
                   "Control", needs_control=True),
        KeyCommand("undo", ("u",), "u", "Undo", "revert the selected change, or the last one; asks first and names it",
                   "Control", needs_control=True),
        KeyCommand("effect", ("E",), "E", "Effect",
                   "effect of the selected change: before, after, and against other engines", "Control"),
        KeyCommand("pause", ("p",), "p", "Pause or resume", "pause or resume generation on the whole fleet; asks first",
                   "Control", needs_control=True),
        KeyCommand("flush", ("f",), "f", "Flush", "empty the prefix cache on the whole fleet; asks first", "Control",
                   needs_control=True),
        KeyCommand("journal", ("at",), "@", "Log of changes", "go to the log of changes; enter there shows an effect",
                   "Control"),
        KeyCommand("every_engine", ("e",), "e", "Every engine", "a row for every engine, or only for those that differ",
                   "Control"),
    )  # fmt: skip

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._unfolded: bool | None = None
        self._folded = False
        self._read_until = math.inf

    def compose(self) -> ComposeResult:
        """Two tables with the explanation between them."""
        yield Table(TARGETS, lambda target: target.key, empty="no engine has reported yet", id="flags")
        yield LineWidget(id="about")
        yield Table(
            JOURNAL,
            lambda e: change_key(e.change),
            empty="no changes yet",
            id="journal",
            log=True,
            opens=True,
        )

    @property
    def selected(self) -> Target | None:
        """The row under the cursor of the upper table."""
        table: Table[Target] = self.query_one("#flags", Table)
        return table.selected

    @property
    def change(self) -> Change | None:
        """The selected change: in the focused log, else the last one of the selected row."""
        journal: Table[Entry] = self.query_one("#journal", Table)
        if journal.has_focus:
            return journal.selected.change if journal.selected is not None else None
        return self.selected.last if self.selected is not None else None

    @property
    def timed(self) -> str | None:
        """The command of the selected timer."""
        journal: Table[Entry] = self.query_one("#journal", Table)
        if journal.has_focus:
            return self.change.command if self.change is not None else None
        timer = self.selected.timer if self.selected is not None else None
        return timer.command if timer is not None else None

    def paint(self, snapshot: Snapshot) -> None:
        """As ``View``."""
        snapshot = self.state.live or snapshot
        every = targets(snapshot) if snapshot.engines else []
        self._folded = len(every) > self._room if self._unfolded is None else not self._unfolded
        rows = fold(every) if self._folded else every
        self._make_room(len(rows))
        self.query_one("#flags", Table).set_items(rows)
        journal, log = self.query_one("#journal", Table), log_entries(snapshot)
        journal.set_items(log)
        until = self.state.history.closed(self.state.viewport.cursor)
        if until != self._read_until:
            self._read_until = until
            journal.turn_to(next((entry for entry in log if entry.change.requested <= until), None))
        self.cursor_moved()

    # --- commands ---------------------------------------------------------------------------------------------------

    def commands(self) -> Mapping[str, Callable[[], object]]:
        """As ``View``."""
        return {
            "switch": self._switch,
            "keep": self._keep,
            "undo": self._undo,
            "effect": self._show_effect,
            "pause": partial(self._act_on_fleet, "generation"),
            "flush": partial(self._act_on_fleet, "prefix cache"),
            "journal": partial(self.dashboard.open, self, "#journal"),
            "every_engine": self._toggle_engines,
        }

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter: the dialog of a switch, or the effect of a change."""
        self.dashboard.command("switch" if isinstance(event.item, Target) else "effect")

    def _switch(self) -> None:
        target = self.selected
        if not self.display or target is None:
            self.dashboard.open(self, self.first_pane)
        else:
            self.confirm_switch(target)

    def _act_on_fleet(self, subject: str) -> None:
        """Open the dialog of the actions on ``subject`` for the whole fleet."""
        rows = targets(self.state.live) if self.state.live is not None else []
        for target in rows:
            if target.engine is None and target.subject.name == subject:
                self.confirm_switch(target)

    def _keep(self) -> None:
        live, command = self.state.live, self.timed
        question = keep_question(live, command) if live is not None and command is not None else None
        self._confirm(question, self.dashboard.requests.keep, "the selected row has no timer")

    def _undo(self) -> None:
        live, change = self.state.live, self.change if self.display else None
        if change is None and live is not None:  # nothing is selected: the last change, which the dialog names
            change = next(iter(last_undoable(live.changes.values(), live.engines)), None)
        question = undo_question(live, change) if live is not None and change is not None else None
        self._confirm(question, self.dashboard.requests.undo, "there is no change in effect that can be undone")

    def _confirm(self, question: CommandQuestion | None, send: Callable[[str, str, str], None], why_not: str) -> None:
        """Open the dialog; Yes sends the command."""
        if question is None:
            raise UnavailableError(why_not)

        def answered(reason: str | None) -> None:
            if reason is not None:
                send(question.command, question.description, reason)
            self.state.changed()

        self.app.push_screen(question.dialog, answered)

    def _show_effect(self) -> None:
        change = self.change if self.display else None
        if change is None:
            raise UnavailableError("select a change in the Control view")
        width = page_width(self.app.size.width)
        command = change.target if change.verb == "keep" else change.command
        self.app.push_screen(EffectPage(command, describe(change), self.state.client, self.dashboard.clock, width))

    def _toggle_engines(self) -> None:
        self._unfolded = self._folded
        self.state.changed()

    # --- explanation ------------------------------------------------------------------------------------------------

    def cursor_moved(self) -> None:
        """Explain the selected row: what it is, what prevents a change, what each choice does."""
        about, target = self.query_one("#about", LineWidget), self.selected
        width = about.size.width
        if target is None:
            about.show([])
            return
        head: list[theme.Part] = [(target.subject.name, theme.STRONG), (f"  {target.subject.summary}", theme.PLAIN)]
        lines: list[list[theme.Part]] = [[], head]
        for sign, style, text in self._explanation(target):
            lines += [
                [(sign if i == 0 else " " * len(sign), style), (line, theme.PLAIN if sign else style)]
                for i, line in enumerate(theme.wrap(text, width - len(sign)))
            ]
        about.show([theme.row(parts, width) for parts in lines])

    def _explanation(self, target: Target) -> list[tuple[str, Style, str]]:
        lines = [(f"{MARK} ", theme.WARN, mismatch) for mismatch in dict.fromkeys(target.differs)]
        if target.refusal:
            text = f"{target.where}: {target.refusal}"
            launch = target.subject.flag.launch if target.subject.flag is not None else ""
            if launch and target.engines and launch not in text:
                text += f". To make it switchable, start the engine with {launch}"
            lines.append(("✖ ", theme.BAD, text))
        lines += [("", theme.PLAIN, effect) for effect in dict.fromkeys(c.effect for c in target.subject.choices)]
        if self._folded and target.engine is None and len(target.engines) > 1:
            lines.append(("", theme.FAINT, "e: a row for every engine, not only for those that differ"))
        if not self.dashboard.control:
            lines.insert(0, ("‖ ", theme.WARN, NEEDS_CONTROL))
        return lines

    def on_resize(self, event: Resize) -> None:
        """Give the explanation more lines on a narrow screen."""
        self.query_one("#about").styles.height = 8 if event.size.width < 100 else 7
        self._make_room(len(self.query_one("#flags", Table).items))
        self.call_after_refresh(self.cursor_moved)

    @property
    def _room(self) -> int:
        """Rows that the upper table may have."""
        return max(5, self.size.height // 2 - 4)

    def _make_room(self, rows: int) -> None:
        """Size the upper table by its rows, up to half the screen; the log takes the rest."""
        set_height(self.query_one("#flags"), 1 + min(max(rows, 1), self._room))
