"""The Events view: every event of the run, and the log of commands with who gave them and why."""

from __future__ import annotations

from textual.app import ComposeResult

from rltop.backend.api import Snapshot
from rltop.backend.util.durations import time_of_day
from rltop.tui.model.changes import Entry, describe, log_entries
from rltop.tui.model.events import EVENTS, shown_events
from rltop.tui.views.view import View
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column, Table


def _outcome(entry: Entry) -> theme.Part:
    sign, style = theme.OUTCOME.get(entry.change.state, ("?", theme.WARN))
    return f"{sign} {entry.change.state.replace('_', ' ')}", style


def _who(entry: Entry) -> theme.Part:
    change = entry.change
    return f"{change.who}@{change.host}" if change.who else theme.UNKNOWN, theme.PLAIN


AUDIT: tuple[Column[Entry], ...] = (
    Column("time", 8, lambda e: (time_of_day(e.change.requested), theme.FAINT), right=False),
    Column("step", 5, lambda e: (theme.whole(e.change.step), theme.FAINT), sort=lambda e: e.change.step),
    Column("engine", 7, lambda e: (e.change.engine, theme.PLAIN), sort=lambda e: e.change.engine, right=False),
    Column("command", 26, lambda e: (describe(e.change), theme.PLAIN), sort=lambda e: describe(e.change), right=False),
    Column("outcome", 12, _outcome, sort=lambda e: e.change.state, right=False),
    Column("who", 16, _who, sort=lambda e: e.change.who, rank=1, right=False),
    Column("id", 12, lambda e: (e.change.command, theme.FAINT), rank=2, right=False),
    Column("why", 8, lambda e: ("; ".join(filter(None, (e.change.reason, e.change.why))), theme.FAINT), right=False),
)


class EventsView(View):
    """Events above, commands below, newest first; at an earlier step only what came before it."""

    first_pane = "#all-events"

    def compose(self) -> ComposeResult:
        """Two tables."""
        yield Table(EVENTS, lambda event: str(event.number), empty="no events yet", id="all-events", log=True)
        yield Table(
            AUDIT, lambda e: f"{e.change.command}@{e.change.engine}", empty="no commands yet", id="audit", log=True
        )

    def paint(self, snapshot: Snapshot) -> None:
        """As ``View``."""
        history, cursor = self.state.history, self.state.viewport.cursor
        closed = history.closed(cursor)
        self.query_one("#all-events", Table).set_items(shown_events(snapshot, history, cursor))
        entries = [entry for entry in log_entries(snapshot) if entry.change.requested <= closed]
        self.query_one("#audit", Table).set_items(entries)
