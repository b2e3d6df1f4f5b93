"""The base class of a view, and the parts of the dashboard that a view uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual.containers import Vertical

from rltop.backend.api import Answer, Question, Snapshot
from rltop.tui.dialogs.requests import ControlRequests
from rltop.tui.dialogs.switch_dialog import CommandRequest, Confirm
from rltop.tui.model.explain import ShownFigure
from rltop.tui.model.key_commands import KeyCommand
from rltop.tui.model.state import DashboardState, UnavailableError
from rltop.tui.model.switchable import Target


@dataclass(frozen=True)
class Dashboard:
    """The parts of the dashboard that views use.

    Attributes:
        state: snapshots, viewport and timeline.
        requests: sends confirmed commands to the hub.
        control: the dashboard may change the run.
        clock: monotonic seconds.
        command: executes a command by id, as its key does.
        open: shows a view and focuses one of its panes.
        run: the run's name.
        logs: the log files of the run that can be read here.
    """

    state: DashboardState
    requests: ControlRequests
    control: bool
    clock: Callable[[], float]
    command: Callable[[str], None]
    open: Callable[[View, str], None]
    run: str
    logs: Callable[[], Sequence[Path]] = list


class View(Vertical):
    """A view of the dashboard: one row of ``registry.VIEWS``, which has its title, key and help.

    A subclass yields its panes in ``compose``, draws them in ``paint`` and overrides what else it needs. It handles
    ``Table.Chosen`` of its own tables.
    """

    first_pane: ClassVar[str]
    """Selector of the pane that is focused when the view opens. Every view has one, such as a ``Table``."""

    keys: ClassVar[tuple[KeyCommand, ...]] = ()
    """Commands that the view executes, from whatever view they are called."""

    shows_live: ClassVar[bool] = False
    """The view shows the run as it is now, also while the dashboard is frozen or at an earlier step."""

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(id=id)
        self.dashboard = dashboard
        self.state = dashboard.state

    def questions(self, snapshot: Snapshot) -> Iterable[Question]:  # noqa: ARG002 - for subclasses
        """Questions to send to the hub before ``snapshot`` is painted."""
        return ()

    def take_answers(self, answers: dict[str, Answer]) -> bool:  # noqa: ARG002 - for subclasses
        """Remove own answers from ``answers``; True if there is something new to draw. Called also while hidden."""
        return False

    def paint(self, snapshot: Snapshot) -> None:
        """Draw ``snapshot`` at the cursor of ``state.viewport``."""
        raise NotImplementedError

    def paint_awaited(self, snapshot: Snapshot | None, notice: str) -> None:
        """Draw what a run without steps is waiting for; ``notice`` is what its caller says about its start."""

    def commands(self) -> Mapping[str, Callable[[], object]]:
        """The functions of ``keys``, by id. They may raise ``UnavailableError``."""
        return {}

    def cursor_moved(self) -> None:
        """The cursor of the focused table moved."""

    def figures(self) -> tuple[str, list[ShownFigure]] | None:
        """Place and numbers of the focused pane, to be explained; None if it has none."""
        return None

    def confirm_switch(self, target: Target, offered: CommandRequest | None = None) -> None:
        """Open the dialog of a switch or an action; Yes sends it and unfreezes the dashboard."""
        if target.refusal or not target.choices:
            raise UnavailableError(f"{target.where}: {target.refusal or 'nothing to change'}", seconds=6)
        self.app.push_screen(Confirm(target, offered), partial(self._confirmed, target.subject.name))

    def _confirmed(self, subject: str, request: CommandRequest | None) -> None:
        """``request`` is None for No."""
        if request is not None:
            self.dashboard.requests.change(request, subject)
            self.state.frozen = None
        self.state.changed()
