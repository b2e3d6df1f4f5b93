"""The Control view: every flag of every engine, what a switch would do, and what became of each."""

from __future__ import annotations

import time
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Resize

from rltop.backend.view import TERMINAL, Change, Engine, Snapshot, change_key
from rltop.collectors.flags import FLAGS, Flag
from rltop.collectors.wire import FlagState
from rltop.tui import look
from rltop.tui.commands import NEEDS_CONTROL
from rltop.tui.overview import by_id
from rltop.tui.rows import Rows, set_height
from rltop.tui.table import Column, Table

ABSENT = FlagState(None, False, "this engine reports no such flag")


@dataclass(frozen=True)
class Target:
    """One flag in one place.

    Attributes:
        flag: what can be switched.
        engine: where; None for the whole fleet.
        value: as read back; ``mixed`` where live engines differ, None where not known.
        engines: ids of the live engines that a switch would reach.
        in_flight: requests running or waiting there.
        refusing: of a fleet, the live engines that can't switch, each with its reason.
        refusal: why it can't be switched; empty if it can.
        last: the latest change here; for the fleet, of the engines that are furthest behind.
    """

    flag: Flag
    engine: str | None
    value: str | None
    engines: tuple[str, ...]
    in_flight: int
    refusal: str
    last: Change | None
    refusing: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The place, as people say it."""
        return "fleet" if self.engine is None else self.engine

    @property
    def choices(self) -> tuple[str, ...]:
        """The values a switch may ask for: all but the one it has."""
        return tuple(value for value in self.flag.values if value != self.value)


def targets(view: Snapshot) -> list[Target]:
    """Every flag fleet-wide and on each engine, in the order of the flag table."""
    engines = by_id(view.engines.values())
    last = {(change.flag, change.engine): change for change in view.changes.values()}
    found = []
    for flag in FLAGS:
        each = [_on_engine(flag, engine, last.get((flag.name, engine.id))) for engine in engines]
        found += [_on_fleet(flag, each), *each]
    return found


def _on_engine(flag: Flag, engine: Engine, last: Change | None) -> Target:
    state = engine.flags.get(flag.name, ABSENT)
    live = engine.health == "live"
    refusal = (
        "" if live and state.switchable else state.reason or "not switchable" if live else f"engine is {engine.health}"
    )
    in_flight = engine.running + engine.waiting if live else 0
    return Target(flag, engine.id, state.value, (engine.id,) if live else (), in_flight, refusal, last)


def _on_fleet(flag: Flag, each: list[Target]) -> Target:
    live = [target for target in each if target.engines]
    values = {target.value for target in live}
    fixed = [target for target in live if target.refusal]
    refusal = ""
    if not live:
        refusal = "no live engine"
    elif len(fixed) == len(live):
        refusal = f"on no engine: {fixed[0].refusal}"
    changes = [target.last for target in live if target.last is not None]
    newest = max((change.requested for change in changes), default=0.0)
    together = [change for change in changes if change.requested == newest]
    return Target(
        flag,
        None,
        values.pop() if len(values) == 1 else "mixed" if values else None,
        tuple(engine for target in live for engine in target.engines),
        sum(target.in_flight for target in live),
        refusal,
        min(together, key=_progress, default=None),
        tuple(f"{target.engine}: {target.refusal}" for target in fixed),
    )


def _progress(change: Change) -> int:
    order = ["requested", "accepted", "draining", "timed_out", "refused", "applied"]
    return order.index(change.state) if change.state in order else 0


def outcome(change: Change) -> look.Part:
    """One line on how far a change is, or how it ended."""
    sign, style = look.OUTCOME.get(change.state, ("?", look.WARN))
    facts = [f"{sign} {look.flag_label(change.flag, change.wanted)} {change.state.replace('_', ' ')}"]
    if change.state == "applied":
        facts += [
            f"e.step {look.whole(change.engine_step)}",
            f"policy {look.whole(change.policy_version)}",
            f"{look.whole(change.in_flight)} in flight",
            f"{look.whole(change.lost_requests)} lost",
            f"{look.figure(change.milliseconds)} ms",
        ]
    if change.reason:
        facts.append(change.reason)
    return ", ".join(facts), style


def _flag(target: Target) -> look.Part:
    return (target.flag.name, look.STRONG) if target.engine is None else ("", look.PLAIN)


def _where(target: Target) -> look.Part:
    return (
        (f"fleet ({len(target.engines)})", look.PLAIN) if target.engine is None else (f"  {target.engine}", look.PLAIN)
    )


def _now(target: Target) -> look.Part:
    return target.value or look.UNKNOWN, look.WARN if target.value == "mixed" else look.STRONG


def _switch(target: Target) -> look.Part:
    return ("/".join(target.choices), look.PLAIN) if not target.refusal else ("fixed", look.FAINT)


def _last(target: Target) -> look.Part:
    if target.last is not None and (target.last.state not in TERMINAL or not target.refusal):
        return outcome(target.last)
    return target.refusal, look.FAINT


TARGETS: tuple[Column[Target], ...] = (
    Column("flag", 19, _flag, right=False),
    Column("where", 10, _where, right=False),
    Column("now", 9, _now, right=False),
    Column("can be", 9, _switch, right=False),
    Column("last change, or why not", 20, _last, right=False),
)


def _clock(change: Change) -> look.Part:
    return time.strftime("%H:%M:%S", time.localtime(change.requested)), look.FAINT


def _state(change: Change) -> look.Part:
    sign, style = look.OUTCOME.get(change.state, ("?", look.WARN))
    return f"{sign} {change.state.replace('_', ' ')}", style


def _number(value: float | None) -> look.Part:
    return look.figure(value), look.PLAIN


JOURNAL: tuple[Column[Change], ...] = (
    Column("time", 8, _clock, right=False),
    Column("change", 23, lambda c: (f"{c.flag} {c.wanted}", look.PLAIN), sort=lambda c: c.flag, right=False),
    Column("engine", 7, lambda c: (c.engine, look.PLAIN), sort=lambda c: c.engine, right=False),
    Column("state", 11, _state, sort=lambda c: c.state, right=False),
    Column("step", 5, lambda c: (look.whole(c.step), look.PLAIN), rank=4),
    Column("e.step", 7, lambda c: (look.whole(c.engine_step), look.PLAIN), rank=2),
    Column("policy", 6, lambda c: (look.whole(c.policy_version), look.PLAIN), rank=3),
    Column("in flight", 9, lambda c: (look.whole(c.in_flight), look.PLAIN), rank=1),
    Column("lost", 4, lambda c: (look.whole(c.lost_requests), look.BAD if c.lost_requests else look.PLAIN)),
    Column("ms", 6, lambda c: _number(c.milliseconds), sort=lambda c: c.milliseconds),
    Column("who", 10, lambda c: (c.who, look.FAINT), rank=5, right=False),
    Column("reason", 5, lambda c: (c.reason or c.why, look.FAINT), right=False),
)


class Control(Vertical):
    """Flags above, the selected one explained, the log of changes below."""

    def __init__(self, *, allowed: bool, id: str | None = None) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self._allowed = allowed

    def compose(self) -> ComposeResult:
        """Two tables, the explanation between them."""
        yield Table(
            TARGETS, lambda t: f"{t.flag.name}@{t.engine or ''}", empty="no engine has reported yet", id="flags"
        )
        yield Rows(id="about")
        yield Table(JOURNAL, change_key, empty="no flag was switched yet", id="journal", log=True)

    @property
    def selected(self) -> Target | None:
        """The flag and place under the cursor."""
        table: Table[Target] = self.query_one("#flags", Table)
        return table.selected

    def paint(self, view: Snapshot) -> None:
        """Show the flags as they are in ``view``."""
        found = targets(view) if view.engines else []
        self._make_room(len(found))
        self.query_one("#flags", Table).set_items(found)
        self.query_one("#journal", Table).set_items(list(view.changes.values())[::-1])
        self.explain()

    def explain(self) -> None:
        """Say what the flag under the cursor does and what a switch would cost."""
        about, target = self.query_one("#about", Rows), self.selected
        width = about.size.width
        if target is None:
            about.show([])
            return
        head: list[look.Part] = [(target.flag.name, look.STRONG), (f"  {target.flag.summary}", look.PLAIN)]
        lines: list[list[look.Part]] = [[], head]
        lines += [[(line, look.PLAIN)] for line in wrap(target.flag.effect, width)]
        if not self._allowed:
            lines.append([(NEEDS_CONTROL, look.WARN)])
        if target.refusal:
            said = f"{target.where}: {target.refusal}"
            if target.flag.launch not in said:
                said += f". To be able to, start the engine with {target.flag.launch}"
            lines += [
                [("✖ " if i == 0 else "  ", look.BAD), (line, look.PLAIN)]
                for i, line in enumerate(wrap(said, width - 2))
            ]
        about.show([look.row(parts, width) for parts in lines])

    def on_resize(self, event: Resize) -> None:
        """The explanation needs more lines where it is narrow."""
        self.query_one("#about").styles.height = 8 if event.size.width < 100 else 7
        self._make_room(len(self.query_one("#flags", Table).items))
        self.call_after_refresh(self.explain)

    def _make_room(self, flags: int) -> None:
        """The flags as high as they need up to half the screen; the log takes the rest."""
        set_height(self.query_one("#flags"), 1 + min(max(flags, 1), max(5, self.size.height // 2 - 4)))


def wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken at blanks."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines
