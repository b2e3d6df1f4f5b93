"""Which run a command line means, and the options that its commands share."""

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
    """The run that ``name`` means: a run's name, a path of a run directory, or, if None, the only one that is live.

    Raises:
        click.ClickException: there is none, or more than one.
        RunDirError: the name can't be a run's.
    """
    from rltop.collectors.contract.launch import list_runs

    if name is not None:
        return rundirs.at(name) if "/" in name else rundirs.for_run(name)
    if (named := rundirs.from_environment()) is not None:
        return named
    live = [rundir for rundir, hub in list_runs(rundirs.home()) if hub is not None]
    if len(live) == 1:
        return live[0]
    if live:
        names = ", ".join(sorted(rundir.run for rundir in live))
        raise click.ClickException(f"{len(live)} runs are live: {names}; name one")
    if found := list_runs(rundirs.home()):
        name = found[0][0].run
        which = f"run {name!r} has" if len(found) == 1 else f"{len(found)} runs have"
        raise click.ClickException(
            f"no run is live under {rundirs.home()} (RLTOP_HOME); {which} no hub, which `rltop hub "
            f"{name if len(found) == 1 else 'RUN'}` brings back. `rltop runs` lists what is there"
        )
    raise click.ClickException(
        f"no run is live under {rundirs.home()} (RLTOP_HOME). `rltop demo` starts one, `rltop runs` lists what is there"
    )


def existing_run(name: str | None) -> RunDir:
    """The run that ``name`` means, whose directory is there and is this user's own.

    Raises:
        click.ClickException, RunDirError: as ``choose_run``; or there is no such directory, or it can't be trusted.
    """
    rundir = choose_run(name)
    if not rundir.path.is_dir():
        raise click.ClickException(
            f"no run {rundir.run!r} in {rundir.path.parent}; `rltop runs` lists the runs, `rltop --help` the commands"
        )
    rundir.check()
    return rundir


def logged_run(name: str | None) -> RunDir:
    """As ``existing_run``; where no run is live, the only one that has an audit log will do."""
    from rltop.collectors.contract.launch import list_runs

    try:
        return existing_run(name)
    except click.ClickException:
        logged = [rundir for rundir, _ in list_runs(rundirs.home()) if name is None and rundir.audit.exists()]
        if len(logged) != 1:
            raise
        return existing_run(logged[0].argument)


def client_of(run: str | None) -> Client:
    """A client of the hub of that run; to be closed. Raises as ``existing_run``."""
    from rltop.backend.client.live import Client

    return Client(existing_run(run))


def client_or_replay(run: str | None) -> Client | Replay:
    """A client of the run's hub; of a file of ``rltop record``, or a run that is over, its end. To be closed.

    Raises:
        click.ClickException, RunDirError: as ``existing_run``; or the file can't be read.
    """
    from rltop.backend.client.replay import Replay
    from rltop.backend.store.read import NAME, Reader
    from rltop.backend.store.schema import StoreError
    from rltop.collectors.contract.launch import find_hub

    path = Path(run) if run is not None else None
    if path is None or not path.is_file():
        rundir = existing_run(run)
        path = rundir.path
        if find_hub(rundir) is not None or not (path / NAME).exists():
            return client_of(run)
    try:
        return Replay(Reader(path), speed=float("inf"))
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def print_json(value: object) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


run_option = click.option("--run", "run", metavar="RUN", help="Run name or directory (default: the only live one).")

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


def on_terminal() -> bool:
    """Whether a dashboard can be shown: Textual reads standard input and paints on standard error."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
