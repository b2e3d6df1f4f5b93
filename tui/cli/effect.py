"""``rltop effect``: what a switch did to the run."""

from __future__ import annotations

import click

from rltop.tui.cli.run_options import as_json_option, client_or_replay, print_json, run_option


@click.command()
@click.argument("command", required=False, default="")
@run_option
@as_json_option
def effect(command: str, run: str | None, as_json: bool) -> None:
    """Print what COMMAND did: before, after, difference.

    COMMAND is the id of a command or the start of it (default: the last that switched anything). Before and after go by
    the flag epoch in which each token was sampled; engines that were not switched are compared with where there are
    any. "not yet" says how long it still takes. RUN may be over, or a file of `rltop record`.
    """
    from rltop.backend.client.live import CommandError, HubUnreachable
    from rltop.backend.text import effect_text

    try:
        with client_or_replay(run) as source:
            found = source.effect(command)
    except (CommandError, HubUnreachable, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(effect_text.as_json(found))
    else:
        click.echo("\n".join(effect_text.lines(found)))


COMMANDS = (effect,)
