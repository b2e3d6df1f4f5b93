"""``rltop report``: an incident report of a run as one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.output import echo, write_private
from rltop.tui.cli.run_options import client_or_replay, run_argument

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot
    from rltop.backend.api.verdict import Verdict


@click.command(short_help="Write an incident report: diagnosis, plots, history.")
@run_argument()
@click.option("--html", "as_html", is_flag=True, help="HTML instead of Markdown (default for .html files).")
@click.option("-o", "--to", "to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Output file (default: standard output).")  # fmt: skip
@click.option("--step", type=click.IntRange(0), help="Diagnose as of this training step (default: the last).")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def report(run: str | None, as_html: bool, to: Path | None, step: int | None, force: bool) -> None:
    """Write an incident report of RUN as one file: diagnosis, fix, plots, switches, alarms and configuration.

    RUN may be live or over; FILE is one written by `rltop record`. The report loads no other file and contains no
    token text. It does contain host names, user names and the reasons given for commands,
    so only you can read the file.
    """
    from rltop.backend.report.blocks import as_html as html
    from rltop.backend.report.blocks import markdown
    from rltop.backend.report.contents import blocks

    if to is not None and to.exists() and not force:
        raise click.ClickException(f"{to} exists; --force overwrites it")
    snapshot, verdict = _snapshot_and_verdict(run, step)
    contents = blocks(snapshot, verdict, time.time())
    is_html = as_html or (to is not None and to.suffix in (".html", ".htm"))
    text = html(f"rltop: run {snapshot.run}", contents) if is_html else markdown(contents)
    if to is None:
        echo(text, nl=False)
        return
    try:
        write_private(to, text)
    except OSError as error:
        raise click.ClickException(f"{to}: {error.strerror or error}") from error
    echo(f"{to}: {len(text) / 1000:.0f} kB")


def _snapshot_and_verdict(run: str | None, step: int | None) -> tuple[Snapshot, Verdict]:
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_or_replay(run) as source:
            return source.snapshot(), source.diagnosis(step)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: tuple[click.Command, ...] = (report,)
