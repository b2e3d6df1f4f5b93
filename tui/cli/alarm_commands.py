"""The commands about alarms: what is open, taking note of it, silencing it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from rltop.backend.util.durations import span
from rltop.tui.cli.control_commands import Duration
from rltop.tui.cli.history_commands import stored
from rltop.tui.cli.run_options import as_json_option, client_of, print_json, run_option

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot
    from rltop.backend.api.alarm import Alarm
    from rltop.backend.client.live import Client

_LONGEST_S = 7 * 86_400.0

_reason = click.option("--reason", "why", default="", help="Why, for the record.")


@click.command(short_help="Print what is wrong or was, newest first.")
@click.argument("run", required=False, metavar="[RUN|FILE]")
@as_json_option
def alarms(run: str | None, as_json: bool) -> None:
    """Print the alarms of RUN, the newest first: what is wrong, since when, and what to do.

    RUN may be live or over. Exit code 0: no alarm is open; 1: one is.
    """
    import msgspec

    from rltop.backend.api.alarm import about, standing

    picture = _picture(run)
    found = list(reversed(picture.alarms.values()))
    if as_json:
        print_json({"run": picture.run, "alarms": [msgspec.to_builtins(alarm) for alarm in found]})
    elif not found:
        click.echo(f"run {picture.run}: no alarm so far")
    else:
        for alarm in found:
            at = time.strftime("%H:%M:%S", time.localtime(alarm.raised))
            click.echo(f"{alarm.id}  {at}  {standing(alarm, time.time())}: {about(alarm)}")
            for sentence in (*alarm.evidence, *([alarm.remedy] if alarm.remedy else [])):
                click.echo(f"    {sentence}")
            if alarm.command:
                click.echo(f"    {alarm.command} --run {picture.run}")
    click.get_current_context().exit(1 if picture.alarm is not None else 0)


def _picture(run: str | None) -> Snapshot:
    """Of the hub, where the run has one; else of what is stored."""
    from rltop.backend.client.live import Client, HubUnreachable
    from rltop.backend.store.read import Reader
    from rltop.backend.store.schema import StoreError
    from rltop.collectors.contract import rundir as rundirs
    from rltop.collectors.contract.launch import find_hub

    path = stored(run)
    try:
        if path.is_dir() and find_hub(rundirs.at(str(path))) is not None:
            with Client(rundirs.at(str(path))) as client:
                return client.snapshot()
        with Reader(path) as reader:
            return reader.snapshot()
    except (HubUnreachable, StoreError) as error:
        raise click.ClickException(str(error)) from error


@click.command(short_help="Take note of ALARM: no more is told of it.")
@click.argument("alarm")
@_reason
@run_option
def ack(alarm: str, why: str, run: str | None) -> None:
    """Take note of ALARM: nothing more is told of it, unless it turns out to lie elsewhere.

    It stays open until the run is healthy again. `rltop alarms` lists them.
    """
    found = _answered(run, lambda client: client.acknowledge(alarm, why=why))
    click.echo(f"{found.id} {found.cause}: acknowledged by {found.acknowledged}")


@click.command(short_help="Have nothing told of ALARM for a time.")
@click.argument("alarm")
@click.option("--for", "seconds", type=Duration(_LONGEST_S), metavar="TIME", help="How long (90s, 30m, 2h).")
@click.option("--off", is_flag=True, help="End the silence instead.")
@_reason
@run_option
def silence(alarm: str, seconds: float | None, off: bool, why: str, run: str | None) -> None:
    """Have nothing told of ALARM for a time: no bell, no message, no command."""
    if (seconds is None) != off:
        raise click.UsageError("say how long with --for, or --off")
    found = _answered(run, lambda client: client.silence(alarm, seconds or 0.0, why=why))
    click.echo(f"{found.id} {found.cause}: " + (f"silent for {span(seconds)}" if seconds else "no longer silent"))


def _answered(run: str | None, ask: Callable[[Client], Alarm]) -> Alarm:
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_of(run) as client:
            return ask(client)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: tuple[click.Command, ...] = (alarms, ack, silence)
