"""``rltop doctor``: what works in an installation and a run, what does not, and what to do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from rltop.collectors.contract.rundir import RunDirError
from rltop.tui.cli.output import echo, print_json
from rltop.tui.cli.run_options import as_json_option, existing_run, run_argument

if TYPE_CHECKING:
    from rltop.backend.api import Snapshot


@click.command(short_help="Check an installation and a run: what works, what does not, what to do.")
@run_argument("[RUN]")
@click.option("--vllm", "vllm", is_flag=True, help="Only check the vLLM of this environment, in detail.")
@as_json_option
def doctor(run: str | None, vllm: bool, as_json: bool) -> None:
    """Check this environment, the engine processes of this machine, and RUN (default: the only live run).

    Exit code 1 if something does not work. The installed vLLM is compared by its source with every name that the engine
    collector uses; it is not imported. Run it in the engines' environment too if that is another one.
    """
    from rltop.backend.doctor import doctor_text, vllm_check
    from rltop.backend.doctor.findings import problems
    from rltop.backend.doctor.package_source import installed

    source = installed("vllm")
    facts: dict[str, object] = {"vllm": vllm_check.as_json(source) if source else None}
    if vllm:
        findings = vllm_check.findings(source, every=True)
    else:
        from rltop.backend.doctor.checkup import checkup
        from rltop.backend.doctor.machine import as_json as machine_json
        from rltop.backend.doctor.machine import this_machine

        machine = this_machine()
        seen = _look(run)
        is_named = run is not None or machine.variables.keys() & {"RLTOP_RUN", "RLTOP_HUB"} or machine.live_runs
        snapshot = seen.snapshot
        findings = checkup(machine, source, snapshot, seen.obstacle if is_named else "", seen.directory)
        facts |= {"machine": machine_json(machine), "run": snapshot.run if snapshot else None}
    if as_json:
        print_json(doctor_text.as_json(findings) | facts)
    else:
        echo(doctor_text.as_text(findings))
    sys.exit(bool(problems(findings)))


class _Look(NamedTuple):
    """A run as its hub shows it; without a hub, the obstacle."""

    snapshot: Snapshot | None
    directory: str
    obstacle: str


def _look(run: str | None) -> _Look:
    from rltop.backend.client.live import Client, HubUnreachable
    from rltop.collectors.contract.launch import find_hub

    try:
        rundir = existing_run(run)
        if find_hub(rundir) is None:
            text = f"run {rundir.run!r} has no hub; `rltop hub {rundir.argument}` starts one"
            return _Look(None, str(rundir.path), text)
        with Client(rundir) as client:
            return _Look(client.snapshot(), str(rundir.path), "")
    except (click.ClickException, RunDirError, HubUnreachable) as error:
        return _Look(None, "", error.message if isinstance(error, click.ClickException) else str(error))


COMMANDS: tuple[click.Command, ...] = (doctor,)
