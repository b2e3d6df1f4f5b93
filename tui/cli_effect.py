"""``rltop effect``: what a switch did to the run."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("command", required=False, default="")
@click.option("--run", "run", metavar="RUN", help="Run name or directory (default: the only live one).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def effect(command: str, run: str | None, as_json: bool) -> None:
    """Print what COMMAND did: before, after, difference.

    COMMAND is the id of a command or the start of it (default: the last that switched anything). Before and after go by
    the flag epoch in which each token was sampled; engines that were not switched are compared with where there are
    any. "not yet" says how long it still takes.
    """
    from rltop.backend import effect_text
    from rltop.backend.client import Client, CommandError, HubUnreachable
    from rltop.tui.cli import existing_run

    try:
        with Client(existing_run(run)) as client:
            found = client.effect(command)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(effect_text.as_json(found), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(effect_text.lines(found)))


COMMANDS = (effect,)
