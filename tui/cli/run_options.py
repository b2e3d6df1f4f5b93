"""Which run a command line names, and the options that several commands share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rltop.backend.util.near import did_you_mean, nearest
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.cli.output import echo

if TYPE_CHECKING:
    from rltop.backend.client.live import Client
    from rltop.backend.client.replay import Replay
    from rltop.collectors.contract.engine_processes import EngineProcess


MAX_NAMES = 20
"""Runs that an error lists."""


def choose_run(name: str | None) -> RunDir:
    """The run directory of ``name``, a run's name or the path of its directory; None: of the only live run.

    Raises:
        click.ClickException: no run is live, or several are.
        RunDirError: invalid run name.
    """
    from rltop.collectors.contract.launch import list_runs

    if name is not None:
        return rundirs.at(name) if "/" in name else rundirs.for_run(name)
    if (chosen := rundirs.from_environment()) is not None:
        return chosen
    runs = list_runs(rundirs.home())
    live = [rundir for rundir, hub in runs if hub is not None]
    if len(live) == 1:
        return live[0]
    if live:
        names = ", ".join(sorted(rundir.run for rundir in live))
        raise click.ClickException(f"{len(live)} runs are live: {names}; name one")
    advice = ". `rltop demo` starts one, `rltop runs` lists all runs"
    if runs:
        name = runs[0][0].run if len(runs) == 1 else "RUN"
        subject = f"run {name!r} has" if len(runs) == 1 else f"{len(runs)} runs have"
        advice = f"; {subject} no hub: `rltop hub {name}` starts it. `rltop runs` lists all runs"
    if lines := _process_lines():
        advice = f"; engine processes:{lines}"
    raise click.ClickException(f"no run is live under {rundirs.home()} (RLTOP_HOME){advice}")


def _process_lines(rundir: RunDir | None = None) -> str:
    """The engine processes of this user (of ``rundir`` only), a line each, to append to a message."""
    from rltop.backend.attach.processes import describe
    from rltop.collectors.contract.engine_processes import engine_processes

    found = [p for p in engine_processes() if rundir is None or p.run == str(rundir.path)]
    return "".join(f"\n  {describe(process)}" for process in found)


def unattached(rundir: RunDir) -> list[EngineProcess]:
    """The engine processes that could report to a run and don't: dormant ones, and those that load for it."""
    from rltop.collectors.contract.engine_processes import ATTACHED, engine_processes

    return [p for p in engine_processes() if p.state != ATTACHED and p.run in ("", str(rundir.path))]


def existing_run(name: str | None) -> RunDir:
    """As ``choose_run``, but the directory exists and is owned by this user.

    Raises:
        click.ClickException, RunDirError: as ``choose_run``; or the directory is missing or not private.
    """
    rundir = choose_run(name)
    if not rundir.path.is_dir():
        if name is not None and Path(name).is_file():
            raise click.ClickException(
                f"{name} is a file; this command needs a run. `rltop replay {name}` shows a file"
            )
        if found := _process_lines(rundir):
            start = f"`rltop hub {rundir.argument} --new`"
            raise click.ClickException(f"run {rundir.run!r} has no hub yet: the trainer starts it, or {start}{found}")
        raise no_run(rundir.run, rundir.path.parent)
    rundir.check()
    return rundir


def no_run(name: str, home: Path) -> click.ClickException:
    """The error that there is no run of this name in ``home``, with the runs there."""
    from rltop.collectors.contract.launch import list_runs

    names = [rundir.run for rundir, _ in list_runs(home)]
    shown = ", ".join(names[:MAX_NAMES]) + ", ..." * (len(names) > MAX_NAMES)
    parts = [
        f"no run named {name!r} in {home}{did_you_mean(name, names)}",
        *_command_like(name),
        f"runs: {shown}" if names else "there are no runs",
        "`rltop --help` lists the commands",
    ]
    return click.ClickException("; ".join(parts).replace("?;", "?"))


def _command_like(name: str) -> list[str]:
    """The command that a word resembles which was taken as a run, as a question."""
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "top":
        return []
    group = context.find_root().command
    found = nearest(name, group.commands) if isinstance(group, click.Group) else ""
    return [f"did you mean `rltop {found}`?"] if found else []


class OneOf(click.Choice):  # type: ignore[type-arg]  # generic since click 8.3
    """One of some words. A wrong word's error names the one that it resembles."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(list(words))
        self._words = list(words)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See ``click.ParamType``."""
        if value not in self._words:
            self.fail(f"{value!r} is not one of {', '.join(self._words)}{did_you_mean(value, self._words)}", param, ctx)
        return super().convert(value, param, ctx)


