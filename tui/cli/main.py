"""The command line: the data of the dashboard as text or JSON, from the same client.

Heavy modules are imported only by the commands that need them: ``rltop status`` loads no Textual, ``rltop --help`` no
ZeroMQ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rltop.backend.demo.faults import FAULTS
from rltop.backend.util.printable import escaped
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.extras import missing
from rltop.collectors.contract.keys import redaction_key
from rltop.collectors.contract.rundir import RunDir, RunDirError
from rltop.tui.cli import (
    alarm_commands,
    attach_commands,
    control_commands,
    diagnose,
    doctor_command,
    effect,
    fingerprint,
    history_commands,
    integrate_command,
    keys_command,
    metrics_commands,
    probe_commands,
    report,
    worst,
)
from rltop.tui.cli.output import echo, print_all_characters, print_error, print_json
from rltop.tui.cli.run_options import (
    OneOf,
    as_json_option,
    choose_run,
    client_or_replay,
    existing_run,
    newest_of_several,
    no_run,
    on_terminal,
    run_argument,
    unattached,
)

HEADINGS: dict[str, dict[str, str]] = {
    "Start": {
        "demo": "rltop demo --steps 20 --set 5:prefix_caching=off",
        "top": "rltop top myrun --control",
        "attach": "rltop attach myrun --all",
        "detach": "rltop detach --all",
        "runs": "rltop runs --json",
        "hub": "rltop hub myrun",
        "integrate": "rltop integrate verl",
    },
    "Inspect": {
        "status": "rltop status myrun --json",
        "diagnose": "rltop diagnose myrun --step 40 --tests",
        "fingerprint": "rltop fingerprint myrun",
        "worst": "rltop worst myrun --step 40 --kind k3 --engine e0",
        "attribution": "rltop attribution myrun --steps 50",
        "launch-args": "rltop launch-args e0",
        "doctor": "rltop doctor myrun",
    },
    "Control": {
        "set": "rltop set prefix_caching off --fraction 0.5 --for 10m",
        "keep": "rltop keep 3fa0",
        "undo": "rltop undo 3fa0 --reason 'throughput fell'",
        "flush": "rltop flush --engine e0",
        "pause": "rltop pause --for 30s",
        "resume": "rltop resume --engine e0",
        "keys": "rltop keys myrun --rotate",
    },
    "Alarms": {
        "alarms": "rltop alarms myrun",
        "ack": "rltop ack a1 --reason 'known, fixed in the next run'",
        "silence": "rltop silence a1 --for 30m",
    },
    "Results": {
        "effect": "rltop effect 3fa0",
        "audit": "rltop audit myrun --flag prefix_caching --since 2h",
    },
    "Probes": {
        "probe": "rltop probe prefill-rescore --engine e0",
    },
    "History and export": {
        "replay": "rltop replay run.rltop.gz --speed 10 --from 40",
        "report": "rltop report myrun -o report.html",
        "record": "rltop record myrun --to run.rltop.gz",
        "export": "rltop export myrun --what steps --to steps.csv",
        "parity": "rltop parity reference1 reference2 myrun",
        "forward": "rltop forward myrun --to prometheus:9464",
    },
    "Reference": {
        "metrics": "rltop metrics kl_k3",
        "compute": "rltop compute batch.npz --json",
    },
}
"""Heading of the help -> command -> its example, in the order in which a new user needs them."""


def _is_about_a_file(error: ValueError) -> bool:
    from rltop.backend.store.schema import StoreError, Unavailable

    return isinstance(error, StoreError | Unavailable)


HELP_OPTIONS = ["-h", "--help"]


class _Commands(click.Group):
    """A group that takes an unknown first word as a run: ``rltop``, ``rltop sort`` and ``rltop top sort`` all work."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.context_settings.setdefault("help_option_names", HELP_OPTIONS)  # click keeps those of the first call
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        width = max(map(len, self.commands))
        for heading, names in HEADINGS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{n:<{width}}", self.commands[n].get_short_help_str(limit=60)) for n in names])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = {"--help", "-h", "--version"}
        if not args or (args[0] not in self.commands and args[0] not in options):
            args = ["top", *args]
        return super().parse_args(ctx, args)

    def main(self, *arguments: Any, **options: Any) -> Any:
        """As click's; an error of a file or of an output is one line on standard error, and exit code 1."""
        print_all_characters()
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            print_error(error)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RunDirError as error:
            raise click.ClickException(escaped(str(error))) from error
        except ValueError as error:
            if not _is_about_a_file(error):
                raise
            raise click.ClickException(escaped(str(error))) from error
        except ModuleNotFoundError as error:
            if not (advice := missing(error.name)):
                raise
            raise click.ClickException(advice) from error
        except click.ClickException as error:
            vars(error)["message"] = escaped(
                error.message
            )  # declared final; the type of the error says how it is shown
            raise


