"""The commands about alarms: list, acknowledge, silence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from rltop.backend.util.durations import span, time_of_day
from rltop.tui.cli.control_commands import Duration
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import (
    as_json_option,
    client_of,
    client_or_replay,
    reason_option,
    run_argument,
    run_option,
)

if TYPE_CHECKING:
    from rltop.backend.api import AskAlarm, Snapshot
    from rltop.backend.api.alarm import Alarm

_MAX_SILENCE_S = 7 * 86_400.0


@click.command(short_help="List open and past alarms.")
@run_argument()
@as_json_option
def alarms(run: str | None, as_json: bool) -> None:
    """List the alarms of RUN, newest first, with evidence and fix.

    RUN may be live or over. Exit code 1 while an alarm is open, else 0.
    """
    import msgspec

    from rltop.backend.api.alarm import status_text, summary_line

    snapshot = _snapshot(run)
    newest_first = list(reversed(snapshot.alarms.values()))
    if as_json:
        print_json({"run": snapshot.run, "alarms": [msgspec.to_builtins(alarm) for alarm in newest_first]})
    elif not newest_first:
        echo(f"run {snapshot.run}: no alarms")
    else:
        for alarm in newest_first:
            at = time_of_day(alarm.raised)
            echo(f"{alarm.id}  {at}  {status_text(alarm, time.time())}: {summary_line(alarm)}")
            for sentence in (*alarm.evidence, *([alarm.remedy] if alarm.remedy else [])):
                echo(f"    {sentence}")
            if alarm.command:
                echo(f"    {alarm.command} --run {snapshot.run}")
    click.get_current_context().exit(1 if snapshot.alarm is not None else 0)


def _snapshot(run: str | None) -> Snapshot:
    from rltop.backend.client.live import HubUnreachable

    try:
        with client_or_replay(run) as source:
            return source.snapshot()
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error


@click.command(short_help="Acknowledge an alarm and stop notifying about it.")
@click.argument("alarm")
@reason_option
@run_option
@as_json_option
def ack(alarm: str, why: str, run: str | None, as_json: bool) -> None:
    """Acknowledge ALARM and stop notifying about it, unless its cause or engines change.

    It stays open until the run is healthy again. `rltop alarms` lists the ids.
    """
    from rltop.backend import api

    changed = _change(run, api.AskAcknowledge(api.new_id(), alarm, why=why))
    _print(changed, f"acknowledged by {changed.acknowledged}", as_json=as_json)


@click.command(short_help="Silence an alarm for a time.")
@click.argument("alarm")
@click.option("--for", "seconds", type=Duration(_MAX_SILENCE_S), metavar="TIME", help="How long (90s, 30m, 2h).")
@click.option("--off", is_flag=True, help="End the silence.")
@reason_option
@run_option
@as_json_option
def silence(alarm: str, seconds: float | None, off: bool, why: str, run: str | None, as_json: bool) -> None:
    """Silence ALARM for a time: no bell, no notification, no command. `rltop alarms` lists the ids."""
    if (seconds is None) != off:
        raise click.UsageError("give either --for TIME or --off")
    from rltop.backend import api

    changed = _change(run, api.AskSilence(api.new_id(), alarm, seconds or 0.0, why=why))
    state = f"silenced for {span(seconds)}" if seconds else "no longer silenced"
    _print(changed, state, as_json=as_json)


def _print(alarm: Alarm, state: str, *, as_json: bool) -> None:
    import msgspec

    from rltop.backend.api.alarm import short_name

    print_json({"alarm": msgspec.to_builtins(alarm)}) if as_json else echo(f"{alarm.id} {short_name(alarm)}: {state}")


def _change(run: str | None, question: AskAlarm) -> Alarm:
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_of(run) as client:
            return client.change_alarm(question)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error


COMMANDS: tuple[click.Command, ...] = (alarms, ack, silence)
