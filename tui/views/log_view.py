"""The Log view: the ends of the log files of a run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.style import Style
from textual.app import ComposeResult

from rltop.backend.api import Snapshot
from rltop.tui.views.view import Dashboard, View
from rltop.tui.widgets import theme
from rltop.tui.widgets.table import Column, Table

TAIL_BYTES = 64_000
"""Bytes that are read from the end of each file."""

READ_S = 1.0
"""Seconds between two readings."""


@dataclass(frozen=True)
class LogLine:
    """A line of a log file, and its number from the start of what was read."""

    file: str
    number: int
    text: str


LOG: tuple[Column[LogLine], ...] = (
    Column("file", 14, lambda line: (line.file, theme.FAINT), sort=lambda line: line.file, right=False),
    Column("line", 40, lambda line: (line.text, _style(line.text)), right=False),
)


def _style(text: str) -> Style:
    lowered = text.lower()
    if "error" in lowered or "traceback" in lowered:
        return theme.BAD
    return theme.WARN if "warn" in lowered else theme.PLAIN


def tail(path: Path) -> list[LogLine]:
    """The last lines of a file, newest first; empty if it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            start = max(file.tell() - TAIL_BYTES, 0)
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    whole = lines[1:] if start else lines  # the first one is cut
    return [LogLine(path.stem, start + n, line) for n, line in enumerate(whole) if line.strip()][::-1]


class LogView(View):
    """The log files in the run's directory, newest lines first; read once a second while on screen."""

    first_pane = "#log"
    shows_live = True

    def __init__(self, dashboard: Dashboard, *, id: str) -> None:  # noqa: A002 - as Widget's
        super().__init__(dashboard, id=id)
        self._read = -READ_S

    def compose(self) -> ComposeResult:
        """One table."""
        empty = "no log of this run can be read here: its directory is on another machine, or it is a recording"
        yield Table(LOG, lambda line: f"{line.file}@{line.number}", empty=empty, id="log", log=True)

    def paint(self, snapshot: Snapshot) -> None:
        """As ``View``."""
        del snapshot
        now = self.dashboard.clock()
        if now - self._read >= READ_S:
            self._read = now
            lines = [line for path in self.dashboard.logs() for line in tail(path)]
            self.query_one("#log", Table).set_items(lines)
