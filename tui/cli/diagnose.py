"""``rltop diagnose``: the diagnosis of a live or stored run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, client_or_replay, run_argument

if TYPE_CHECKING:
    from rltop.backend.api.verdict import Verdict

_EXIT_CODES = {"healthy": 0, "fault": 1, "undecided": 3}
"""Same meaning as those of ``rltop parity``."""


@click.command(short_help="Diagnose a run: cause, evidence and fix.")
@run_argument()
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
        echo("\n".join(verdict_text.lines(verdict)))
        if tests:
            echo("\n".join(["", *verdict_text.findings(verdict)]))
    sys.exit(_EXIT_CODES[verdict.verdict])


def _verdict(run: str | None, step: int | None) -> Verdict:
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_or_replay(run) as source:
            return source.diagnosis(step)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error


COMMANDS = (diagnose,)
