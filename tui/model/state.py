"""The state of the dashboard: snapshot, viewport, timeline, and whether they have to be drawn. No widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from rltop.backend.api import Snapshot
from rltop.backend.fleet.rounding import gap_floor
from rltop.tui.model import timeline
from rltop.tui.model.alarm_focus import AlarmFocus, alarm_at, focus
from rltop.tui.model.reference import Reference
from rltop.tui.model.source import SnapshotSource, copy_of
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import TimelineMark
from rltop.tui.model.viewport import Viewport


class UnavailableError(Exception):
    """A command has nothing to act on now. The message says why; it is shown for ``seconds``."""

    def __init__(self, message: str, seconds: float = 4) -> None:
        super().__init__(message)
        self.seconds = seconds


class DashboardState:
    """One snapshot source, the viewport, and everything derived from both.

    Args:
        client: source of the snapshots.
        reference: a stored run to compare with; None for none.
        on_change: called when a command changed the state.

    Attributes:
        history: the shown steps as columns.
        marks: the shown timeline.
        floor: of the version-matched gap (``gap_floor``); None where unknown.
        focus: what the alarm is about that is open, or was at the cursor; None without one.
        viewport: axis, range and cursor of all plots.
        frozen: the snapshot that was frozen; None while the dashboard follows the run.
        dirty: the view on screen has to be drawn.
    """

    def __init__(
        self, client: SnapshotSource, reference: Reference | None = None, on_change: Callable[[], object] = bool
    ) -> None:
        self.client = client
        self._on_change = on_change
        self.history = StepColumns(reference)
        self.marks: tuple[TimelineMark, ...] = ()
        self.floor: float | None = None
        self.focus: AlarmFocus | None = None
        self.viewport = Viewport()
        self.frozen: Snapshot | None = None
        self.dirty = True

    @property
    def live(self) -> Snapshot | None:
        """The run now, also while the dashboard is frozen."""
        return self.client.view

    @property
    def shown(self) -> Snapshot | None:
        """The snapshot to draw: the frozen one, or the run now."""
        return self.frozen if self.frozen is not None else self.client.view

    def refresh(self, snapshot: Snapshot) -> None:
        """Derive columns and marks from the snapshot that is about to be drawn."""
        if self.history.update(snapshot.steps) or self.floor is None:
            self.floor = gap_floor(self.history.steps, snapshot.engines.values(), snapshot.trainer)
        self.focus = focus(alarm_at(snapshot, self.viewport.cursor), snapshot)
        self.marks = timeline.marks(snapshot, self.history)

    def commands(self) -> Mapping[str, Callable[[], object]]:
        """The commands that change the state, by id."""
        return {
            "freeze": self.toggle_freeze,
            "closer": partial(self._zoom, closer=True),
            "wider": partial(self._zoom, closer=False),
            "window": lambda: self.show(self.viewport.next_window()),
            "x_axis": lambda: self.show(self.viewport.next_axis(self.history)),
            "y_axis": lambda: self.show(replace(self.viewport, log=not self.viewport.log)),
            "step_back": partial(self._move, -1),
            "step_forward": partial(self._move, 1),
            "step_back_ten": partial(self._move, -10),
            "step_forward_ten": partial(self._move, 10),
            "first": lambda: self._move(-len(self.history.steps)),
            "latest": lambda: self.show(replace(self.viewport, cursor=None)),
            "next_mark": partial(self._move_to_mark, forward=True),
            "previous_mark": partial(self._move_to_mark, forward=False),
        }

    def show(self, viewport: Viewport) -> None:
        """Change the viewport."""
        self.viewport = viewport
        self.changed()

    def changed(self) -> None:
        """Request a repaint now, after a command."""
        self.dirty = True
        self._on_change()

    def toggle_freeze(self) -> None:
        """Freeze the snapshot that is shown, or follow the run again."""
        live = self.live
        self.frozen = None if self.frozen is not None or live is None else copy_of(live)
        self.changed()

    def go_to(self, step: int) -> None:
        """Move the cursor to ``step``, or to the last step before it."""
        self.show(self.viewport.moved_to(self.history, step))

    def marks_at_cursor(self) -> str:
        """The marks right before the step under the cursor, in one line; empty without a cursor."""
        cursor = self.viewport.cursor
        return "" if cursor is None else timeline.marks_before(self.marks, self.history, cursor)

    def _zoom(self, *, closer: bool) -> None:
        self.show(self.viewport.zoomed(self.history, closer=closer))

    def _move(self, by: int) -> None:
        self.show(self.viewport.moved(self.history, by))

    def _move_to_mark(self, *, forward: bool) -> None:
        step = timeline.next_mark(self.marks, self.history, self.viewport.cursor, forward=forward)
        if step is None:
            raise UnavailableError(f"no mark {'after' if forward else 'before'} this step", seconds=2)
        self.go_to(step)
