"""The commands that attach to engines that are up, and detach from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.rundir import RunDir
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, choose_run

if TYPE_CHECKING:
    from rltop.collectors.contract.engine_processes import EngineProcess

Answer = dict[str, Any]

_pids = click.option("--pid", "pids", type=click.IntRange(1), multiple=True, metavar="P",
                     help="Only the engine-core process P (repeatable).")  # fmt: skip
_all = click.option("--all", "everything", is_flag=True, help="Every engine process on this machine.")
_timeout = click.option("--timeout", type=click.FloatRange(1, 600), default=30.0, show_default=True,
                        help="Seconds that an engine may take to reach a step boundary.")  # fmt: skip


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    return _pids(_all(_timeout(as_json_option(command))))


@click.command(short_help="Attach to engines that are up.")
@click.argument("words", nargs=-1, metavar="[URL] [RUN]")
@_options
def attach(words: tuple[str, ...], pids: tuple[int, ...], everything: bool, timeout: float, as_json: bool) -> None:
    """Attach RUN to engines that run already, without a restart: no request is lost, no seeded output changes.

    The engines need the plugin, but no variable; the only dormant engine process is taken, or those of --pid or --all.
    Starts the hub of RUN if there is none. Requests in flight are counted, but only later ones can be joined.

    With the URL of a vLLM server (http://HOST:8000), which needs no plugin: reports its metrics to RUN until ctrl-c.
    Rollouts, flags and probes stay unknown; flush, pause and resume need vLLM's development routes.
    """
    from rltop.backend.attach import processes
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    _check(pids, everything)
    by_url = bool(words) and "://" in words[0]
    run = next(iter(words[1:] if by_url else words), None)
    if len(words) > 1 + by_url:
        raise click.UsageError("expected at most a URL and a run")
    if by_url:
        if pids or everything or as_json:
            raise click.UsageError("--pid, --all and --json are for engine processes, not for a URL")
        attach_url(words[0], run_to_attach(run, words[0]))
        return
    rundir = run_to_attach(run)
    chosen = _choose(processes.DORMANT, pids, everything)
    try:
        processes.check_free(chosen, rundir)
        ensure_hub(rundir)
    except (processes.AttachError, LaunchError) as error:
        raise click.ClickException(str(error)) from error
    _execute(chosen, lambda process: processes.request_attach(process, rundir, timeout), rundir, as_json)


def attach_url(url: str, rundir: RunDir) -> None:
    """Report a server to a run until ctrl-c."""
    from rltop.backend.attach.server import Server, ServerError
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    try:
        server = Server(url, rundir, lambda text: echo(text, err=True))
        ensure_hub(rundir)
    except (ServerError, LaunchError) as error:
        raise click.ClickException(str(error)) from error
    echo(f"engine {', '.join(server.names)} attached to run {rundir.run!r} by its metrics; ctrl-c detaches")
    try:
        server.run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        server.close()


@click.command(short_help="Detach from engines; they run on.")
@_options
@click.option("--keep", is_flag=True, help="Leave switched flags as they are, without their timers.")
def detach(pids: tuple[int, ...], everything: bool, timeout: float, as_json: bool, keep: bool) -> None:
    """Remove the collector from engines, which run on as if it had never been there. `rltop attach` brings it back.

    Refused while a flag of the engine is not at its launch value, unless --keep, and while `rltop pause` lasts.
    """
    from rltop.backend.attach import processes

    _check(pids, everything)
    chosen = _choose(processes.ATTACHED, pids, everything)
    _execute(chosen, lambda process: processes.request_detach(process, timeout, keep=keep), None, as_json)


def run_to_attach(name: str | None, url: str = "") -> RunDir:
    """The named run, which may be new; without a name the only live one. ``url``: of the server to attach, if any.

    Raises:
        click.ClickException: no run is live, or several are.
        RunDirError: invalid run name.
    """
    from rltop.collectors.contract.launch import list_runs

    if name is None and rundirs.from_environment() is None:
        live = [rundir for rundir, hub in list_runs(rundirs.home()) if hub is not None]
        if not live:
            example = " ".join(("rltop attach", *filter(None, [url]), "myrun"))
            raise click.ClickException(f"no run is live to attach to; name a new one, such as `{example}`")
    return choose_run(name)


def _check(pids: tuple[int, ...], everything: bool) -> None:
    if pids and everything:
        raise click.UsageError("use either --pid or --all")


def _choose(state: str, pids: tuple[int, ...], everything: bool) -> list[EngineProcess]:
    from rltop.backend.attach import processes
    from rltop.collectors.contract.engine_processes import engine_processes

    try:
        return processes.choose(engine_processes(), state, pids, everything=everything)
    except processes.AttachError as error:
        raise click.ClickException(str(error)) from error


def _execute(
    chosen: list[EngineProcess], request: Callable[[EngineProcess], list[Answer]], rundir: RunDir | None, as_json: bool
) -> None:
    """Send a request to each process and print the answers; exit code 0 only if all were accepted."""
    answers = [answer for process in chosen for answer in _ask(process, request)]
    if as_json:
        print_json({"run": None if rundir is None else rundir.run, "engines": answers})
    for answer in [] if as_json else answers:
        echo(_line(answer, rundir), err="error" in answer)
    sys.exit(any("error" in answer for answer in answers))


def _ask(process: EngineProcess, request: Callable[[EngineProcess], list[Answer]]) -> list[Answer]:
    from rltop.backend.attach.processes import AttachError

    try:
        return [{"pid": process.pid} | answer for answer in request(process)]
    except AttachError as error:
        return [{"pid": process.pid, "error": str(error)}]


def _line(answer: Answer, rundir: RunDir | None) -> str:
    name = f"pid {answer['pid']}"
    if "error" in answer:
        return f"{name}: {answer['error']}"
    text = f"{name}: engine {answer.get('engine')}"
    if answer.get("state") == "pending":
        return f"{text}: the engine has reached no step boundary yet; done at the next one"
    if rundir is not None:
        before = answer.get("in_flight") or 0
        note = f"; {before} requests in flight began before: counted, not joined" if before else ""
        return f"{text} attached to run {rundir.run!r}{note}. `rltop {rundir.argument}` shows it"
    notes = "".join(f"; {note}" for note in answer.get("notes", ()))
    return f"{text} detached{notes}"


COMMANDS = (attach, detach)
