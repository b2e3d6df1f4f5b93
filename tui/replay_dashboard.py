"""Runs the dashboard on a stored run, read-only."""

from __future__ import annotations

from rltop.backend.client.replay import Replay
from rltop.tui.app import RltopApp
from rltop.tui.model.reference import Reference


def run_replay(replay: Replay, *, fps: float = 4.0, reference: Reference | None = None) -> int:
    """Show the replay until the user detaches. Returns the exit status."""
    try:
        app = RltopApp(
            replay, replay.view.run, fps=fps, notice=lambda: replay.progress, reference=reference, bell=False
        )
        app.run()
    finally:
        replay.close()
    return app.return_code or 0
