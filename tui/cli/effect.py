"""``rltop effect``: the measured effect of a switch on the run."""

from __future__ import annotations

import click

from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, client_or_replay, run_option


@click.command(short_help="Print the effect of a command: before, after, difference.")
@click.argument("command", required=False, default="")
@run_option
@as_json_option
def effect(command: str, run: str | None, as_json: bool) -> None:
    """Print the effect of COMMAND on the run: before, after, difference, interval.

    COMMAND is the id of a command or a prefix of it (default: the last one that switched anything). Tokens count as
    before or after by the flag epoch in which they were sampled; engines that were not switched serve as the control
    group. "not yet" includes the time still needed. RUN may be over, or a file written by `rltop record`.
    """
    from rltop.backend.client.live import CommandError, HubUnreachable
    from rltop.backend.text import effect_text

    try:
        with client_or_replay(run) as source:
            found = source.effect(command)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(effect_text.as_json(found))
    else:
        echo("\n".join(effect_text.lines(found)))


COMMANDS = (effect,)
