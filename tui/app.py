"""The dashboard: connects one snapshot source, one timer, the views and the key commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from textual.app import App, ComposeResult
from textual.command import CommandPalette as Palette
from textual.widgets import ContentSwitcher

from rltop.tui.dialogs.info_dialogs import FilterInput, GoTo, help_page, numbers_page, page_width
from rltop.tui.dialogs.notifications import AlarmBell
from rltop.tui.dialogs.requests import ControlRequests
from rltop.tui.dialogs.run_picker import LiveRun, RunPicker
from rltop.tui.model import explain
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.reference import Reference
from rltop.tui.model.source import SnapshotSource
from rltop.tui.model.state import DashboardState, UnavailableError
from rltop.tui.palette import CommandPalette, key_bindings
from rltop.tui.views import registry, status_lines
from rltop.tui.views.registry import BY_ID, VIEWS
from rltop.tui.views.tab_bar import TabBar
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets.line_widget import LineWidget, zoom
from rltop.tui.widgets.repaint import NarrowScreen
from rltop.tui.widgets.table import Table
from rltop.tui.widgets.terminal import RepaintPacer, backlog, end_with_terminal

MIN_FPS, MAX_FPS = 0.5, 10.0


class RltopApp(App[int]):
    """``top`` for one run.

    Args:
        client: source of the snapshots; the app polls it and never closes it.
        run: the run's name.
        control: flags may be switched; otherwise the keys show why not.
        fps: repaints per second at most.
        notice: additional text of the first line; empty for none.
        reference: a stored run to compare with; None for none.
        bell: ring, and send a desktop notification through the terminal, when an alarm is raised.
        logs: the log files of the run that can be read here.
        runs: the live runs that can be shown instead.
        pick: begin with the list of runs.
        clock: monotonic seconds.

    Attributes:
        chosen_run: the argument of the run to show instead, once the user has chosen one; empty before.
    """

    CSS_PATH = "app.tcss"
    TITLE = "rltop"
    COMMANDS = {CommandPalette}  # noqa: RUF012 - as Textual declares it
    ENABLE_COMMAND_PALETTE = False  # rltop uses its key
    BINDINGS = key_bindings(registry.COMMANDS)

    def __init__(
        self,
        client: SnapshotSource,
        run: str,
        *,
        control: bool = False,
        fps: float = 4.0,
        notice: Callable[[], str] = str,
        reference: Reference | None = None,
        bell: bool = True,
        logs: Callable[[], Sequence[Path]] = list,
        runs: Callable[[], Sequence[LiveRun]] = list,
        pick: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self.theme = "ansi-dark"
        self.commands = registry.COMMANDS
        self.client = client
        self.run_name = run
        self.control = control
        self.state = DashboardState(client, reference, self.paint)
        self.pace = RepaintPacer(fps)
        self._notice = notice
        self._clock = clock
        self._bell = AlarmBell(self, run, enabled=bell)
        self._requests = ControlRequests(client, lambda: self._clock(), self._show_problem)
        dashboard = Dashboard(
            self.state, self._requests, control, lambda: self._clock(), self.command, self._open, run, logs
        )
        self._header, self._sentence, self._footer = (LineWidget(id=i) for i in ("header", "sentence", "footer"))
        self._runs, self._pick = runs, pick
        self.chosen_run = ""
        self._tabs = TabBar([entry.title for entry in VIEWS])
        self._visited: list[str] = []
        self._all_views = [entry.view(dashboard, id=entry.id) for entry in VIEWS]
        self._views = ContentSwitcher(*self._all_views, initial=VIEWS[0].id)

    def get_default_screen(self) -> NarrowScreen:
        """See ``repaint``."""
        return NarrowScreen(id="_default")

    def compose(self) -> ComposeResult:
        """Header, state of the run, current view, footer."""
        yield self._header
        yield self._sentence
        yield self._tabs
        yield self._views
        yield self._footer

    def on_mount(self) -> None:
        """Start the one timer."""
        if not self.is_headless:
            end_with_terminal(sys.stdin.fileno())
        self._current.query_one(self._current.first_pane).focus()
        self._timer = self.set_interval(1 / self.pace.hz, self.tick)
        self.call_after_refresh(self.tick)
        if self._pick:
            self.call_after_refresh(self._pick_run)

    def on_resize(self) -> None:
        """Draw again once the new layout is known: lines have another length."""
        self.call_after_refresh(self.state.changed)

    # --- painting ---------------------------------------------------------------------------------------------------

    @property
    def _current(self) -> View:
        """The view on screen."""
        return next(view for view in self._all_views if view.id == self._views.current)

    def tick(self) -> None:
        """Receive what has arrived; paint if the terminal keeps up and no dialog is open."""
        changed = self.client.poll()
        self.state.dirty |= changed and (self.state.frozen is None or self._current.shows_live)
        self._requests.take_answers()
        for view in self._all_views:
            self.state.dirty |= view.take_answers(self.client.answers)
        if self.state.live is not None:
            self._bell.update(self.state.live)
        if len(self.screen_stack) == 1 and self.pace.tick(self._clock(), backlog(self)):
            self.paint()

    def paint(self) -> None:
        """Bring the screen up to date. Cheap where nothing changed."""
        if not self.is_running:  # the timer may fire while the widgets are removed
            return
        snapshot, view = self.state.shown, self._current
        with self.batch_update():
            notice = self._notice()
            if snapshot is None or not snapshot.steps:
                view.paint_awaited(snapshot, notice)
            if self.state.dirty and snapshot is not None:
                self.state.dirty = False
                self.state.refresh(snapshot)
                for question in view.questions(snapshot):
                    self.client.ask(question)
                view.paint(snapshot)
            width, slow_hz = self.size.width, self.pace.painting_hz if self.pace.slow else None
            header = status_lines.header(
                self.run_name, self.state, width, live=view.shows_live, slow_hz=slow_hz, notice=notice,
                control=self.control,
            )  # fmt: skip
            self._header.show([header])
            self._sentence.show([status_lines.sentence(self.state, width)])
            self._tabs.show_tab(self._all_views.index(view), BY_ID[self._visited[-1]].title if self._visited else "")
            self._footer.show([status_lines.footer(registry.COMMANDS, str(view.id), control=self.control, width=width)])

    # --- commands ---------------------------------------------------------------------------------------------------

    def action_command(self, command_id: str) -> None:
        """The action that every key is bound to."""
        self.command(command_id)

    def command(self, command_id: str) -> None:
        """Execute a command, or show why it is unavailable."""
        try:
            if BY_ID[command_id].needs_control and not self.control:
                raise UnavailableError(NEEDS_CONTROL)
            self._functions[command_id]()
        except UnavailableError as reason:
            self.notify(str(reason), severity="warning", timeout=reason.seconds)

    @cached_property
    def _functions(self) -> dict[str, Callable[[], object]]:
        """The function of every command: the state's, the views' and the app's own."""
        functions = dict(self.state.commands())
        for view in self._all_views:
            functions[str(view.id)] = partial(self._open, view, view.first_pane)
            functions |= view.commands()
        return functions | {
            "help": self._show_help,
            "runs": self._pick_run,
            "palette": lambda: self.push_screen(Palette()),
            "screenshot": lambda: self.notify(f"saved {self.save_screenshot()}", timeout=4),
            "quit": lambda: self.exit(0),
            "zoom": self._zoom,
            "explain": self._explain,
            "go_to": lambda: self.push_screen(GoTo(), lambda step: None if step is None else self.go_to(step)),
            "slower": lambda: self._set_fps(max(self.pace.hz / 2, MIN_FPS)),
            "faster": lambda: self._set_fps(min(self.pace.hz * 2, MAX_FPS)),
            "next_pane": lambda: self.screen.focus_next(),
            "previous_pane": lambda: self.screen.focus_previous(),
            "down": lambda: self._on_table(lambda table: table.move(1)),
            "up": lambda: self._on_table(lambda table: table.move(-1)),
            "page_down": lambda: self._on_table(lambda table: table.move(10)),
            "page_up": lambda: self._on_table(lambda table: table.move(-10)),
            "top": lambda: self._on_table(lambda table: table.move(-len(table.items))),
            "bottom": lambda: self._on_table(lambda table: table.move(len(table.items))),
            "filter": self._filter,
            "sort": lambda: self._on_table(Table.sort_next),
            "sort_reverse": lambda: self._on_table(Table.sort_reverse),
            "open": lambda: self._on_table(Table.choose),
            "back": self._back,
        }

    def go_to(self, step: int) -> None:
        """Show every view at ``step``, or at the last step before it."""
        self.state.go_to(step)

    def _pick_run(self) -> None:
        """List the live runs; the chosen one replaces this one."""
        runs = self._runs()
        if not runs:
            raise UnavailableError("a stored run is shown: there is no other run to switch to")

        def chosen(run: str | None) -> None:
            if run is not None:
                self.chosen_run = run
                self.exit(0)

        self.push_screen(RunPicker(runs), chosen)

    def _show_help(self) -> None:
        self.push_screen(help_page(self.commands, page_width(self.size.width), control=self.control))

    def on_tab_bar_chosen(self, event: TabBar.Chosen) -> None:
        """Open the tab that was clicked."""
        self.command(VIEWS[event.index].id)

    def _open(self, view: View, pane: str) -> None:
        """Show a view; esc returns from it to the one before, and from the Overview nowhere."""
        before = str(self._current.id)
        if view.id == VIEWS[0].id:
            self._visited.clear()
        elif view.id != before:
            self._visited = [*(one for one in self._visited if one not in (view.id, before)), before]
        self._show_view(view, pane)

    def _show_view(self, view: View, pane: str) -> None:
        self._views.current = view.id
        view.query_one(pane).focus()
        self.call_after_refresh(self.state.changed)

    def _zoom(self) -> None:
        zoom(self._current, self.focused)
        self.state.changed()

    def _back(self) -> None:
        if self._current.has_class("zoomed"):
            self._zoom()
        elif isinstance(self.focused, Table) and self.focused.filter_text:
            self.focused.filter_by("")
        elif self._visited:
            view = next(view for view in self._all_views if view.id == self._visited[-1])
            self._visited.pop()
            self._show_view(view, view.first_pane)
        else:
            self.command(VIEWS[0].id)

    def _filter(self) -> None:
        """Ask for the filter of the focused table, or of the view's first one."""
        table = self.focused if isinstance(self.focused, Table) else self._current.query(Table).first()

        def entered(text: str | None) -> None:
            try:
                if text is not None:
                    table.filter_by(text)
                    table.focus()
            except ValueError as error:
                self.notify(str(error), severity="warning", timeout=6)

        self.push_screen(FilterInput(table.filter_text), entered)

    def _explain(self) -> None:
        found = self._current.figures()
        if found is None or not found[1]:
            raise UnavailableError(explain.NOTHING)
        self.push_screen(numbers_page(*found, page_width(self.size.width)))

    def _on_table(self, act: Callable[[Table[Any]], object]) -> None:
        if isinstance(self.focused, Table):
            act(self.focused)
            self._current.cursor_moved()

    def _set_fps(self, hz: float) -> None:
        self.pace = RepaintPacer(hz)
        self._timer.stop()
        self._timer = self.set_interval(1 / hz, self.tick)
        self.notify(f"at most {hz:g} repaints a second", timeout=2)

    def _show_problem(self, text: str, severity: Literal["warning", "error"]) -> None:
        self.notify(text, severity=severity, timeout=10)
