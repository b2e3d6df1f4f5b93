"""Runs the dashboard on a live run."""

from __future__ import annotations

from collections.abc import Callable

from rltop.backend.client.live import Client
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.app import RltopApp
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
) -> int:
    """Show the dashboard of a run until the user detaches.

    Args:
        rundir: the directory of the run; its hub may start later.
        control: flags may be switched.
        fps: repaints per second at most.
        notice: additional text of the header, read at every repaint.
        reference: a stored run to compare with; None for none.
        bell: as ``RltopApp``.
        farewell: printed after the user detached; empty for nothing.

    Returns:
        The exit status.
    """
    client = Client(rundir)
    try:
        app = RltopApp(client, rundir.run, control=control, fps=fps, notice=notice, reference=reference, bell=bell)
        app.run()
    finally:
        client.close()
    if app.return_code == 0 and farewell:
        print(farewell)  # noqa: T201 - printed on the restored terminal
    return app.return_code or 0
