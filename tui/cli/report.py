"""``rltop report``: an incident report of a run as one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import live_rundir, run_path

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot
    from rltop.backend.api.verdict import Verdict


@click.command(short_help="Write an incident report: diagnosis, plots, history.")
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--html", "as_html", is_flag=True, help="HTML instead of Markdown (default for .html files).")
@click.option("-o", "--to", "to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Output file (default: standard output).")  # fmt: skip
@click.option("--step", type=click.IntRange(0), help="Diagnose as of this training step (default: the last).")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def report(run: str | None, as_html: bool, to: Path | None, step: int | None, force: bool) -> None:
    """Write an incident report of RUN as one file: diagnosis, fix, plots, switches, alarms and configuration.

    RUN may be live or over; FILE is one written by `rltop record`. The report loads no other file and contains no
    token text. It does contain host names, user names and the reasons given for commands.
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
        click.echo(text, nl=False)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{to}: {error.strerror or error}") from error
    click.echo(f"{to}: {len(text) / 1000:.0f} kB")


def _snapshot_and_verdict(run: str | None, step: int | None) -> tuple[Snapshot, Verdict]:
    """From the hub if the run is live, else from the store."""
    from rltop.backend.client.live import Client, CommandError, HubUnreachable
    from rltop.backend.diagnosis.diagnose import diagnose
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError
    from rltop.backend.store.stored_diagnosis import diagnosis_input

    path = run_path(run)
    try:
        if (rundir := live_rundir(path)) is not None:
            with Client(rundir) as client:
                return client.snapshot(), client.diagnosis(step)
        with Reader(path) as reader:
            return reader.snapshot(), diagnose(diagnosis_input(reader, step))
    except (CommandError, HubUnreachable, StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: tuple[click.Command, ...] = (report,)