FAULT_HELP = "\n\n\b\n" + "\n".join(
    click.wrap_text(f"{fault.name:<23}{fault.help}", 78, "", " " * 23) for fault in FAULTS
)
"""The table of faults, as a paragraph that click does not rewrap."""


@click.group(cls=_Commands, context_settings={"help_option_names": HELP_OPTIONS})
@click.version_option(package_name="rltop", prog_name="rltop")
def main() -> None:
    """Top for live reinforcement-learning runs on language models.

    Without a command: the dashboard of the only live run, or of RUN. `q` detaches; the run is never affected.
    """


@main.command(short_help="Show the dashboard of a run.")
@run_argument("[RUN]")
@click.option("--control", is_flag=True, help="Allow commands from the dashboard (default: read-only).")
@click.option("--fps", type=click.FloatRange(0.5, 10), default=4.0, show_default=True, help="Repaints per second.")
@click.option("--bell/--no-bell", default=True, show_default=True,
              help="Ring the bell and send a terminal notification when an alarm is raised.")  # fmt: skip
@history_commands.reference_option
def top(run: str | None, control: bool, fps: float, bell: bool, references: tuple[str, ...]) -> None:
    """Show the dashboard of RUN. `rltop` and `rltop RUN` do the same; if several runs are live, it lists them."""
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    newest = newest_of_several() if run is None and on_terminal() else None
    rundir = existing_run(run) if newest is None else newest
    if not on_terminal():
        raise click.ClickException(
            "the dashboard needs a terminal as standard input, output and error; "
            "`rltop status [--json]` prints the same data"
        )
    reference = history_commands.read_references(references)
    from rltop.tui.dashboard import run_dashboard

    try:
        ensure_hub(rundir, supervise=True)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(run_dashboard(rundir, control=control, fps=fps, reference=reference, bell=bell, pick=newest is not None))


@main.command(short_help="List runs and engine processes; delete runs.")
@as_json_option
@click.option("--remove", "removed", metavar="RUN", help="Delete RUN with its store and audit log instead.")
@click.option("--yes", is_flag=True, help="Do not ask before --remove.")
def runs(as_json: bool, removed: str | None, yes: bool) -> None:
    """List the runs on this machine, and the engine processes with the plugin, attached or not.

    With --remove: delete a run that is not live.
    """
    from rltop.backend.attach import processes as process_text
    from rltop.collectors.contract.engine_processes import engine_processes

    if removed is not None:
        _remove_run(existing_run(removed), yes=yes)
        return
    from rltop.collectors.contract.launch import list_runs

    found = list_runs(rundirs.home())
    rows = [
        {
            "run": rundir.run,
            "live": hub is not None,
            "hub_pid": hub.pid if hub else None,
            "started": hub.started if hub else None,
            "directory": str(rundir.path),
        }
        for rundir, hub in found
    ]
    processes = engine_processes()
    if as_json:
        shown = [process_text.as_json(process) for process in processes]
        print_json({"home": str(rundirs.home()), "runs": rows, "processes": shown})
        return
    if not rows:
        echo(f"no runs under {rundirs.home()}; `rltop demo` starts one")
    for row in rows:
        state = f"live, hub {row['hub_pid']}" if row["live"] else "no hub"
        echo(f"{row['run']:<24} {state:<20} {row['directory']}")
    for process in processes:
        echo(process_text.describe(process))


