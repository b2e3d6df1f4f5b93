"""The dialog that lists live runs, to show another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column, Table


@dataclass(frozen=True)
class LiveRun:
    """A run with a hub: its name, the argument that means it, its directory, and whether it is on screen."""

    name: str
    argument: str
    directory: str
    shown: bool


RUNS: tuple[Column[LiveRun], ...] = (
    Column("", 1, lambda run: ("●" if run.shown else " ", theme.GOOD), right=False),
    Column("run", 24, lambda run: (run.name, theme.STRONG), right=False),
    Column("directory", 20, lambda run: (run.directory, theme.FAINT), right=False),
)


class RunPicker(ModalScreen[str | None]):
    """Lists live runs. Returns the argument of the chosen one; None for none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Close"),
        Binding("down,j", "move(1)", "Down"),
        Binding("up,k", "move(-1)", "Up"),
        Binding("enter", "choose", "Show"),
    ]

    def __init__(self, runs: Sequence[LiveRun]) -> None:
        super().__init__()
        self._runs = runs
        self._table: Table[LiveRun] = Table(RUNS, lambda run: run.argument, empty="no run is live", id="runs")

    def compose(self) -> ComposeResult:
        """A title and the table."""
        with Vertical(classes="dialog"):
            yield Static("live runs: enter shows one, esc closes")
            yield self._table

    def on_mount(self) -> None:
        """Fill the table, the first other run selected."""
        self._table.styles.height = len(self._runs) + 1
        self._table.set_items(self._runs)
        self._table.focus()
        self._table.move(next((i for i, run in enumerate(self._runs) if not run.shown), 0))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._table.move(by)

    def action_choose(self) -> None:
        """Return the selected run."""
        selected = self._table.selected
        self.dismiss(None if selected is None or selected.shown else selected.argument)

    def on_table_chosen(self, event: Table.Chosen) -> None:
        """A second click on a run."""
        item: Any = event.item
        self.dismiss(None if item.shown else item.argument)
