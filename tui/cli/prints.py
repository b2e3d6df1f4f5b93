"""The commands that print what engines compute with: ``rltop fingerprint`` and ``rltop launch-args``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rltop.tui.cli.runs import as_json_option, client_of, print_json, run_option

if TYPE_CHECKING:
    from rltop.backend.view import Snapshot


def _snapshot(run: str | None) -> Snapshot:
    from rltop.backend.client import HubUnreachable

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
    from rltop.backend.fleet import prints

    snapshot = _snapshot(run)
    if as_json:
        print_json(prints.as_json(snapshot))
    else:
        click.echo(prints.as_text(snapshot))


@click.command(name="launch-args")
@click.argument("engine")
@run_option
def launch_args(engine: str, run: str | None) -> None:
    """Print vLLM options for ENGINE as it is now.

    One line on standard output; what no option can say is remarked on standard error.
    """
    from rltop.backend.fleet import prints

    engines = _snapshot(run).engines
    if engine not in engines:
        known = ", ".join(sorted(engines)) or "none"
        raise click.ClickException(f"no engine {engine!r}; engines of this run: {known}")
    options, remarks = prints.launch_args(engines[engine])
    click.echo(options)
    for remark in remarks:
        click.echo(f"# {remark}", err=True)


COMMANDS: tuple[click.Command, ...] = (fingerprint, launch_args)
