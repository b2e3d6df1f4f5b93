"""``rltop diagnose``: what is wrong with a run, live or stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, choose_run, existing_run, print_json

if TYPE_CHECKING:
    from rltop.backend.api.verdict import Verdict
    from rltop.collectors.contract.rundir import RunDir

_EXIT = {"healthy": 0, "fault": 1, "undecided": 3}
"""As of ``rltop parity``."""


@click.command(short_help="Say what is wrong with a run, and what to do.")
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--step", type=click.IntRange(0), help="As of this training step (default: the last).")
@click.option("--tests", is_flag=True, help="Also what every test found.")
@as_json_option
def diagnose(run: str | None, step: int | None, tests: bool, as_json: bool) -> None:
    """Say what is wrong with RUN: which cause, since when, on which engines, how sure, and what to do.

    RUN may be live or over; FILE is one that `rltop record` made. docs/causes.md has the causes and what tells them
    apart. Exit code 0: healthy; 1: a fault; 3: can't be told yet, and what it takes is said.
    """
    from rltop.backend.text import verdict_text

    verdict = _verdict(run, step)
    if as_json:
        print_json(verdict_text.as_json(verdict))
    else:
        click.echo("\n".join(verdict_text.lines(verdict)))
        if tests:
            click.echo("\n".join(["", *verdict_text.findings(verdict)]))
    sys.exit(_EXIT[verdict.verdict])


def _verdict(run: str | None, step: int | None) -> Verdict:
    """Of the hub, where the run has one; else of what is stored."""
    from rltop.backend.client.live import Client, CommandError, HubUnreachable
    from rltop.backend.store.schema import StoreError
    from rltop.backend.store.stored_diagnosis import diagnosis
    from rltop.collectors.contract.launch import find_hub

    try:
        if run is not None and Path(run).is_file():
            return diagnosis(Path(run), step)
        rundir = _rundir(run)
        if find_hub(rundir) is None:
            return diagnosis(rundir.path, step)
        with Client(rundir) as client:
            return client.diagnosis(step)
    except (CommandError, HubUnreachable, StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _rundir(run: str | None) -> RunDir:
    return existing_run(run) if run is not None else choose_run(None)


COMMANDS = (diagnose,)
