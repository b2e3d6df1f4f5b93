"""``rltop report``: a run as one file for an incident ticket."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rltop.tui.cli.history_commands import stored

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot
    from rltop.backend.api.verdict import Verdict


@click.command(short_help="Write verdict, evidence, plots and history as one file.")
@click.argument("run", required=False, metavar="[RUN|FILE]")
@click.option("--html", "as_html", is_flag=True, help="HTML instead of Markdown (also if FILE ends in .html).")
@click.option("-o", "--to", "to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Where to (default: standard output).")  # fmt: skip
@click.option("--step", type=click.IntRange(0), help="What was wrong as of this training step (default: the last).")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def report(run: str | None, as_html: bool, to: Path | None, step: int | None, force: bool) -> None:
    """Write what is wrong with RUN, why, what to do, plots, switches, alarms and fingerprints as one file.

    RUN may be live or over; FILE is one that `rltop record` made. The file loads nothing and has no token text; names
    of hosts and users, and the reasons that people gave, are in it.
    """
    from rltop.backend.report.blocks import as_html as made_html
    from rltop.backend.report.blocks import markdown
    from rltop.backend.report.contents import blocks

    if to is not None and to.exists() and not force:
        raise click.ClickException(f"{to} is there already; --force overwrites it")
    picture, verdict = _of(run, step)
    found = blocks(picture, verdict, time.time())
    web = as_html or (to is not None and to.suffix in (".html", ".htm"))
    text = made_html(f"rltop: run {picture.run}", found) if web else markdown(found)
    if to is None:
        click.echo(text, nl=False)
        return
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{to}: {error.strerror or error}") from error
    click.echo(f"{to}: {len(text) / 1000:.0f} kB")


def _of(run: str | None, step: int | None) -> tuple[Snapshot, Verdict]:
    """Of the hub, where the run has one; else of what is stored."""
    from rltop.backend.client.live import Client, CommandError, HubUnreachable
    from rltop.backend.diagnosis.diagnose import diagnose
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError
    from rltop.backend.store.stored_diagnosis import diagnosis_input
    from rltop.collectors.contract import rundir as rundirs
    from rltop.collectors.contract.launch import find_hub

    path = stored(run)
    try:
        if path.is_dir() and find_hub(rundirs.at(str(path))) is not None:
            with Client(rundirs.at(str(path))) as client:
                return client.snapshot(), client.diagnosis(step)
        with Reader(path) as reader:
            return reader.snapshot(), diagnose(diagnosis_input(reader, step))
    except (CommandError, HubUnreachable, StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: tuple[click.Command, ...] = (report,)