def _remove_run(rundir: RunDir, *, yes: bool) -> None:
    from rltop.collectors.contract.launch import LaunchError, find_hub, is_run, remove_run

    if not is_run(rundir.path):
        raise click.ClickException(f"{rundir.path} is not a run")
    if find_hub(rundir) is None and not yes:
        size = sum(path.stat().st_size for path in rundir.path.rglob("*") if path.is_file())
        click.confirm(f"Delete {rundir.path} ({size / 1e6:.1f} MB)?", abort=True)
    try:
        remove_run(rundir)
    except (LaunchError, OSError) as error:
        raise click.ClickException(str(error)) from error
    echo(f"run {rundir.run!r} removed")


@main.command(short_help="Print engines, steps, flag changes and events.")
@run_argument()
@as_json_option
def status(run: str | None, as_json: bool) -> None:
    """Print engines, steps, flag changes and events of RUN, as the dashboard shows them.

    RUN may be live or over; FILE is one written by `rltop record`.
    """
    from rltop.backend.attach.processes import as_json as as_json_process
    from rltop.backend.attach.processes import describe
    from rltop.backend.client.live import HubUnreachable
    from rltop.backend.text import status

    try:
        with client_or_replay(run) as source:
            snapshot, live = source.snapshot(), source.state == "live"
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error
    processes = unattached(existing_run(run)) if live else []
    if as_json:
        print_json(status.as_json(snapshot, joins=True) | {"processes": [as_json_process(p) for p in processes]})
    else:
        echo("\n\n".join([status.as_text(snapshot), *map(describe, processes)]))


@main.command(short_help="Start or stop the hub of a run.")
@run_argument("[RUN]")
@click.option("--new", is_flag=True, help="Start the hub of a new run, before its engines and trainer.")
@click.option("--stop", is_flag=True, help="Stop the hub instead; the run continues.")
@click.option("--supervise", is_flag=True, help="Start the hub again when it dies, until it is stopped.")
@click.option("--redact", is_flag=True, help="Have collectors send pseudonyms instead of token ids from now on.")
def hub(run: str | None, new: bool, stop: bool, supervise: bool, redact: bool) -> None:
    """Start the hub of RUN in the background, unless it is running.

    A trainer, `rltop demo` and the dashboard start it by themselves. --new starts it ahead of a run that does not exist
    yet, such as for engines that start long before the trainer. --supervise adds a process that starts the hub again
    when it is killed or fails, and gives up after ten early deaths in a row; the dashboard does so, too.

    --redact, best with --new: what was sent before stays as it is. docs/security.md says what is sent and stored.
    """
    if stop:
        _stop_hub(existing_run(run))
        return
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    rundir = choose_run(run) if new else _run_of_hub(run)
    try:
        if redact:
            rundir.create()
            redaction_key(rundir).create()
        info = ensure_hub(rundir, supervise=supervise)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    supervised = f", supervised by process {info.supervisor}" if info.supervisor else ""
    echo(f"hub of run {rundir.run!r}: process {info.pid}{supervised}, {rundir.path}")
    if supervise and not info.supervisor:
        echo(f"it runs unsupervised; `rltop hub {rundir.argument} --stop` first, then start it again", err=True)


def _run_of_hub(run: str | None) -> RunDir:
    rundir = choose_run(run)
    if not rundir.path.is_dir():
        error = no_run(rundir.run, rundir.path.parent)
        raise click.ClickException(f"{error.message}; `rltop hub {rundir.argument} --new` starts the hub of a new run")
    return rundir


def _stop_hub(rundir: RunDir) -> None:
    from rltop.backend.client.live import Client, HubUnreachable
    from rltop.collectors.contract.launch import find_hub

    if find_hub(rundir) is None:
        raise click.ClickException(f"run {rundir.run!r} has no hub")
    try:
        with Client(rundir) as client:
            client.stop_hub()
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error
    echo(f"hub of run {rundir.run!r} stopped")


