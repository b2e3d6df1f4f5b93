"""Findings about the environment, the variables and the engine processes of a machine. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rltop.backend import api
from rltop.backend.doctor.findings import Finding
from rltop.backend.doctor.machine import Machine
from rltop.backend.doctor.processes import HostProcess
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.engine_processes import ATTACHED, EngineProcess
from rltop.collectors.contract.extras import missing

_LIGHT = "not needed beside engines; hub and dashboard may run in another environment of this machine"

ENVIRONMENT, VARIABLES, PROCESSES = "this environment", "RLTOP_* variables", "engine processes of this machine"


def environment(machine: Machine) -> Iterator[Finding]:
    """Versions, and whether vLLM would load the plugin."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    yield Finding(ENVIRONMENT, "ok", versions)
    for module in ("numba", "textual"):
        if module not in machine.packages:
            yield Finding(ENVIRONMENT, "note", missing(module), _LIGHT)
    if "vllm" in machine.packages and not machine.has_plugin:
        yield Finding(ENVIRONMENT, "problem", "vLLM does not find rltop's plugin here", "install rltop again with pip")
    if "vllm" in machine.packages and (fault := _excluded(machine.variables)):
        yield Finding(ENVIRONMENT, "problem", fault, "add rltop to VLLM_PLUGINS, or unset it")


def _excluded(variables: dict[str, str]) -> str:
    """Why vLLM does not load the plugin; empty if it does."""
    allowed = variables.get("VLLM_PLUGINS")
    excluded = allowed is not None and "rltop" not in [name.strip() for name in allowed.split(",")]
    return f"VLLM_PLUGINS={allowed} does not name rltop, so vLLM does not load the plugin" if excluded else ""


def variables(machine: Machine, run: str) -> Iterator[Finding]:
    """Where this shell looks for runs, and processes that use another place. ``run``: the run in question, or empty."""
    set_here = ", ".join(f"{name}={value}" for name, value in machine.variables.items() if name.startswith("RLTOP_"))
    yield Finding(VARIABLES, "ok", f"runs are in {machine.home}; set here: {set_here or 'none'}")
    if {"RLTOP_RUN", "RLTOP_HUB"} <= machine.variables.keys():
        yield Finding(VARIABLES, "note", "RLTOP_HUB and RLTOP_RUN are both set: RLTOP_HUB counts")
    if fault := _invalid(machine.variables):
        yield Finding(VARIABLES, "problem", fault, "collectors with this environment stay off; correct the variable")
    names = {run, machine.variables.get("RLTOP_RUN", ""), *machine.live_runs} - {""}
    for (place, other), pids in _elsewhere(machine).items():
        yield _elsewhere_finding(place, other, pids, machine.home, is_same=other in names)


def _elsewhere_finding(place: str, run: str, pids: list[int], home: str, *, is_same: bool) -> Finding:
    text = f"run {run} in {place} is used by {_named(pids)}; this shell uses {home}"
    if not is_same:
        return Finding(VARIABLES, "note", text, f"RLTOP_HOME={place} rltop doctor {run} checks that run")
    text += f". Two runs named {run}: what is sent to one does not meet what is sent to the other"
    return Finding(VARIABLES, "problem", text, "set the same RLTOP_HOME for engines, trainer and viewers")


def _invalid(variables: dict[str, str]) -> str:
    try:
        rundirs.from_environment(variables)
    except rundirs.RunDirError as error:
        return str(error)
    return ""


def _elsewhere(machine: Machine) -> dict[tuple[str, str], list[int]]:
    """Processes whose runs are in another directory, by that directory and the run. RLTOP_HUB names one outright."""
    found: dict[tuple[str, str], list[int]] = {}
    for process in machine.processes:
        run = process.variables.get("RLTOP_RUN")
        place = str(rundirs.home(process.variables))
        if run and "RLTOP_HUB" not in process.variables and place != machine.home:
            found.setdefault((place, run), []).append(process.pid)
    return found


