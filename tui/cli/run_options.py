"""Which run a command line names, and the options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.rundir import RunDir

if TYPE_CHECKING:
    from rltop.backend.client.live import Client
    from rltop.backend.client.replay import Replay


def choose_run(name: str | None) -> RunDir:
    """The run directory of ``name``, a run's name or the path of its directory; None: of the only live run.

    Raises:
        click.ClickException: no run is live, or several are.
        RunDirError: invalid run name.
    """
    from rltop.collectors.contract.launch import list_runs

    if name is not None:
        return rundirs.at(name) if "/" in name else rundirs.for_run(name)
    if (chosen := rundirs.from_environment()) is not None:
        return chosen
    runs = list_runs(rundirs.home())
    live = [rundir for rundir, hub in runs if hub is not None]
    if len(live) == 1:
        return live[0]
    if live:
        names = ", ".join(sorted(rundir.run for rundir in live))
        raise click.ClickException(f"{len(live)} runs are live: {names}; name one")
    advice = ". `rltop demo` starts one, `rltop runs` lists all runs"
    if runs:
        name = runs[0][0].run if len(runs) == 1 else "RUN"
        subject = f"run {name!r} has" if len(runs) == 1 else f"{len(runs)} runs have"
        advice = f"; {subject} no hub: `rltop hub {name}` starts it. `rltop runs` lists all runs"
    raise click.ClickException(f"no run is live under {rundirs.home()} (RLTOP_HOME){advice}")


def existing_run(name: str | None) -> RunDir:
    """As ``choose_run``, but the directory exists and is owned by this user.

    Raises:
        click.ClickException, RunDirError: as ``choose_run``; or the directory is missing or not private.
    """
    rundir = choose_run(name)
    if not rundir.path.is_dir():
        if name is not None and Path(name).is_file():
            raise click.ClickException(
                f"{name} is a file; this command needs a run. `rltop replay {name}` shows a file"
            )
        raise click.ClickException(
            f"no run {rundir.run!r} in {rundir.path.parent}; `rltop runs` lists the runs, `rltop --help` the commands"
        )
    rundir.check()
    return rundir


def logged_run(name: str | None) -> RunDir:
    """As ``existing_run``; if no run is live, the only one that has an audit log."""
    from rltop.collectors.contract.launch import list_runs

    try:
        return existing_run(name)
    except click.ClickException:
        logged = [rundir for rundir, _ in list_runs(rundirs.home()) if name is None and rundir.audit.exists()]
        if len(logged) != 1:
            raise
        return existing_run(logged[0].argument)


def run_path(name: str | None) -> Path:
    """The run directory or recorded file that ``name`` means; None: the directory of the only live run.

    Raises:
        click.ClickException: no such run or file.
    """
    if name is None:
        return choose_run(None).path
    path = Path(name) if "/" in name or Path(name).is_file() else rundirs.for_run(name).path
    if not path.exists():
        raise click.ClickException(f"no run or file {name!r}; `rltop runs` lists the runs")
    return path


def live_rundir(path: Path) -> RunDir | None:
    """The run directory at ``path`` if it has a hub; None for a file or a run that is over."""
    from rltop.collectors.contract.launch import find_hub

    rundir = rundirs.at(str(path))
    return rundir if path.is_dir() and find_hub(rundir) is not None else None


def client_of(run: str | None) -> Client:
    """A client of the run's hub, to be closed. Raises as ``existing_run``."""
    from rltop.backend.client.live import Client

    return Client(existing_run(run))


def client_or_replay(run: str | None) -> Client | Replay:
    """A client of the run's hub; for a recorded file or a run that is over, a replay at its end. To be closed.

    Raises:
        click.ClickException, RunDirError: as ``existing_run``; or the file can't be read.
    """
    from rltop.backend.client.replay import Replay
    from rltop.backend.store.read import NAME, Reader
    from rltop.backend.store.schema import StoreError

    path = Path(run) if run is not None else None
    if path is None or not path.is_file():
        path = existing_run(run).path
        if live_rundir(path) is not None or not (path / NAME).exists():
            return client_of(run)
    try:
        return Replay(Reader(path), speed=float("inf"))
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


run_option = click.option("--run", "run", metavar="RUN", help="Run name or directory (default: the only live run).")

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")

reason_option = click.option("--reason", "why", default="", help="Reason, for the audit log.")

engines_option = click.option("--engine", "engines", multiple=True, metavar="ID", help="Only this engine (repeatable).")


def on_terminal() -> bool:
    """Whether a dashboard can be shown: Textual reads standard input and paints on standard error."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
