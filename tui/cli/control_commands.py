"""The commands that change engines: set, keep, undo, flush, pause, resume; and ``audit``, their log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.util.durations import seconds_of, span
from rltop.backend.util.near import did_you_mean
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.actions import ACTIONS, MAX_REVERT_S, Action
from rltop.collectors.contract.flags import BY_NAME, FLAGS
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import (
    OneOf,
    as_json_option,
    client_of,
    engines_option,
    reason_option,
    run_argument,
    run_option,
    run_path,
)

if TYPE_CHECKING:
    from rltop.backend.api import AskCommand, Change
    from rltop.backend.client.live import Client
    from rltop.backend.commands.audit import AuditLine

FLAG_HELP = "\n\n\b\n" + "\n".join(f"{flag.name:<21}{'|'.join(flag.values):<15}{flag.summary}" for flag in FLAGS)
"""The table of flags, as a paragraph that click does not rewrap."""


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3
    """``90s``, ``10m`` or ``1h30m``, converted to seconds."""

    name = "duration"

    def __init__(self, max_s: float) -> None:
        self._max_s = max_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See ``click.ParamType``."""
        try:
            seconds = seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 0 < seconds <= self._max_s:
            self.fail(f"{value}: use more than 0 and at most {span(self._max_s)}", param, ctx)
        return seconds


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A duration before now, or an ISO 8601 time (default zone: UTC), converted to seconds since the epoch."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See ``click.ParamType``."""
        try:
            return time.time() - seconds_of(value)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither a duration (2h) nor a time (2026-01-31T12:00)", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_timeout = click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the engines.",
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a command that waits for engines."""
    return run_option(reason_option(_timeout(as_json_option(command))))


@click.command(
    name="set",
    short_help="Switch a flag on live engines.",
    help="Switch FLAG to VALUE on the live engines and wait for the outcome. "
    "Exit code 0 only if every engine applied it." + FLAG_HELP,
)
@click.argument("flag", type=OneOf(list(BY_NAME)), metavar="FLAG")
@click.argument("value")
@engines_option
@click.option("--fraction", type=click.FloatRange(0, 1, min_open=True), metavar="F",
              help="Only this fraction of the live engines: at least one, with at least one left as the control "
              "group.")  # fmt: skip
@click.option("--for", "revert_s", type=Duration(MAX_REVERT_S), metavar="TIME",
              help="Auto-revert after this time (90s, 10m, 1h) unless kept by `rltop keep`; the engines hold the "
              "timer.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Use the strict form of VALUE (docs/flags.md).")
@_options
def set_flag(
    flag: str,
    value: str,
    engines: tuple[str, ...],
    fraction: float | None,
    revert_s: float | None,
    strict: bool,
    run: str | None,
    why: str,
    timeout: float,
    as_json: bool,
) -> None:
    """The help text above is made from the table of flags."""
    values = BY_NAME[flag].values
    if value not in values:
        raise click.BadParameter(
            f"{flag} can be {' or '.join(values)}, not {value!r}{did_you_mean(value, values)}", param_hint="VALUE"
        )
    from rltop.backend import api

    question = api.AskSet(
        api.new_id(), flag, value, list(engines) or None, why=why, timeout_s=timeout, strict=strict,
        revert_s=revert_s, fraction=fraction,
    )  # fmt: skip
    _run_command(run, lambda _client: question, as_json=as_json)


@click.command(short_help="Keep a temporary change.")
@click.argument("command", required=False)
@_options
def keep(command: str | None, run: str | None, why: str, timeout: float, as_json: bool) -> None:
    """Keep the change that COMMAND made with --for: cancel its timer.

    Without COMMAND: the only command with a running timer.
    """
    from rltop.backend import api

    def question(client: Client) -> api.AskKeep:
        return api.AskKeep(api.new_id(), command or _only_timer(client), why=why, timeout_s=timeout)

    _run_command(run, question, as_json=as_json)


def _only_timer(client: Client) -> str:
    from rltop.backend.text.status import timer_texts

    snapshot = client.snapshot()
    timers = {t.command for engine in snapshot.engines.values() for t in engine.timers if t.verb == "set"}
    if len(timers) == 1:
        return timers.pop()
    if not timers:
        raise click.ClickException("no timer is running: no change auto-reverts, so there is nothing to keep")
    raise click.ClickException(
        "\n".join([f"{len(timers)} commands have timers; give the id of one", *timer_texts(snapshot)])
    )


@click.command(short_help="Revert a command.")
@click.argument("command", required=False)
@_options
def undo(command: str | None, run: str | None, why: str, timeout: float, as_json: bool) -> None:
    """Revert COMMAND: return the engines that it changed to their previous state.

    Without COMMAND: the last change that is still in effect, which is named first. A flag that was changed again since
    is left alone. `rltop audit` lists the commands.
    """
    from rltop.backend import api

    def question(client: Client) -> api.AskUndo:
        return api.AskUndo(api.new_id(), command or _last_change(client), why=why, timeout_s=timeout)

    _run_command(run, question, as_json=as_json)


def _last_change(client: Client) -> str:
    """The command of the last change that is in effect; a line on standard error names it."""
    from rltop.backend.commands.messages import title
    from rltop.backend.commands.undoable import last_undoable

    snapshot = client.snapshot()
    changes = last_undoable(snapshot.changes.values(), snapshot.engines)
    if not changes:
        raise click.ClickException("no change is in effect that could be undone; `rltop audit` lists the commands")
    first = changes[0]
    where = ", ".join(change.engine for change in changes)
    age = span(max(snapshot.time - first.requested, 0.0))
    by = f" by {first.who}@{first.host}" if first.who else ""
    echo(f"undoing {first.command}: {title(first)} on {where}{by}, {age} ago", err=True)
    return first.command


def _action(action: Action) -> click.Command:
    """The command of one entry of the table of actions."""

    def act(
        run: str | None,
        engines: tuple[str, ...],
        why: str,
        timeout: float,
        as_json: bool,
        revert_s: float | None = None,
    ) -> None:
        from rltop.backend import api

        question = api.AskAct(api.new_id(), action.verb, list(engines) or None, revert_s, why=why, timeout_s=timeout)
        _run_command(run, lambda _client: question, as_json=as_json)

    command = _options(engines_option(act))
    if action.guard_s is not None:
        text = f"Auto-revert after this time, at most {span(action.max_guard_s)} (default: {span(action.guard_s)})."
        timer = click.option("--for", "revert_s", type=Duration(action.max_guard_s), metavar="TIME", help=text)
        command = timer(command)
    summary = action.summary[0].upper() + action.summary[1:]
    return click.command(name=action.word, short_help=f"{summary}.", help=f"{summary}.\n\n{action.effect}")(command)


def _run_command(run: str | None, question: Callable[[Client], AskCommand], *, as_json: bool) -> None:
    """Send a command, show its progress on a terminal, print its outcome, and exit with 0 only if all applied it."""
    from rltop.backend.client.live import CommandError, HubUnreachable
    from rltop.backend.commands import messages
    from rltop.backend.text import status

    watch = None if as_json or not sys.stderr.isatty() else CommandProgress()
    try:
        with client_of(run) as client:
            changes = client.command(question(client), watch)
    except (CommandError, HubUnreachable) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"flag_changes": [status.change_json(change) for change in changes]})
    else:
        for change in changes:
            echo(status.change_text(change))
    applied = all(change.state == "applied" for change in changes)
    where = f" --run {run}" if run else ""
    if not applied and (remedy := messages.remedy(changes)):
        echo(f"not applied on all engines; this {remedy.effect}:\n  {remedy.command}{where}", err=True)
    if not as_json:
        for hint in _next_steps(changes, applied, where):
            echo(hint, err=True)
    sys.exit(0 if applied else 1)


def _next_steps(changes: list[Change], applied: bool, where: str) -> Iterator[str]:
    """The commands to run next: keep a temporary change, measure its effect, revert it."""
    from rltop.backend.api import changed_engine

    timed = next((change for change in changes if change.reverts_at is not None), None)
    if timed is not None:
        left = span(round(max((timed.reverts_at or 0.0) - time.time(), 0.0)))
        keep_it = f"; keep it: rltop keep {timed.command}{where}" if timed.verb == "set" else ""
        yield f"auto-reverts in {left}{keep_it}"
    if applied and any(changed_engine(change) and change.verb == "set" for change in changes):
        command = changes[0].command
        yield f"see its effect: rltop effect {command}{where}; revert it: rltop undo {command}{where}"


class CommandProgress:
    """Prints on standard error each new state of each engine until the command ends there."""

    def __init__(self) -> None:
        self._printed: dict[str, tuple[str, str]] = {}

    def __call__(self, changes: list[Change]) -> None:
        """See ``client.Watch``."""
        from rltop.backend.api import TERMINAL

        for change in changes:
            now = change.state, change.reason
            if change.state not in TERMINAL and self._printed.get(change.engine) != now:
                self._printed[change.engine] = now
                echo(f"{change.engine}: {change.state}{f', {change.reason}' if change.reason else ''}", err=True)


@click.command(short_help="Print the log of all commands: user, reason, outcome.")
@run_argument()
@click.option("--flag", type=OneOf(list(BY_NAME)), metavar="FLAG", help="Only this flag.")
@click.option("--engine", "engine", metavar="ID", help="Only this engine.")
@click.option("--since", type=Moment(), metavar="TIME", help="Only from this time on: 2h (ago), or a UTC time.")
@as_json_option
def audit(run: str | None, flag: str | None, engine: str | None, since: float | None, as_json: bool) -> None:
    """Print the log of all commands of RUN: user, reason, outcome.

    Reads the log in the run's directory, and needs no hub. Of a FILE written by `rltop record`: what it has kept.
    """
    import msgspec

    from rltop.backend.commands import audit as log

    path, lines, bad = _log_of(run_path(run))
    shown = [
        line
        for line in lines
        if flag in (None, line.flag) and engine in (None, line.engine) and (since is None or line.time >= since)
    ]
    if as_json:
        print_json({"log": str(path), "unreadable": bad, "lines": [msgspec.to_builtins(line) for line in shown]})
        return
    for line in shown:
        echo(log.as_text(line))
    if bad:
        echo(f"{bad} unreadable lines (a hub killed during a write leaves one)", err=True)
    if not shown:
        text = f"none of the {len(lines)} lines in {path} match" if lines else f"no commands logged in {path}"
        echo(text, err=True)


def _log_of(path: Path) -> tuple[Path, list[AuditLine], int]:
    """The log of a run directory or of a recorded file: where from, its lines, the number of unreadable ones."""
    from rltop.backend.commands import audit as log

    if path.is_dir():
        path = rundirs.at(str(path)).audit
        try:
            return path, *log.read(path)
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror or error}") from error
    from rltop.backend.store.read import Reader, evaluating

    with evaluating(path), Reader(path) as reader:
        return path, log.of_snapshot(reader.snapshot()), 0


COMMANDS: tuple[click.Command, ...] = (set_flag, keep, undo, *(_action(action) for action in ACTIONS), audit)
