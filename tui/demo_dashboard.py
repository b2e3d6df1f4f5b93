"""The demo with the dashboard: the run in its own process, its progress in the header."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from rltop.backend.client.live import HubUnreachable
from rltop.backend.demo.supervisor import Demo, DemoError, DemoOptions, RunInUseError, start
from rltop.collectors.contract.launch import LaunchError
from rltop.collectors.contract.rundir import RunDirError
from rltop.tui.dashboard import run_dashboard

LEFT_EARLY = 130
"""Exit code if the user ended the run before its last step, as a shell's for ctrl-c."""

LAST_LINES = 3
POLL_S = 0.25


def run_with_dashboard(options: DemoOptions) -> int:
    """Start the run and show it. After detaching it prints a line per step; ctrl-c then ends it.

    Returns:
        As ``run_headless``, or ``LEFT_EARLY``.
    """
    click.echo(f"starting run {options.run!r} ...")
    try:
        demo = start(options)
    except (DemoError, RunInUseError, LaunchError, RunDirError, HubUnreachable) as error:
        click.echo(f"rltop demo: {error}", err=True)
        return 1
    try:
        run_dashboard(demo.rundir, control=True, notice=_notice(demo), farewell="")
        _follow(demo)
    except KeyboardInterrupt:
        click.echo("\nending engines, trainer and hub ...")
        return LEFT_EARLY
    finally:
        code = demo.stop()
    return code


def _follow(demo: Demo) -> None:
    """Print the run's log, from its last lines on, until it ends."""
    if demo.exit_code is None:
        click.echo(f"detached; the run continues: ctrl-c ends it, `rltop {demo.rundir.run}` shows it again")
    with demo.log.open() as log:
        for line in log.readlines()[-LAST_LINES:]:
            click.echo(line, nl=False)
        while demo.exit_code is None:
            click.echo(log.read(), nl=False)
            time.sleep(POLL_S)
        click.echo(log.read(), nl=False)


def _notice(demo: Demo) -> Callable[[], str]:
    """The header's notice about the run's process: boot progress, end, failure."""

    def notice() -> str:
        code = demo.exit_code
        if code is None:
            line = _tail(demo.log, 1)
            return line if "boot" in line or "is up after" in line else ""
        if code == 0:
            return "the run has finished; q detaches"
        return f"the run failed (exit code {code}): {_tail(demo.log, 1)}"

    return notice


def _tail(log: Path, lines: int) -> str:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