@main.command(
    short_help="Run real RL on this machine, with the dashboard.",
    help="Run real RL on this machine, with the dashboard: vLLM engines and a GRPO trainer that learns to sort. On the "
    "CPU, or on the GPU if vLLM is installed for one. Exit code 0 only if the run finished and every --set was applied."
    "\n\nFaults that --fault can inject:" + FAULT_HELP,
)
@click.option("--run", "run", default="sort", show_default=True, metavar="RUN", help="Name of the run.")
@click.option("--headless", is_flag=True, help="No dashboard, one line per step (default without a terminal).")
@click.option("--steps", type=click.IntRange(1), default=60, show_default=True, help="Optimizer steps.")
@click.option("--set", "settings", multiple=True, metavar="N:FLAG=VALUE", help="Switch FLAG when step N closes.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Seed of prompts, sampling and training.")  # fmt: skip
@click.option(
    "--temperature", type=click.FloatRange(0.1, 2.0), help="Sampling temperature (default: the fault's, or 1)."
)
@click.option("--engines", type=click.IntRange(1, 8), default=2, show_default=True, help="Number of vLLM engines.")
@click.option("--objective", type=OneOf(["ppo", "gspo"]), default="ppo", show_default=True,
              help="Objective of the trainer.")  # fmt: skip
@click.option("--matched", type=click.IntRange(0), default=16, show_default=True,
              help="Sequences per step whose old_logprobs are recomputed under their own rollout version.")  # fmt: skip
@click.option("--fault", type=OneOf([fault.name for fault in FAULTS]), metavar="NAME",
              help="Inject a fault (see above).")  # fmt: skip
@click.option("--fault-at", type=click.IntRange(0), default=0, metavar="STEP", help="First step with the fault.")
@click.option("--fault-engine", default="", metavar="ENGINE", help="Engine with the fault, for faults of one engine.")
@click.option("--facts/--no-facts", default=True, help="Whether the trainer declares its configuration.")
@click.option("--to", "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the run to FILE as one JSON object.")  # fmt: skip
def demo(
    run: str,
    headless: bool,
    steps: int,
    settings: tuple[str, ...],
    seed: int,
    temperature: float | None,
    engines: int,
    objective: str,
    matched: int,
    fault: str | None,
    fault_at: int,
    fault_engine: str,
    facts: bool,
    json_path: Path | None,
) -> None:
    """The help text above is made from the table of faults."""
    from rltop.backend.demo import supervisor as demo_run

    try:
        options = demo_run.DemoOptions(
            run=run,
            steps=steps,
            settings=tuple(demo_run.parse_setting(text) for text in settings),
            seed=seed,
            temperature=temperature,
            engines=engines,
            objective=objective,
            matched=matched,
            fault=fault or "",
            fault_at=fault_at,
            fault_engine=fault_engine,
            facts=facts,
            json_path=json_path,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if headless or not on_terminal():
        sys.exit(demo_run.run_headless(options))
    from rltop.tui.demo_dashboard import run_with_dashboard

    sys.exit(run_with_dashboard(options))


for _command in (
    *attach_commands.COMMANDS,
    *control_commands.COMMANDS,
    *keys_command.COMMANDS,
    *fingerprint.COMMANDS,
    *doctor_command.COMMANDS,
    *integrate_command.COMMANDS,
    *alarm_commands.COMMANDS,
    *diagnose.COMMANDS,
    *effect.COMMANDS,
    *metrics_commands.COMMANDS,
    *worst.COMMANDS,
    *probe_commands.COMMANDS,
    *history_commands.COMMANDS,
    *report.COMMANDS,
):
    main.add_command(_command)
for _names in HEADINGS.values():
    for _name, _example in _names.items():
        main.commands[_name].epilog = f"\b\nExample: {_example}"


if __name__ == "__main__":
    main()