def run_argument(metavar: str = "[RUN|FILE]") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds RUN as an argument, and ``--run`` with the same meaning, which every command about a run has."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_run(run: str | None, named_run: str | None, **others: Any) -> Any:
            if run is not None and named_run is not None:
                raise click.UsageError("give the run once: as the argument, or with --run")
            return command(run=run if named_run is None else named_run, **others)

        option = click.option("--run", "named_run", metavar="RUN", help="The same as the argument RUN.")
        return click.argument("run", required=False, metavar=metavar)(option(with_run))

    return add


def last_run() -> RunDir | None:
    """The run with the newest store, if none is live; a note on standard error names it."""
    from rltop.backend.store.read import NAME
    from rltop.collectors.contract.launch import list_runs

    runs = list_runs(rundirs.home())
    stored = [rundir for rundir, _ in runs if (rundir.path / NAME).exists() or rundir.audit.exists()]
    if not stored or any(hub is not None for _, hub in runs) or rundirs.from_environment() is not None:
        return None
    newest = max(stored, key=lambda rundir: max(p.stat().st_mtime for p in (rundir.path / NAME, rundir.audit)
                                                if p.exists()))  # fmt: skip
    echo(f"no run is live; the last one is {newest.run!r}", err=True)
    return newest


def newest_of_several() -> RunDir | None:
    """The live run whose hub started last, if several are live and the environment names none."""
    from rltop.collectors.contract.launch import list_runs

    live = [(hub.started, rundir) for rundir, hub in list_runs(rundirs.home()) if hub is not None]
    if len(live) < 2 or rundirs.from_environment() is not None:
        return None
    return max(live, key=lambda pair: pair[0])[1]


def no_engine(name: str, engines: Iterable[str]) -> click.ClickException:
    """The error that a run has no engine of this name, with those that it has."""
    known = sorted(engines)
    hint = did_you_mean(name, known)
    return click.ClickException(f"no engine {name!r}; engines of this run: {', '.join(known) or 'none'}{hint}")


def run_path(name: str | None) -> Path:
    """The run directory or recorded file that ``name`` means; None: the only live run, or the last one.

    Raises:
        click.ClickException: no such run or file.
    """
    if name is None:
        last = last_run()
        return (choose_run(None) if last is None else last).path
    path = Path(name) if "/" in name or Path(name).is_file() else rundirs.for_run(name).path
    if not path.exists():
        raise no_run(path.name, path.parent)
    return path


def live_rundir(path: Path) -> RunDir | None:
    """The run directory at ``path`` if it has a hub; None for a file or a run that is over."""
    from rltop.collectors.contract.launch import find_hub

    rundir = rundirs.at(str(path))
    return rundir if path.is_dir() and find_hub(rundir) is not None else None


def client_of(run: str | None) -> Client:
    """A client of the run's hub, to be closed. Raises as ``existing_run``; and if no hub runs, at once."""
    from rltop.backend.client.live import Client, advice
    from rltop.collectors.contract.launch import find_hub

    rundir = existing_run(run)
    if find_hub(rundir) is None:
        raise click.ClickException(advice(rundir))
    return Client(rundir)


def client_or_replay(run: str | None) -> Client | Replay:
    """A client of the run's hub; for a recorded file or a run without a hub, a replay at its end. To be closed.

    Both have the same reading methods, so every command that reads works on all three alike.

    Raises:
        click.ClickException, RunDirError: as ``existing_run``.
        StoreError: the file can't be read.
    """
    from rltop.backend.client.replay import Replay
    from rltop.backend.store.read import NAME, Reader
    from rltop.collectors.contract.launch import find_hub

    path = Path(run) if run is not None else None
    if path is None or not path.is_file():
        last = last_run() if run is None else None
        rundir = existing_run(run) if last is None else last
        if find_hub(rundir) is not None or not (rundir.path / NAME).exists():
            return client_of(rundir.argument)
        path = rundir.path
    return Replay(Reader(path), speed=float("inf"))


run_option = click.option("--run", "run", metavar="RUN", help="Run name or directory (default: the only live run).")

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")

reason_option = click.option("--reason", "why", default="", help="Reason, for the audit log.")

engines_option = click.option("--engine", "engines", multiple=True, metavar="ID", help="Only this engine (repeatable).")


def on_terminal() -> bool:
    """Whether a dashboard can be shown: Textual reads standard input and paints on standard error."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
