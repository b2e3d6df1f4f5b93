"""``rltop diagnose``: the diagnosis of a live or stored run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, choose_run, existing_run, print_json

if TYPE_CHECKING:
    from rltop.backend.api.verdict import Verdict

_EXIT_CODES = {"healthy": 0, "fault": 1, "undecided": 3}
"""Same meaning as those of ``rltop parity``."""


@click.command(short_help="Diagnose a run: cause, evidence and fix.")
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--step", type=click.IntRange(0), help="As of this training step (default: the last).")
@click.option("--tests", is_flag=True, help="Also print the finding of every check.")
@as_json_option
def diagnose(run: str | None, step: int | None, tests: bool, as_json: bool) -> None:
    """Diagnose RUN: the cause, since when, on which engines, with which confidence, and the fix.

    RUN may be live or over; FILE is one written by `rltop record`. docs/causes.md describes the causes and how to
    distinguish them. Exit code 0: healthy; 1: a fault; 3: undecided, and the output lists the missing evidence.
    """
    from rltop.backend.text import verdict_text

    verdict = _verdict(run, step)
    if as_json:
        print_json(verdict_text.as_json(verdict))
    else:
        click.echo("\n".join(verdict_text.lines(verdict)))
        if tests:
            click.echo("\n".join(["", *verdict_text.findings(verdict)]))
    sys.exit(_EXIT_CODES[verdict.verdict])


def _verdict(run: str | None, step: int | None) -> Verdict:
    """From the hub if the run is live, else from the store."""
    from rltop.backend.client.live import Client, CommandError, HubUnreachable
    from rltop.backend.store.schema import StoreError
    from rltop.backend.store.stored_diagnosis import diagnosis
    from rltop.collectors.contract.launch import find_hub

    try:
        if run is not None and Path(run).is_file():
            return diagnosis(Path(run), step)
        rundir = existing_run(run) if run is not None else choose_run(None)
        if find_hub(rundir) is None:
            return diagnosis(rundir.path, step)
        with Client(rundir) as client:
            return client.diagnosis(step)
    except (CommandError, HubUnreachable, StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error


COMMANDS = (diagnose,)
