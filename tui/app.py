"""The dashboard: one client, one timer, views that are drawn from the client's picture and hold nothing of the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

from textual.app import App, ComposeResult
from textual.command import CommandPalette as Palette
from textual.widgets import ContentSwitcher

from rltop.backend.alarms.notified import NotificationHistory
from rltop.backend.api import Snapshot
from rltop.backend.api.alarm import CLEARED, Alarm
from rltop.backend.api.verdict import Cause
from rltop.tui.dialogs.effect_panel import EffectPage
from rltop.tui.dialogs.info_dialogs import GoTo, Page, engine_page, help_page, numbers_page, page_width
from rltop.tui.dialogs.notifications import SILENCE_S, notification, probe_of, probe_question
from rltop.tui.dialogs.requests import ControlRequests
from rltop.tui.dialogs.switch_dialog import CommandQuestion, CommandRequest, Confirm, keep_question, undo_question
from rltop.tui.model import explain, timeline, viewport
from rltop.tui.model.changes import Entry, deed
from rltop.tui.model.fleet_table import Row
from rltop.tui.model.key_commands import BY_ID, NEEDS_CONTROL
from rltop.tui.model.past_engines import PastEngines
from rltop.tui.model.reference import Reference
from rltop.tui.model.source import SnapshotSource, hold
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.switchable import Target, targets
from rltop.tui.model.timeline import TimelineMark
from rltop.tui.model.viewport import Viewport
from rltop.tui.palette import CommandPalette, key_bindings
from rltop.tui.views import status_lines
from rltop.tui.views.control import ControlView
from rltop.tui.views.diagnosis_view import DiagnosisView
from rltop.tui.views.mismatch import MismatchView
from rltop.tui.views.overview import OverviewView
from rltop.tui.views.plot import Plot
from rltop.tui.views.remedy import remedy_of
from rltop.tui.widgets.line_widget import LineWidget, zoom
from rltop.tui.widgets.repaint import NarrowScreen
from rltop.tui.widgets.table import Table
from rltop.tui.widgets.terminal import RepaintPacer, backlog, end_with_terminal, send

T = TypeVar("T")

MIN_FPS, MAX_FPS = 0.5, 10.0


class RltopApp(App[int]):
    """``top`` for one run.

    Args:
        client: where the picture comes from; the app polls it and never closes it.
        run: the run's name.
        control: flags may be switched; otherwise the keys say why not.
        fps: repaints per second at most.
        notice: what else the first line should say now; empty for nothing.
        reference: a stored run to hold this one against; None for nothing.
        bell: ring, and have the terminal show a notification, when an alarm is raised.
        clock: monotonic seconds.
    """

    CSS_PATH = "app.tcss"
    TITLE = "rltop"
    COMMANDS = {CommandPalette}  # noqa: RUF012 - as Textual declares it
    ENABLE_COMMAND_PALETTE = False  # its key is one of ours
    BINDINGS = key_bindings()

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self.theme = "ansi-dark"
        self.client = client
        self.run_name = run
        self.control = control
        self.history = StepColumns(reference)
        self.sight = Viewport()
        self.pace = RepaintPacer(fps)
        self._notice = notice
        self._clock = clock
        self._frozen: Snapshot | None = None
        self._dirty = True
        self._marks: tuple[TimelineMark, ...] = ()
        self._pasts = PastEngines()
        self._rings, self._told = bell, NotificationHistory()
        self._orders = ControlRequests(client, lambda: self._clock(), self._tell)
        self._header, self._footer = LineWidget(id="header"), LineWidget(id="footer")
        self._overview, self._control = OverviewView(id="overview"), ControlView(allowed=control, id="control")
        self._mismatch, self._diagnosis = MismatchView(id="mismatch"), DiagnosisView(allowed=control, id="diagnosis")
        self._views = ContentSwitcher(
            self._overview, self._mismatch, self._diagnosis, self._control, initial="overview"
        )

    def get_default_screen(self) -> NarrowScreen:
        """See ``repaint``."""
        return NarrowScreen(id="_default")

    def compose(self) -> ComposeResult:
        """A line, a view, a line."""
        yield self._header
        yield self._views
        yield self._footer

    def on_mount(self) -> None:
        """Start the one timer."""
        if not self.is_headless:
            end_with_terminal(sys.stdin.fileno())
        self._overview.query_one("#fleet").focus()
        self._timer = self.set_interval(1 / self.pace.hz, self.tick)
        self.call_after_refresh(self.tick)

    def on_resize(self) -> None:
        """Lines have another length."""
        self._dirty = True
        self.call_after_refresh(self.paint)

    # --- the picture ------------------------------------------------------------------------------------------------

    @property
    def view(self) -> Snapshot | None:
        """The picture that is shown: the client's, or the one that was frozen."""
        return self._frozen if self._frozen is not None else self.client.view

    def tick(self) -> None:
        """Take what has come; paint if the link keeps up and nothing stands in front."""
        changed = self.client.poll()
        self._dirty |= changed and (self._frozen is None or self._views.current == "control")
        self._orders.take_answers()
        self._dirty |= self._mismatch.take(self.client.answers) | self._pasts.take(self.client.answers)
        self._dirty |= self._diagnosis.take(self.client.answers)
        self._ring()
        if len(self.screen_stack) == 1 and self.pace.tick(self._clock(), backlog(self)):
            self.paint()

    def paint(self) -> None:
        """Bring the screen up to date. Costs little where nothing changed."""
        view = self.view
        width = self.size.width
        with self.batch_update():
            if self._dirty and view is not None:
                self._dirty = False
                self.history.update(view.steps)
                self._marks = timeline.marks(view, self.history)
                if self._views.current == "overview":
                    self._ask_past(view)
                    self._overview.paint(
                        view,
                        self.history,
                        self.sight,
                        self._marks,
                        self._pasts.fleet(view, self.history, self.sight.cursor),
                    )
                elif self._views.current == "mismatch":
                    for question in self._mismatch.questions(view, viewport.in_steps(self.sight, self.history)):
                        self.client.ask(question)
                    self._mismatch.paint(view)
                elif self._views.current == "diagnosis":
                    for question in self._diagnosis.questions(view, self.sight, frozen=self._frozen is not None):
                        self.client.ask(question)
                    self._diagnosis.paint(view)
                else:  # what can be commanded is what is, not what was
                    self._control.paint(self.client.view or view, self.history.closed(self.sight.cursor))
            self._header.show([status_lines.header(self.run_name, view, self._state(), width)])
            self._footer.show([status_lines.footer(str(self._views.current), control=self.control, width=width)])

    def _state(self) -> status_lines.ViewState:
        reference = self.history.reference
        frozen_at = behind = None
        if self._frozen is not None:
            frozen_at = max(self._frozen.steps, default=-1)
            behind = max(self.client.view.steps if self.client.view else (), default=-1) - frozen_at
        return status_lines.ViewState(
            state=self.client.state,
            age_s=self.client.age_s,
            frozen_at=frozen_at,
            behind=behind or 0,
            reading=self.sight.cursor,
            there=self._there(),
            range=viewport.shown(self.sight, self.history),
            live=self._views.current == "control",
            slow_hz=self.pace.painting_hz if self.pace.slow else None,
            notice=", ".join(filter(None, (self._notice(), reference.text if reference else ""))),
            alarm=self.client.view.alarm if self.client.view is not None else None,
            now=self.client.view.time if self.client.view is not None else 0.0,
        )

    def _ask_past(self, view: Snapshot) -> None:
        question = self._pasts.question(view, self.sight.cursor, self._clock())
        if question is not None:
            self.client.ask(question)

    def _there(self) -> str:
        cursor = self.sight.cursor
        return "" if cursor is None else timeline.told_at(self._marks, self.history, cursor)

    def _ring(self) -> None:
        """Tell of an alarm, once."""
        view = self.client.view
        for news in self._told.new_changes(view.alarms.values(), view.time) if view is not None else ():
            if self._rings and news.what != CLEARED:
                self.bell()
                send(self, notification(news.alarm, self.run_name))

    def _look(self, at: Viewport) -> None:
        self.sight = at
        self._repaint()

    def _repaint(self) -> None:
        self._dirty = True
        self.paint()

    # --- commands ---------------------------------------------------------------------------------------------------

    def action_command(self, command_id: str) -> None:
        """What every key is bound to."""
        self.command(command_id)

    def command(self, command_id: str) -> None:
        """Do a command of the table, or say why not."""
        if BY_ID[command_id].needs_control and not self.control:
            self.notify(NEEDS_CONTROL, severity="warning", timeout=4)
            return
        self._doing()[command_id]()

    def _doing(self) -> dict[str, Callable[[], object]]:
        """What each command of the table does."""
        return {
            "help": lambda: self.push_screen(help_page(page_width(self.size.width), control=self.control)),
            "palette": lambda: self.push_screen(Palette()),
            "overview": partial(self._go, "overview", "#fleet"),
            "mismatch": partial(self._go, "mismatch", "#places"),
            "next_list": self._next_list,
            "diagnosis": partial(self._go, "diagnosis", "#causes"),
            "acknowledge": partial(self._on_alarm, lambda alarm: self._orders.acknowledge(alarm.id)),
            "silence": partial(self._on_alarm, lambda alarm: self._orders.silence(alarm.id, SILENCE_S)),
            "remedy": self._remedy,
            "probe": self._probe,
            "control": partial(self._go, "control", "#flags"),
            "journal": partial(self._go, "control", "#journal"),
            "freeze": self._freeze,
            "zoom": self._zoom,
            "explain": self._explain,
            "closer": lambda: self._look(viewport.zoomed(self.sight, self.history, closer=True)),
            "wider": lambda: self._look(viewport.zoomed(self.sight, self.history, closer=False)),
            "window": lambda: self._look(viewport.next_window(self.sight)),
            "x_axis": lambda: self._look(viewport.next_axis(self.sight, self.history)),
            "y_axis": lambda: self._look(replace(self.sight, log=not self.sight.log)),
            "step_back": partial(self._read, -1),
            "step_forward": partial(self._read, 1),
            "step_back_ten": partial(self._read, -10),
            "step_forward_ten": partial(self._read, 10),
            "first": lambda: self._read(-len(self.history.steps)),
            "latest": lambda: self._look(replace(self.sight, cursor=None)),
            "go_to": lambda: self.push_screen(GoTo(), lambda step: None if step is None else self.go_to(step)),
            "next_mark": partial(self._read_mark, forward=True),
            "previous_mark": partial(self._read_mark, forward=False),
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
            "sort": lambda: self._on_table(Table.sort_next),
            "sort_reverse": lambda: self._on_table(Table.sort_reverse),
            "open": lambda: self._on_table(Table.choose),
            "back": self._back,
            "every_engine": self._fold,
            "switch": self._ask_switch,
            "keep": self._keep,
            "undo": self._undo,
            "effect": self._show_effect,
            "pause": partial(self._act, "generation"),
            "flush": partial(self._act, "prefix cache"),
            "screenshot": lambda: self.notify(f"saved {self.save_screenshot()}", timeout=4),
            "quit": lambda: self.exit(0),
        }

    def _freeze(self) -> None:
        view = self.client.view
        self._frozen = None if self._frozen is not None or view is None else hold(view)
        self._repaint()

    def _zoom(self) -> None:
        view = self._views.visible_content
        if view is not None:
            zoom(view, self.focused)
            self._repaint()

    def _back(self) -> None:
        view = self._views.visible_content
        if view is not None and view.has_class("zoomed"):
            self._zoom()
        else:
            self._go("overview", "#fleet")

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """Enter on a line: facts of an engine, the question before a switch, or the effect of a change."""
        if isinstance(event.item, Row):
            if event.item.engine is None:
                self.notify(f"nobody kept the facts of {event.item.id} at this step", severity="warning", timeout=4)
            else:
                self.push_screen(engine_page(event.item.engine, page_width(self.size.width)))
        elif isinstance(event.item, Target):
            self.command("switch")
        elif isinstance(event.item, Entry):
            self.command("effect")
        elif (text := self._mismatch.choose(event.item) or self._diagnosis.choose(event.item)) is not None:
            self.push_screen(Page(text))
        else:
            self._repaint()

    def _explain(self) -> None:
        found = self._figures()
        if found is None or not found[1]:
            self.notify(explain.NOTHING, severity="warning", timeout=4)
        else:
            self.push_screen(numbers_page(*found, page_width(self.size.width)))

    def _figures(self) -> tuple[str, list[explain.ShownFigure]] | None:
        """What has the focus: whose figures, and which."""
        if self._views.current == "mismatch":
            return self._mismatch.figures()
        if isinstance(self.focused, Plot):
            return self.focused.figures()
        if isinstance(self.focused, Table) and isinstance(engine := self.focused.selected, Row):
            step = self._pasts.step(self.history, self.sight.cursor)
            values = step.engines.get(engine.id, {}) if step else {}
            named = [(column.title, metric) for column in self.focused.explained() for metric in column.metrics]
            where = f"{engine.id}, {f'step {step.step}' if step else 'no step yet'}"
            return where, [explain.in_step(title, metric, values) for title, metric in named]
        return None

    def _next_list(self) -> None:
        if self._views.current == "mismatch":
            self._mismatch.next_list()
            self._repaint()
            self.query_one(self._mismatch.list_id).focus()

    def _go(self, view: str, focus: str) -> None:
        self._views.current = view
        self.query_one(focus).focus()
        self._dirty = True
        self.call_after_refresh(self.paint)

    def _fold(self) -> None:
        self._control.toggle_engines()
        self._repaint()

    def _show_effect(self) -> None:
        change = self._control.change if self._views.current == "control" else None
        if change is None:
            self.notify("put the cursor of the control view on a change", severity="warning", timeout=4)
            return
        width = page_width(self.size.width)
        command = change.target if change.verb == "keep" else change.command
        self.push_screen(EffectPage(command, deed(change), self.client, lambda: self._clock(), width))

    def _tell(self, text: str, severity: Literal["warning", "error"]) -> None:
        self.notify(text, severity=severity, timeout=10)

    def _read(self, by: int) -> None:
        self._look(viewport.moved(self.sight, self.history, by))

    def go_to(self, step: int) -> None:
        """Read everything at ``step``, or the last one before it that there is."""
        self._look(viewport.gone_to(self.sight, self.history, step))

    def _read_mark(self, *, forward: bool) -> None:
        step = timeline.next_mark(self._marks, self.history, self.sight.cursor, forward=forward)
        if step is None:
            self.notify(f"no mark {'after' if forward else 'before'} this step", severity="warning", timeout=2)
        else:
            self.go_to(step)

    def _on_table(self, do: Callable[[Table[Any]], object]) -> None:
        if isinstance(self.focused, Table):
            do(self.focused)
            self._control.explain()
            self._diagnosis.explain()

    def _set_fps(self, hz: float) -> None:
        self.pace = RepaintPacer(hz)
        self._timer.stop()
        self._timer = self.set_interval(1 / hz, self.tick)
        self.notify(f"painting at most {hz:g} times a second", timeout=2)

    # --- commands to the run ----------------------------------------------------------------------------------------

    def _ask_switch(self) -> None:
        target = self._control.selected
        if self._views.current != "control" or target is None:
            self._go("control", "#flags")
        else:
            self._confirm(target)

    def _confirm(self, target: Target) -> None:
        if target.refusal or not target.choices:
            self.notify(f"{target.where}: {target.refusal or 'nothing to change'}", severity="warning", timeout=6)
        else:
            self.push_screen(Confirm(target), partial(self._change, target.subject.name))

    def _change(self, subject: str, wish: CommandRequest | None) -> None:
        """The question was answered; ``wish`` is None for No."""
        if wish is not None:
            self._orders.change(wish, subject)
            self._frozen = None
        self._repaint()

    def _on_alarm(self, do: Callable[[Alarm], None]) -> None:
        alarm = self.client.view.alarm if self.client.view is not None else None
        if alarm is None:
            self.notify("no alarm is open", severity="warning", timeout=4)
        else:
            do(alarm)

    def _remedy(self) -> None:
        """Ask whether to switch what cures the cause under the cursor."""
        if found := self._about_cause(remedy_of):
            (target, wish), _ = found
            self.push_screen(Confirm(target, wish), partial(self._change, target.subject.name))

    def _probe(self) -> None:
        """Ask whether to start the probe that would tell the cause under the cursor."""
        if found := self._about_cause(probe_of):
            probe, view = found

            def answered(why: str | None) -> None:
                if why is not None:
                    self._orders.probe(probe, why)

            self.push_screen(probe_question(probe, view), answered)

    def _about_cause(self, find: Callable[[Cause, Snapshot], T]) -> tuple[T, Snapshot] | None:
        """What can be done about the cause under the cursor, and the picture; None after saying why nothing."""
        cause, view = self._diagnosis.cause, self.client.view
        if self._views.current != "diagnosis" or cause is None or view is None:
            self.notify("put the cursor of the diagnosis (4) on a cause", severity="warning", timeout=4)
            return None
        try:
            return find(cause, view), view
        except ValueError as why_not:
            self.notify(str(why_not), severity="warning", timeout=8)
            return None

    def _act(self, subject: str) -> None:
        """Do on the whole fleet what the table of actions has for ``subject``."""
        view = self.client.view
        found = [t for t in targets(view) if t.engine is None and t.subject.name == subject] if view else []
        if found:
            self._confirm(found[0])

    def _keep(self) -> None:
        command, view = self._control.timed, self.client.view
        found = keep_question(view, command) if view is not None and command is not None else None
        self._plainly(found, self._orders.keep, "no timer runs under the cursor")

    def _undo(self) -> None:
        change, view = self._control.change, self.client.view
        found = undo_question(view, change) if view is not None and change is not None else None
        self._plainly(found, self._orders.undo, "the change under the cursor changed nothing that can be undone")

    def _plainly(self, found: CommandQuestion | None, do: Callable[[str, str, str], None], why_not: str) -> None:
        """Ask, and with a yes do it to the command that it is about."""
        if found is None:
            self.notify(why_not, severity="warning", timeout=4)
            return

        def answered(why: str | None) -> None:
            if why is not None:
                do(found.command, found.what, why)
            self._repaint()

        self.push_screen(found.question, answered)
