"""The demo with the dashboard in front: the run in a process of its own, its progress in the first line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from rltop.backend.demo.run import Demo, DemoError, DemoOptions, start
from rltop.collectors.launch import LaunchError
from rltop.collectors.rundir import RunDirError
from rltop.tui.app import run_dashboard

LEFT_EARLY = 130
"""Exit code when the person ended the run before its last step, as a shell gives for ctrl-c."""


def run_with_dashboard(options: DemoOptions) -> int:
    """Start the run, show it, and end it when the person leaves the dashboard.

    Returns:
        As ``run_headless``, or ``LEFT_EARLY``.
    """
    click.echo(f"starting run {options.run!r} ...")
    try:
        demo = start(options)
    except (DemoError, LaunchError, RunDirError) as error:
        click.echo(f"rltop demo: {error}", err=True)
        return 1
    try:
        run_dashboard(demo.rundir, control=True, notice=_notice(demo))
    finally:
        finished = demo.exit_code
        click.echo("ending the hub ..." if finished is not None else "ending engines, trainer and hub ...")
        demo.stop()
    if finished is None:
        click.echo(f"the run was ended before its last step; everything it printed is in {demo.log}")
        return LEFT_EARLY
    click.echo(_tail(demo.log, 3))
    return finished


def _notice(demo: Demo) -> Callable[[], str]:
    """What the dashboard's first line says of the run's process: boot progress, its end, its failure."""

    def notice() -> str:
        code = demo.exit_code
        if code is None:
            said = _tail(demo.log, 1)
            return said if "boot" in said or "is up after" in said else ""
        if code == 0:
            return "the run has finished; q ends the demo"
        return f"the run failed (exit code {code}): {_tail(demo.log, 1)}"

    return notice


def _tail(log: Path, lines: int) -> str:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
