"""``rltop probe``: list the probes, run one on live engines, print its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.util.durations import seconds_of
from rltop.backend.util.near import did_you_mean
from rltop.collectors.contract.flags import BY_NAME as FLAGS
from rltop.collectors.contract.probes import BY_NAME, HUB, PROBES, SWITCH, Probe
from rltop.tui.cli.control_commands import CommandProgress
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import (
    OneOf,
    as_json_option,
    client_of,
    engines_option,
    reason_option,
    run_option,
)

if TYPE_CHECKING:
    from rltop.backend.api import AskProbe, AskSet, Effect
    from rltop.backend.api.probe_result import ProbeResult
    from rltop.backend.client.live import Client

EFFECT_WAIT_S = 5.0
"""How long to wait for the first report on a switch. Engines report once a second."""

PROBE_HELP = "\n\n\b\n" + "\n".join(f"{probe.name:<17}{probe.code:<5}{probe.summary}" for probe in PROBES)
"""The table of probes, as a paragraph that click does not rewrap."""


@click.command(
    name="probe",
    short_help="Run an experiment that distinguishes causes.",
    help="Run the probe NAME on the live engines, wait for it and print its result. Probes that cost engine time ask "
    "for confirmation on a terminal. Exit code 0 if the probe answered, with any result; 1 if it could not run."
    + PROBE_HELP,
)
@click.argument("name", required=False, type=OneOf(list(BY_NAME)), metavar="[NAME]")
@click.option("--list", "listed", is_flag=True, help="List the probes with cost and risk; runs nothing.")
@click.option("--result", "command", metavar="ID", help="Print the result of an earlier probe by its command id.")
@engines_option
@click.option("--flag", metavar="FLAG=VALUE", help="canary-flip: the switch to try on one engine.")
@click.option(
    "--for", "seconds", default="10m", show_default=True, metavar="TIME", help="canary-flip: duration of the switch."
)
@reason_option
@click.option("--timeout", type=click.FloatRange(1, 3600), help="Seconds to wait (default: depends on the probe).")
@click.option("--yes", is_flag=True, help="Skip the confirmation.")
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
    """The help text above is made from the table of probes."""
    if [name is not None, listed, command is not None].count(True) != 1:
        raise click.UsageError("give the NAME of a probe, or --list, or --result ID")
    if (flag is not None) != (name is not None and BY_NAME[name].executed_by == SWITCH):
        raise click.UsageError("canary-flip needs --flag FLAG=VALUE, and no other probe takes --flag")
    if listed:
        print_json({"probes": [_entry(one) for one in PROBES]}) if as_json else echo(_table())
    elif name is None:
        assert command is not None
        _print_result(run, lambda client: _stored_result(client, command), as_json=as_json)
    else:
        selected = BY_NAME[name]
        if selected.executed_by != HUB and not yes and not as_json and sys.stdin.isatty():
            _confirm(selected, engines)
        from rltop.backend import api

        chosen = list(engines) or None
        if flag is not None:
            switch = _canary_switch(flag, chosen, seconds, why, timeout or selected.timeout_s)
            _print_result(run, lambda client: _flip_canary(client, switch), as_json=as_json)
        else:
            question = api.AskProbe(api.new_id(), name, chosen, why=why, timeout_s=timeout or selected.timeout_s)
            _print_result(run, lambda client: _run_probe(client, question, quiet=as_json), as_json=as_json)


def _print_result(run: str | None, result_of: Callable[[Client], ProbeResult], *, as_json: bool) -> None:
    """Get a result from the run's hub, print it, and exit with 1 if the probe could not answer."""
    from rltop.backend.api import probe_result
    from rltop.backend.client.live import CommandError, HubUnreachable

    try:
        with client_of(run) as client:
            result = result_of(client)
    except (CommandError, HubUnreachable, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(probe_result.as_json(result))
    else:
        echo(probe_result.as_text(result))
    sys.exit(1 if result.verdict in ("refused", "overtaken") else 0)


def _run_probe(client: Client, question: AskProbe, *, quiet: bool) -> ProbeResult:
    """Run a probe and wait for its result, with progress on a terminal unless ``quiet``."""
    watch = None if quiet or not sys.stderr.isatty() else CommandProgress()
    return client.probe(question, watch)


def _stored_result(client: Client, command: str) -> ProbeResult:
    """The result of an earlier probe; for a canary-flip, computed from the effect of its switch."""
    from rltop.backend.client.live import CommandError
    from rltop.backend.probes.canary import result_of

    snapshot = client.snapshot()
    switch = next((c for c in snapshot.changes.values() if c.verb == "set" and c.command.startswith(command)), None)
    if switch is None:
        return client.probe_result(command)
    try:
        return result_of(client.effect(switch.command), client.snapshot())
    except CommandError as error:
        raise CommandError(f"{switch.command} is a switch without a measured effect: {error}") from error


def _canary_switch(flag: str, engines: list[str] | None, duration: str, why: str, timeout_s: float) -> AskSet:
    """The temporary switch of a canary-flip, from ``FLAG=VALUE``."""
    from rltop.backend import api

    name, equals, value = flag.partition("=")
    if equals and name not in FLAGS:
        raise click.UsageError(f"--flag: no flag {name!r}; there are {', '.join(FLAGS)}{did_you_mean(name, FLAGS)}")
    if not equals or len(engines or []) > 1:
        raise click.UsageError("canary-flip takes --flag FLAG=VALUE and at most one --engine")
    try:
        revert_s = seconds_of(duration)
    except ValueError as error:
        raise click.ClickException(f"--for: {error}") from error
    why = why or "probe canary-flip"
    return api.AskSet(api.new_id(), name, value, engines, why=why, timeout_s=timeout_s, revert_s=revert_s)


def _flip_canary(client: Client, switch: AskSet) -> ProbeResult:
    """Switch one engine temporarily. The effect is measured later: ``--result`` with the same id prints it."""
    import msgspec

    from rltop.backend.client.live import CommandError
    from rltop.backend.probes.canary import result_of

    if switch.engines is None:
        live = sorted(engine.id for engine in client.snapshot().engines.values() if engine.health == "live")
        if not live:
            raise CommandError("no engine is live, nothing to switch")
        switch = msgspec.structs.replace(switch, engines=live[:1])
    change = client.command(switch)[0]
    if change.state != "applied":
        raise CommandError(f"{change.engine} {change.state.replace('_', ' ')}: {change.reason}")
    return result_of(_wait_for_effect(client, change.command), client.snapshot())


def _wait_for_effect(client: Client, command: str) -> Effect:
    """The effect of a switch that was just applied; available once the engine has reported its new flag epoch."""
    from rltop.backend.client.live import CommandError

    deadline = time.monotonic() + EFFECT_WAIT_S
    while True:
        try:
            return client.effect(command)
        except CommandError:
            if time.monotonic() >= deadline:
                raise
        client.poll(0.2)


def _confirm(selected: Probe, engines: tuple[str, ...]) -> None:
    where = ", ".join(engines) or "all live engines"
    echo(f"{selected.name} ({selected.code}) on {where}: {selected.summary}", err=True)
    echo(_details(selected, "cost", "risk", "requirements", "duration"), err=True)
    click.confirm("Run it?", default=False, abort=True, err=True)


def _entry(one: Probe) -> dict[str, Any]:
    """A probe as JSON; the names of keys are stable."""
    shared = {name: getattr(one, name) for name in ("name", "code", "summary", "isolates", "cost", "risk")}
    answers = {answer.word: answer.meaning for answer in one.all_answers}
    return shared | {"needs": one.requirements, "takes": one.duration, "answers": answers}


def _table() -> str:
    return "\n\n".join(
        f"{one.name} ({one.code}): {one.summary}\n{_details(one, 'isolates', 'cost', 'risk', 'duration')}"
        for one in PROBES
    )


def _details(one: Probe, *names: str) -> str:
    """The named attributes of a probe, one wrapped paragraph each."""
    return "\n".join(click.wrap_text(f"{_LABELS[name]}: {getattr(one, name)}", 100, "  ", "    ") for name in names)


_LABELS = {
    "isolates": "distinguishes",
    "cost": "cost",
    "risk": "risk",
    "requirements": "preconditions",
    "duration": "duration",
}

COMMANDS: tuple[click.Command, ...] = (probe,)
