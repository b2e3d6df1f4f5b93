"""Runs the dashboard on a live run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rltop.backend.api import is_over
from rltop.backend.client.live import Client
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.launch import list_runs
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.app import RltopApp
from rltop.tui.dialogs.run_picker import LiveRun
from rltop.tui.model.reference import Reference


def run_dashboard(
    rundir: RunDir,
    *,
    control: bool,
    fps: float = 4.0,
    notice: Callable[[], str] = str,
    reference: Reference | None = None,
    bell: bool = True,
    farewell: str = "detached; the run continues",
    pick: bool = False,
) -> int:
    """Show the dashboard of a run, and of those that the user switches to, until the user detaches.

    Args:
        rundir: the directory of the run; its hub may start later.
        control: flags may be switched.
        fps: repaints per second at most.
        notice: additional text of the header, read at every repaint.
        reference: a stored run to compare with; None for none.
        bell: as ``RltopApp``.
        farewell: printed after the user detached; empty for nothing.
        pick: begin with the list of live runs.

    Returns:
        The exit status.
    """
    while True:
        client = Client(rundir, control=control)
        try:
            app = RltopApp(
                client, rundir.run, control=control, fps=fps, notice=notice, reference=reference, bell=bell,
                logs=partial(log_files, rundir), runs=partial(live_runs, rundir), pick=pick,
            )  # fmt: skip
            app.run()
        finally:
            client.close()
        if not app.chosen_run:
            break
        rundir, notice, pick = run_of(app.chosen_run), str, False
    over = client.view is not None and is_over(client.view)
    if app.return_code == 0 and farewell:
        print("the run has finished" if over else farewell)  # noqa: T201 - printed on the restored terminal
    return app.return_code or 0


def log_files(rundir: RunDir) -> list[Path]:
    """The log files in the directory of a run."""
    return sorted(rundir.path.glob("*.log"))


def live_runs(shown: RunDir) -> list[LiveRun]:
    """The runs of this user that have a hub."""
    return [
        LiveRun(rundir.run, rundir.argument, str(rundir.path), rundir.path == shown.path)
        for rundir, hub in list_runs(rundirs.home())
        if hub is not None
    ]


def run_of(argument: str) -> RunDir:
    """The directory of the run that an argument means."""
    return rundirs.at(argument) if "/" in argument else rundirs.for_run(argument)
