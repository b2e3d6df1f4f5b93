"""The table of views: a new view is one file and one row here. Keys, palette, footer and help follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rltop.tui.model.key_commands import APPLICATION, DETACH, MOVING, READING, KeyCommand
from rltop.tui.views.control import ControlView
from rltop.tui.views.diagnosis_view import DiagnosisView
from rltop.tui.views.events_view import EventsView
from rltop.tui.views.fleet_view import FleetView
from rltop.tui.views.log_view import LogView
from rltop.tui.views.mismatch import GapView
from rltop.tui.views.overview import OverviewView
from rltop.tui.views.view import View


@dataclass(frozen=True)
class ViewEntry:
    """One row. The key of a view is the number of its row, from 1.

    Attributes:
        view: its class.
        title: its name everywhere.
        help: one line, what it shows.
        aliases: further keys.
    """

    view: type[View]
    title: str
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Id of the widget, and of the command that opens the view."""
        return self.title.lower()


VIEWS: tuple[ViewEntry, ...] = (
    ViewEntry(OverviewView, "Overview", "plots, fleet and events", ("0",)),
    ViewEntry(GapView, "Gap", "the logprob gap by engine, lag and prefix cache, with its tokens and sequences"),
    ViewEntry(DiagnosisView, "Diagnosis", "verdict, causes, evidence and fixes"),
    ViewEntry(ControlView, "Control", "every flag and action on every engine, and the log of changes", ("F",)),
    ViewEntry(FleetView, "Fleet", "every engine with all its figures, and the selected one over the steps"),
    ViewEntry(EventsView, "Events", "every event, and the audit log of commands: who, why, outcome"),
    ViewEntry(LogView, "Log", "the ends of the log files in the run's directory"),
)


def _open_command(number: int, entry: ViewEntry) -> KeyCommand:
    keys = (str(number), *entry.aliases)
    return KeyCommand(entry.id, keys, " ".join(keys), entry.title, entry.help, "Views")


COMMANDS: tuple[KeyCommand, ...] = (
    *APPLICATION,
    *(_open_command(number, entry) for number, entry in enumerate(VIEWS, 1)),
    *READING,
    *MOVING,
    *(replace(command, view=entry.id) for entry in VIEWS for command in entry.view.keys),
    DETACH,
)
"""Every command of the dashboard, in the order of the palette and the footer."""

BY_ID: dict[str, KeyCommand] = {command.id: command for command in COMMANDS}
