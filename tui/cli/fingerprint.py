"""The commands that print what engines compute with: ``rltop fingerprint`` and ``rltop launch-args``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rltop.tui.cli.run_options import as_json_option, client_of, print_json, run_option

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot


def _snapshot(run: str | None) -> Snapshot:
    from rltop.backend.client.live import HubUnreachable

    try:
        with client_of(run) as client:
            return client.snapshot()
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("run", required=False)
@as_json_option
def fingerprint(run: str | None, as_json: bool) -> None:
    """Print what each engine computes with, and the trainer.

    Facts are read from the live engines. What should agree and does not is marked with an unequal sign and explained.
    """
    from rltop.backend.text import fingerprint_text

    snapshot = _snapshot(run)
    if as_json:
        print_json(fingerprint_text.as_json(snapshot))
    else:
        click.echo(fingerprint_text.as_text(snapshot))


@click.command(name="launch-args")
@click.argument("engine")
@run_option
def launch_args(engine: str, run: str | None) -> None:
    """Print vLLM options for ENGINE as it is now.

    One line on standard output; what no option can say is remarked on standard error.
    """
    from rltop.backend.text import fingerprint_text

    engines = _snapshot(run).engines
    if engine not in engines:
        known = ", ".join(sorted(engines)) or "none"
        raise click.ClickException(f"no engine {engine!r}; engines of this run: {known}")
    options, remarks = fingerprint_text.launch_args(engines[engine])
    click.echo(options)
    for remark in remarks:
        click.echo(f"# {remark}", err=True)


COMMANDS: tuple[click.Command, ...] = (fingerprint, launch_args)
