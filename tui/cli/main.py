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
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.rundir import RunDir, RunDirError
from rltop.tui.cli import (
    alarm_commands,
    control_commands,
    diagnose,
    effect,
    fingerprint,
    history_commands,
    metrics_commands,
    probe_commands,
    report,
    worst,
)
from rltop.tui.cli.run_options import as_json_option, choose_run, client_of, existing_run, on_terminal, print_json

HEADINGS: dict[str, dict[str, str]] = {
    "Start": {
        "demo": "rltop demo --steps 20 --set 5:prefix_caching=off",
        "top": "rltop top myrun --control",
        "runs": "rltop runs --json",
        "hub": "rltop hub myrun",
    },
    "Inspect": {
        "status": "rltop status myrun --json",
        "diagnose": "rltop diagnose myrun --step 40 --tests",
        "fingerprint": "rltop fingerprint myrun",
        "worst": "rltop worst myrun --step 40 --kind k3 --engine e0",
        "attribution": "rltop attribution myrun --steps 50",
        "launch-args": "rltop launch-args e0",
    },
    "Control": {
        "set": "rltop set prefix_caching off --fraction 0.5 --for 10m",
        "keep": "rltop keep 3fa0",
        "undo": "rltop undo 3fa0 --reason 'throughput fell'",
        "flush": "rltop flush --engine e0",
        "pause": "rltop pause --for 30s",
        "resume": "rltop resume --engine e0",
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


class _Commands(click.Group):
    """A group that takes an unknown first word as a run: ``rltop``, ``rltop sort`` and ``rltop top sort`` all work."""

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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RunDirError as error:
            raise click.ClickException(str(error)) from error


FAULT_HELP = "\n\n\b\n" + "\n".join(
    click.wrap_text(f"{fault.name:<23}{fault.help}", 78, "", " " * 23) for fault in FAULTS
)
"""The table of faults, as a paragraph that click does not rewrap."""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rltop", prog_name="rltop")
def main() -> None:
    """Top for live reinforcement-learning runs on language models.

    Without a command: the dashboard of the only live run, or of RUN. `q` detaches; the run is never affected.
    """


@main.command(short_help="Show the dashboard of a run.")
@click.argument("run", required=False)
@click.option("--control", is_flag=True, help="Allow commands from the dashboard (default: read-only).")
@click.option("--fps", type=click.FloatRange(0.5, 10), default=4.0, show_default=True, help="Repaints per second.")
@click.option("--bell/--no-bell", default=True, show_default=True,
              help="Ring the bell and send a terminal notification when an alarm is raised.")  # fmt: skip
@history_commands.reference_option
def top(run: str | None, control: bool, fps: float, bell: bool, references: tuple[str, ...]) -> None:
    """Show the dashboard of RUN. `rltop` and `rltop RUN` do the same."""
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    rundir = existing_run(run)
    if not on_terminal():
        raise click.ClickException(
            "the dashboard needs a terminal as standard input, output and error; "
            "`rltop status [--json]` prints the same data"
        )
    reference = history_commands.read_references(references)
    from rltop.tui.dashboard import run_dashboard

    try:
        ensure_hub(rundir)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(run_dashboard(rundir, control=control, fps=fps, reference=reference, bell=bell))


@main.command()
@as_json_option
def runs(as_json: bool) -> None:
    """List the runs on this machine."""
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
    if as_json:
        print_json({"home": str(rundirs.home()), "runs": rows})
        return
    if not rows:
        click.echo(f"no runs under {rundirs.home()}; `rltop demo` starts one")
    for row in rows:
        state = f"live, hub {row['hub_pid']}" if row["live"] else "no hub"
        click.echo(f"{row['run']:<24} {state:<20} {row['directory']}")


@main.command(short_help="Print engines, steps, flag changes and events.")
@click.argument("run", required=False)
@as_json_option
def status(run: str | None, as_json: bool) -> None:
    """Print engines, steps, flag changes and events of RUN, as the dashboard shows them."""
    from rltop.backend.client.live import HubUnreachable
    from rltop.backend.text import status

    try:
        with client_of(run) as client:
            snapshot = client.snapshot()
    except HubUnreachable as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(status.as_json(snapshot, joins=True))
    else:
        click.echo(status.as_text(snapshot))


@main.command(short_help="Start or stop the hub of a run.")
@click.argument("run", required=False)
@click.option("--stop", is_flag=True, help="Stop the hub instead; the run continues.")
def hub(run: str | None, stop: bool) -> None:
    """Start the hub of RUN in the background, unless it is running."""
    if stop:
        _stop_hub(existing_run(run))
        return
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    rundir = choose_run(run)
    try:
        info = ensure_hub(rundir)
    except LaunchError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"hub of run {rundir.run!r}: process {info.pid}, {rundir.path}")


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
    click.echo(f"hub of run {rundir.run!r} stopped")


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
@click.option("--objective", type=click.Choice(["ppo", "gspo"]), default="ppo", show_default=True,
              help="Objective of the trainer.")  # fmt: skip
@click.option("--matched", type=click.IntRange(0), default=16, show_default=True,
              help="Sequences per step whose old_logprobs are recomputed under their own rollout version.")  # fmt: skip
@click.option("--fault", type=click.Choice([fault.name for fault in FAULTS]), metavar="NAME",
              help="Inject a fault (see above).")  # fmt: skip
@click.option("--fault-at", type=click.IntRange(0), default=0, metavar="STEP", help="First step with the fault.")
@click.option("--fault-engine", default="", metavar="ENGINE", help="Engine with the fault, for faults of one engine.")
@click.option("--facts/--no-facts", default=True, help="Whether the trainer declares its configuration.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
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
    *control_commands.COMMANDS,
    *fingerprint.COMMANDS,
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
