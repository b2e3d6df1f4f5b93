"""Probes from the command line: what there is, start one, what came of it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.util.durations import seconds_of
from rltop.collectors.contract.probes import BY_NAME, HUB, PROBES, SWITCH, Probe
from rltop.tui.cli.control_commands import CommandProgress
from rltop.tui.cli.run_options import as_json_option, client_of, print_json, run_option

if TYPE_CHECKING:
    from rltop.backend.api import Effect
    from rltop.backend.api.probe_result import ProbeResult
    from rltop.backend.client.live import Client

STATE_S = 5.0
"""Engines report once a second; after so long without a word of a switch there is none to wait for."""

NAMES = "\n\n\b\n" + "\n".join(f"{probe.name:<17}{probe.code:<5}{probe.summary}" for probe in PROBES)
"""The table of probes, as a paragraph that click leaves as it is."""


@click.command(
    name="probe",
    short_help="Experiment on the live run to tell causes apart.",
    help="Start the probe NAME on the live engines, wait for it, and say what it found out. It is asked before, with "
    "its cost and risk, unless --yes. Exit code 0 if it answered, whatever the answer; 1 if it could not." + NAMES,
)
@click.argument("name", required=False, type=click.Choice(list(BY_NAME)), metavar="[NAME]")
@click.option("--list", "listed", is_flag=True, help="What there is, with cost and risk; asks nothing.")
@click.option("--result", "command", metavar="ID", help="What the probe of this command found out.")
@click.option("--engine", "engines", multiple=True, metavar="ID", help="Only this engine (may be repeated).")
@click.option("--flag", metavar="FLAG=VALUE", help="Of canary-flip: what to switch, on the one engine.")
@click.option("--for", "seconds", default="10m", show_default=True, metavar="TIME", help="Of canary-flip: how long.")
@click.option("--reason", "why", default="", help="Why, for the record.")
@click.option("--timeout", type=click.FloatRange(1, 3600), help="Seconds to wait; default: by the probe.")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@run_option
@as_json_option
def probe(
    name: str | None,
    listed: bool,
    command: str | None,
    engines: tuple[str, ...],
    flag: str | None,
    seconds: str,
    why: str,
    timeout: float | None,
    yes: bool,
    run: str | None,
    as_json: bool,
) -> None:
    """See the help text above, which is made from the table of probes."""
    if sum([name is not None, listed, command is not None]) != 1:
        raise click.UsageError("name a probe, or use --list or --result ID")
    if (flag is not None) != (name is not None and BY_NAME[name].by == SWITCH):
        raise click.UsageError("--flag FLAG=VALUE goes with canary-flip, and only with it")
    if listed:
        print_json({"probes": [_entry(one) for one in PROBES]}) if as_json else click.echo(_table())
        return
    costs = name is not None and BY_NAME[name].by != HUB
    if name is not None and costs and not yes and sys.stdin.isatty() and not as_json:
        _confirm(BY_NAME[name], engines)
    from rltop.backend import api
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_of(run) as client:
            if command is not None:
                result = _result(client, command)
            elif flag is not None:
                result = _flip(client, flag, engines, seconds, why, timeout)
            else:
                assert name is not None
                watch = None if as_json or not sys.stderr.isatty() else CommandProgress()
                wait = timeout or BY_NAME[name].timeout_s
                question = api.AskProbe(api.new_id(), name, list(engines) or None, why=why, timeout_s=wait)
                result = client.probe(question, watch)
    except (CommandError, HubUnreachable, ValueError) as error:
        raise click.ClickException(str(error)) from error
    from rltop.backend.api.probe_result import as_json as plain
    from rltop.backend.api.probe_result import as_text

    if as_json:
        print_json(plain(result))
    else:
        click.echo(as_text(result))
    sys.exit(1 if result.verdict in ("refused", "overtaken") else 0)


def _result(client: Client, command: str) -> ProbeResult:
    """Of a probe, or of the switch that a canary-flip is."""
    from rltop.backend.client.live import CommandError
    from rltop.backend.probes.canary import result_of

    switches = [c for c in client.snapshot().changes.values() if c.command.startswith(command) and c.verb == "set"]
    if not switches:
        return client.probe_result(command)
    try:
        return result_of(client.effect(switches[0].command), client.snapshot())
    except CommandError as error:
        raise CommandError(f"{switches[0].command} is a switch, of which nothing was measured: {error}") from error


def _flip(
    client: Client, flag: str, engines: tuple[str, ...], seconds: str, why: str, timeout: float | None
) -> ProbeResult:
    """Switch one engine for a time; what came of it is asked for later, by the same id."""
    from rltop.backend import api
    from rltop.backend.client.live import CommandError
    from rltop.backend.probes.canary import result_of

    name, equals, value = flag.partition("=")
    if not equals or len(engines) > 1:
        raise click.UsageError("canary-flip takes --flag FLAG=VALUE and at most one --engine")
    chosen = list(engines) or sorted(e.id for e in client.snapshot().engines.values() if e.health == "live")[:1]
    question = api.AskSet(
        api.new_id(), name, value, chosen, why=why or "probe canary-flip", timeout_s=timeout or 30.0,
        revert_s=seconds_of(seconds),
    )  # fmt: skip
    changes = client.command(question)
    if changes[0].state != "applied":
        raise CommandError(f"{changes[0].engine} {changes[0].state.replace('_', ' ')}: {changes[0].reason}")
    return result_of(_effect(client, changes[0].command), client.snapshot())


def _effect(client: Client, command: str) -> Effect:
    """Of a switch that was applied just now: engines say with their next state where it began."""
    from rltop.backend.client.live import CommandError

    deadline = time.monotonic() + STATE_S
    while True:
        try:
            return client.effect(command)
        except CommandError:
            if time.monotonic() >= deadline:
                raise
        client.poll(0.2)


def _confirm(one: Probe, engines: tuple[str, ...]) -> None:
    click.echo(f"{one.name} ({one.code}) on {', '.join(engines) or 'all live engines'}: {one.summary}", err=True)
    for title, text in (("cost", one.cost), ("risk", one.risk), ("needs", one.needs), ("takes", one.takes)):
        click.echo(click.wrap_text(f"{title}: {text}", 100, "  ", "    "), err=True)
    click.confirm("Start it?", default=False, abort=True, err=True)


def _entry(one: Probe) -> dict[str, Any]:
    names = ("name", "code", "summary", "isolates", "cost", "risk", "needs", "takes")
    words = {answer.word: answer.means for answer in one.words}
    return {name: getattr(one, name) for name in names} | {"answers": words}


def _table() -> str:
    blocks = []
    for one in PROBES:
        lines = [f"{one.name} ({one.code}): {one.summary}"]
        for title, text in (("isolates", one.isolates), ("cost", one.cost), ("risk", one.risk), ("takes", one.takes)):
            lines.append(click.wrap_text(f"{title}: {text}", 100, "  ", "    "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


COMMANDS: tuple[click.Command, ...] = (probe,)
