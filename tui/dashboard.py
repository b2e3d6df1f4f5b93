"""The dashboard of a live run, from the first line to the last word."""

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
    farewell: str = "detached; the run goes on",
) -> int:
    """Show the dashboard of a run until the person leaves it.

    Args:
        rundir: where the run's hub listens, now or later.
        control: flags may be switched.
        fps: repaints per second at most.
        notice: asked at every repaint for what else the first line should say; empty for nothing.
        reference: a stored run to hold this one against; None for nothing.
        bell: as ``RltopApp``.
        farewell: the last word on the terminal when the person left; empty for none.

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
        print(farewell)  # noqa: T201 - the last word, on the terminal
    return app.return_code or 0