def processes(machine: Machine, snapshot: api.Snapshot | None, directory: str) -> Iterator[Finding]:
    """For each engine process, whether its plugin is attached, dormant or absent. ``directory``: of the run."""
    engines = {process.pid: process for process in machine.processes if process.is_engine}
    plugins = {plugin.pid: plugin for plugin in machine.plugins}
    if not engines and not plugins:
        yield Finding(PROCESSES, "note", "none found: no process of yours has the title of a vLLM engine core")
    shown = [] if snapshot is None else snapshot.engines.values()
    attached = {engine.pid: engine.id for engine in shown if engine.host == machine.host}
    for pid in sorted(engines.keys() | plugins.keys()):
        process = engines.get(pid) or HostProcess(pid, is_engine=True, title="")
        if pid in attached:
            yield Finding(PROCESSES, "ok", f"{_described(process)}: attached as {attached[pid]}")
        elif pid in plugins:
            yield _plugin(process, plugins[pid], directory)
        else:
            yield _without_plugin(process)
    for name, pids in _same_name(engines.values()).items():
        text = f"{_named(pids)} have the same run and RLTOP_ENGINE={name}: the hub renames all but the first"
        yield Finding(PROCESSES, "note", text, "give each engine a name of its own")


def _described(process: HostProcess) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(process.packages.items()))
    return f"{process.pid} ({versions})" if versions else f"{process.pid}"


def _plugin(process: HostProcess, plugin: EngineProcess, directory: str) -> Finding:
    """A process whose plugin reports its state, and from which the hub of the run has heard nothing."""
    head = f"{_described(process)}: {plugin.state} ({', '.join(plugin.engines) or 'no engine yet'})"
    if not plugin.run:
        return Finding(PROCESSES, "note", head, f"`rltop attach RUN --pid {process.pid}` attaches it")
    if plugin.run != directory:
        return Finding(PROCESSES, "note", f"{head}, of run {plugin.run}, which is not the one shown here")
    if plugin.state == ATTACHED:
        return Finding(PROCESSES, "problem", f"{head}, but the hub has not heard of it", "its log has the reason")
    return Finding(PROCESSES, "note", f"{head}, of this run")


def _without_plugin(process: HostProcess) -> Finding:
    """An engine core whose plugin reports no state here."""
    head, variables = _described(process), process.variables
    if process.environment and "rltop" not in process.packages:
        text = f"{head}: rltop is not installed in its environment, {process.environment}"
        return Finding(PROCESSES, "problem", text, "pip install rltop there, and restart the engine")
    if fault := _excluded(variables):
        return Finding(PROCESSES, "problem", f"{head}: {fault}", "add rltop to VLLM_PLUGINS, and restart the engine")
    if variables.get("RLTOP_DORMANT") == "0" and not variables.keys() & {"RLTOP_RUN", "RLTOP_HUB"}:
        return Finding(PROCESSES, "note", f"{head}: kept out by RLTOP_DORMANT=0")
    advice = (
        f"it started with runs in {rundirs.home(variables)}: use one RLTOP_HOME everywhere. Or it is just starting, "
        "has RLTOP_DORMANT=0 or an older rltop; its log has warnings that begin with rltop"
    )
    return Finding(PROCESSES, "problem", f"{head}: its plugin reports nothing in this RLTOP_HOME", advice)


def _same_name(engines: Iterable[HostProcess]) -> dict[str, list[int]]:
    """Pids of engines with equal run and name, by the name."""
    found: dict[tuple[str, ...], list[int]] = {}
    for process in engines:
        if name := process.variables.get("RLTOP_ENGINE"):
            run = process.variables.get("RLTOP_HUB") or process.variables.get("RLTOP_RUN") or ""
            found.setdefault((name, run, str(rundirs.home(process.variables))), []).append(process.pid)
    return {name: pids for (name, *_), pids in found.items() if len(pids) > 1}


def _named(pids: list[int]) -> str:
    return f"process{'es' * (len(pids) > 1)} {', '.join(map(str, pids))}"
