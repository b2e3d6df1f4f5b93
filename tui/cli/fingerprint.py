"""The commands that print the configuration of engines: ``rltop fingerprint`` and ``rltop launch-args``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, client_or_replay, no_engine, run_argument, run_option

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot


def _snapshot(run: str | None) -> Snapshot:
    from rltop.backend.client.live import HubUnreachable

    try:
        with client_or_replay(run) as source:
            return source.snapshot()
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error


@click.command(short_help="Print the configuration of engines and trainer.")
@run_argument()
@as_json_option
def fingerprint(run: str | None, as_json: bool) -> None:
    """Print the configuration of each engine and of the trainer; mismatches are marked and explained.

    Facts are read from the live engines, not from their launch options. RUN may be live or over; FILE is one written by
    `rltop record`.
    """
    from rltop.backend.text import fingerprint_text

    snapshot = _snapshot(run)
    if as_json:
        print_json(fingerprint_text.as_json(snapshot))
    else:
        echo(fingerprint_text.as_text(snapshot))


@click.command(name="launch-args", short_help="Print the vLLM options that match an engine's present state.")
@click.argument("engine")
@run_option
@as_json_option
def launch_args(engine: str, run: str | None, as_json: bool) -> None:
    """Print the vLLM options that match the present state of ENGINE.

    One line on standard output; remarks on standard error name the state that no option can set.
    """
    from rltop.backend.text import fingerprint_text

    engines = _snapshot(run).engines
    if engine not in engines:
        raise no_engine(engine, engines)
    options, remarks = fingerprint_text.launch_args(engines[engine])
    if as_json:
        print_json({"engine": engine, "options": options, "remarks": list(remarks)})
        return
    echo(options)
    for remark in remarks:
        echo(f"# {remark}", err=True)


COMMANDS: tuple[click.Command, ...] = (fingerprint, launch_args)
