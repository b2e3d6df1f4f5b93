"""The command line: the same facts as the dashboard, as text or JSON, from the same client.

Nothing heavy is imported before a command needs it: ``rltop status`` loads no Textual and ``rltop --help`` no ZeroMQ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rltop.backend.demo.faults import FAULTS
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.rundir import RunDir, RunDirError
from rltop.tui.cli import alarm_commands as cli_alarms
from rltop.tui.cli import control_commands, fingerprint, probe_commands, worst
from rltop.tui.cli import diagnose as cli_diagnose
from rltop.tui.cli import effect as cli_effect
from rltop.tui.cli import history_commands as cli_history
from rltop.tui.cli import metrics_commands as cli_metrics
from rltop.tui.cli import report as cli_report
from rltop.tui.cli.run_options import as_json_option, choose_run, client_of, existing_run, on_terminal, print_json

SECTIONS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "top", "runs", "hub"),
    "Look": ("status", "diagnose", "alarms", "fingerprint", "worst", "attribution", "launch-args"),
    "Switch": ("set", "keep", "undo", "flush", "pause", "resume"),
    "Answer an alarm": ("ack", "silence"),
    "What came of it": ("effect", "audit"),
    "Tell causes apart": ("probe",),
    "Look back, hand on": ("replay", "report", "record", "export", "parity", "forward"),
    "Numbers": ("metrics", "compute"),
}
"""The commands as the help lists them, in the order in which a new user needs them."""


class _Commands(click.Group):
    """A group whose unknown first word is a run to show: ``rltop``, ``rltop sort`` and ``rltop top sort`` all work."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{n:<{width}}", self.commands[n].get_short_help_str(limit=60)) for n in names])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if not args or (args[0] not in self.commands and args[0] not in own):
            args = ["top", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RunDirError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rltop", prog_name="rltop")
def main() -> None:
    """Top for live reinforcement-learning runs on language models.

    Without a command: the dashboard of the only live run, or of RUN. Detaching (q) never touches the run.
    """


@main.command()
@click.argument("run", required=False)
@click.option("--control", is_flag=True, help="Allow switching flags from the dashboard (default: read-only).")
@click.option("--fps", type=click.FloatRange(0.5, 10), default=4.0, show_default=True, help="Repaints per second.")
@click.option("--bell/--no-bell", default=True, show_default=True,
              help="Ring, and have the terminal notify, when an alarm is raised.")  # fmt: skip
@cli_history.reference_option
def top(run: str | None, control: bool, fps: float, bell: bool, references: tuple[str, ...]) -> None:
    """Show the dashboard of RUN (what `rltop` alone does)."""
    from rltop.collectors.contract.launch import LaunchError, ensure_hub

    rundir = existing_run(run)
    if not on_terminal():
        raise click.ClickException(
            "the dashboard needs a terminal as standard input, output and error; "
            "`rltop status [--json]` prints the same facts"
        )
    reference = cli_history.read_references(references)
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


@main.command()
@click.argument("run", required=False)
@as_json_option
def status(run: str | None, as_json: bool) -> None:
    """Print engines, steps, flag changes and events of RUN."""
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


@main.command()
@click.argument("run", required=False)
@click.option("--stop", is_flag=True, help="End the hub instead; the run itself goes on.")
def hub(run: str | None, stop: bool) -> None:
    """Start the hub of RUN, in the background, if it has none."""
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


@main.command()
@click.option("--run", "run", default="sort", show_default=True, metavar="RUN", help="Name of the run.")
@click.option("--headless", is_flag=True, help="No dashboard: a line per step (the default without a terminal).")
@click.option("--steps", type=click.IntRange(1), default=60, show_default=True, help="Optimizer steps.")
@click.option("--set", "settings", multiple=True, metavar="N:FLAG=VALUE", help="Switch FLAG when step N closes.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--temperature", type=click.FloatRange(0.1, 2.0), help="Of sampling (default: the fault's, else 1).")
@click.option("--engines", type=click.IntRange(1, 8), default=2, show_default=True, help="vLLM engines.")
@click.option("--objective", type=click.Choice(["ppo", "gspo"]), default="ppo", show_default=True)
@click.option("--matched", type=click.IntRange(0), default=16, show_default=True,
              help="Sequences a step whose old_logprobs are recomputed under their own rollout versions.")  # fmt: skip
@click.option(
    "--fault",
    type=click.Choice([fault.name for fault in FAULTS]),
    metavar="NAME",
    help=f"Start it with a fault. {'; '.join(f'{fault.name}: {fault.help}' for fault in FAULTS)}.",
)
@click.option("--fault-at", type=click.IntRange(0), default=0, metavar="STEP", help="The step it begins with.")
@click.option("--fault-engine", default="", metavar="ENGINE", help="The engine that has it, where it is on one.")
@click.option("--facts/--no-facts", default=True, help="The trainer tells what it computes with, or not.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the whole run as one JSON object.")  # fmt: skip
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
    """Run real RL on this machine, with the dashboard.

    vLLM engines and a GRPO trainer, all on the CPU. Exit code 0 only if the run finished and every --set was applied.
    """
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


for made in (
    *control_commands.COMMANDS,
    *fingerprint.COMMANDS,
    *cli_alarms.COMMANDS,
    *cli_diagnose.COMMANDS,
    *cli_effect.COMMANDS,
    *cli_metrics.COMMANDS,
    *worst.COMMANDS,
    *probe_commands.COMMANDS,
    *cli_history.COMMANDS,
    *cli_report.COMMANDS,
):
    main.add_command(made)


if __name__ == "__main__":
    main()
