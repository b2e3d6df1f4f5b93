"""The Control view: everything that can be switched or done, what it would do, and what became of each command."""

from __future__ import annotations

import math
import time

from rich.style import Style
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Resize

from rltop.backend.api import TERMINAL, Change, Snapshot, change_key
from rltop.backend.text.fingerprint_text import MARK
from rltop.tui.model.changes import Entry, deed, entries, label
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.switchable import MIXED, Target, fold, targets
from rltop.tui.widgets import theme
from rltop.tui.widgets.line_widget import LineWidget, set_height
from rltop.tui.widgets.table import Column, Table


def outcome(change: Change) -> theme.Part:
    """One line on how far a change is, or how it ended."""
    sign, style = theme.OUTCOME.get(change.state, ("?", theme.WARN))
    back = "↶ " if change.reverts else ""
    facts = [f"{sign} {back}{label(change)} {change.state.replace('_', ' ')}"]
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
    """What moves comes first: a timer, then the last change, then why it can't be changed."""
    if target.timer is not None:
        where = "" if len(target.timed) == len(target.engines) else f" on {', '.join(target.timed)}"
        unless = ", unless kept (K)" if target.timer.verb == "set" else ""
        return f"↶ {target.timer.back_to} in {theme.clock(target.left_s)}{where}{unless}", theme.WARN
    if target.last is not None and (target.last.state not in TERMINAL or not target.refusal):
        return outcome(target.last)
    return target.refusal, theme.FAINT


TARGETS: tuple[Column[Target], ...] = (
    Column("flag or action on", 19, _name, right=False),
    Column("where", 10, _where, right=False),
    Column("now", 15, _now, right=False),
    Column("can be", 9, _switch, right=False),
    Column("last change, or why not", 20, _last, right=False),
)


def _clock(entry: Entry) -> theme.Part:
    return time.strftime("%H:%M:%S", time.localtime(entry.change.requested)), theme.FAINT


def _state(entry: Entry) -> theme.Part:
    sign, style = theme.OUTCOME.get(entry.change.state, ("?", theme.WARN))
    return f"{sign} {entry.change.state.replace('_', ' ')}", style


def _back(entry: Entry) -> theme.Part:
    """What becomes of its timer."""
    change = entry.change
    if entry.left_s is not None:
        return f"in {theme.clock(entry.left_s)}", theme.WARN
    return ("kept" if change.kept_by else ""), theme.FAINT


def _why(entry: Entry) -> theme.Part:
    change = entry.change
    kept = f"kept by {change.kept_by}" if change.kept_by else ""
    return "; ".join(said for said in (change.reason, change.why, kept) if said), theme.FAINT


JOURNAL: tuple[Column[Entry], ...] = (
    Column("time", 8, _clock, right=False),
    Column("change", 27, lambda e: (deed(e.change), theme.PLAIN), sort=lambda e: deed(e.change), right=False),
    Column("engine", 7, lambda e: (e.change.engine, theme.PLAIN), sort=lambda e: e.change.engine, right=False),
    Column("state", 12, _state, sort=lambda e: e.change.state, right=False),
    Column("back", 8, _back, right=False),
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


class ControlView(Vertical):
    """What can be changed above, the selected line explained, the log of changes below."""

    def __init__(self, *, allowed: bool, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._allowed = allowed
        self._every: bool | None = None
        self._folded = False
        self._read = math.inf

    def compose(self) -> ComposeResult:
        """Two tables, the explanation between them."""
        yield Table(TARGETS, lambda target: target.key, empty="no engine has reported yet", id="flags")
        yield LineWidget(id="about")
        yield Table(
            JOURNAL,
            lambda e: change_key(e.change),
            empty="nothing was switched yet",
            id="journal",
            log=True,
            opens=True,
        )

    @property
    def selected(self) -> Target | None:
        """The line under the cursor of the upper table."""
        table: Table[Target] = self.query_one("#flags", Table)
        return table.selected

    @property
    def change(self) -> Change | None:
        """The change under the cursor: of the log if that is in focus, else the last one of the selected line."""
        journal: Table[Entry] = self.query_one("#journal", Table)
        if journal.has_focus:
            return journal.selected.change if journal.selected is not None else None
        return self.selected.last if self.selected is not None else None

    @property
    def timed(self) -> str | None:
        """The command whose timer is under the cursor."""
        journal: Table[Entry] = self.query_one("#journal", Table)
        if journal.has_focus:
            return self.change.command if self.change is not None else None
        timer = self.selected.timer if self.selected is not None else None
        return timer.command if timer is not None else None

    def paint(self, view: Snapshot, read: float = math.inf) -> None:
        """Show everything as it is in ``view``, the log turned to the wall clock that is ``read``."""
        found = targets(view) if view.engines else []
        self._folded = len(found) > self._room if self._every is None else not self._every
        shown = fold(found) if self._folded else found
        self._make_room(len(shown))
        self.query_one("#flags", Table).set_items(shown)
        journal, log = self.query_one("#journal", Table), entries(view)
        journal.set_items(log)
        if read != self._read:
            self._read = read
            journal.turn_to(next((entry for entry in log if entry.change.requested <= read), None))
        self.explain()

    def toggle_engines(self) -> None:
        """A line for every engine, or only for those that stand out."""
        self._every = self._folded

    def explain(self) -> None:
        """Say what the line under the cursor is, what stands against it, and how to change it."""
        about, target = self.query_one("#about", LineWidget), self.selected
        width = about.size.width
        if target is None:
            about.show([])
            return
        head: list[theme.Part] = [(target.subject.name, theme.STRONG), (f"  {target.subject.summary}", theme.PLAIN)]
        lines: list[list[theme.Part]] = [[], head]
        for sign, style, said in self._sayings(target):
            lines += [
                [(sign if i == 0 else " " * len(sign), style), (line, theme.PLAIN if sign else style)]
                for i, line in enumerate(theme.wrap(said, width - len(sign)))
            ]
        about.show([theme.row(parts, width) for parts in lines])

    def _sayings(self, target: Target) -> list[tuple[str, Style, str]]:
        found = [(f"{MARK} ", theme.WARN, said) for said in dict.fromkeys(target.differs)]
        if target.refusal:
            said = f"{target.where}: {target.refusal}"
            launch = target.subject.flag.launch if target.subject.flag is not None else ""
            if launch and target.engines and launch not in said:
                said += f". To be able to, start the engine with {launch}"
            found.append(("✖ ", theme.BAD, said))
        found += [("", theme.PLAIN, effect) for effect in dict.fromkeys(c.effect for c in target.subject.choices)]
        if self._folded and target.engine is None and len(target.engines) > 1:
            found.append(("", theme.FAINT, "e: a line for every engine, not only for those that stand out"))
        if not self._allowed:
            found.insert(0, ("‖ ", theme.WARN, NEEDS_CONTROL))
        return found

    def on_resize(self, event: Resize) -> None:
        """The explanation needs more lines where it is narrow."""
        self.query_one("#about").styles.height = 8 if event.size.width < 100 else 7
        self._make_room(len(self.query_one("#flags", Table).items))
        self.call_after_refresh(self.explain)

    @property
    def _room(self) -> int:
        """Lines that the upper table may have."""
        return max(5, self.size.height // 2 - 4)

    def _make_room(self, rows: int) -> None:
        """The upper table as high as it needs up to half the screen; the log takes the rest."""
        set_height(self.query_one("#flags"), 1 + min(max(rows, 1), self._room))
