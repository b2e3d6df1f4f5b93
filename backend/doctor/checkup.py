"""All findings about a machine and, if it has one, its run. Pure."""

from __future__ import annotations

from rltop.backend import api
from rltop.backend.doctor import machine_findings, run_findings, vllm_check
from rltop.backend.doctor.findings import Finding
from rltop.backend.doctor.machine import Machine
from rltop.backend.doctor.package_source import PackageSource


def checkup(
    machine: Machine, vllm: PackageSource | None, snapshot: api.Snapshot | None, obstacle: str, directory: str = ""
) -> list[Finding]:
    """Findings by section.

    Args:
        machine: its facts.
        vllm: the vLLM of this environment.
        snapshot: of the run; None if there is none.
        directory: of the run.
        obstacle: why there is no snapshot of the run that the user named; empty if none was named or it was found.
    """
    found = [*machine_findings.environment(machine), *vllm_check.findings(vllm)]
    found += machine_findings.variables(machine, snapshot.run if snapshot else "")
    found += machine_findings.processes(machine, snapshot, directory)
    if snapshot is not None:
        return [*found, *run_findings.run(snapshot)]
    live = ", ".join(machine.live_runs) or "none"
    text = obstacle or f"no run was named; live in {machine.home}: {live}"
    return [*found, Finding("run", "problem" if obstacle else "note", text, "`rltop doctor RUN` checks a run")]
