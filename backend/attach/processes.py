"""Which engine processes of this machine a command means, and requests to them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rltop.collectors.contract import attach
from rltop.collectors.contract.attach import AttachError
from rltop.collectors.contract.engine_processes import ATTACHED, DORMANT, LOADING, EngineProcess
from rltop.collectors.contract.rundir import RunDir, home

NONE_HINT = (
    "rltop has to be installed in the environment of the engines, which run as this user, with the same RLTOP_HOME and "
    "without RLTOP_DORMANT=0. A server without the plugin is attached by its address: `rltop attach http://HOST:PORT`"
)


def describe(process: EngineProcess) -> str:
    """One line: what the process does, and what to type if it is dormant."""
    pid, engines = process.pid, ", ".join(process.engines)
    run = _run_of(process)
    if process.state == LOADING:
        return f"plugin active in pid {pid}{f' ({run})' if run else ''}, engine loading"
    if process.state == ATTACHED:
        return f"pid {pid}: engine {engines} reports to {run}"
    return (
        f"pid {pid}: engine {engines} (vLLM {process.vllm_version}) is up, not attached: `rltop attach RUN --pid {pid}`"
    )


def _run_of(process: EngineProcess) -> str:
    """The run in words, with its directory if that is not where runs are listed; empty if there is none."""
    path = Path(process.run)
    if not process.run:
        return ""
    return f"run {path.name!r}" if path.parent == home() else f"run {path.name!r} in {path.parent}"


def as_json(process: EngineProcess) -> dict[str, Any]:
    """The process as in ``rltop runs --json``."""
    return {
        "pid": process.pid,
        "state": process.state,
        "engines": list(process.engines),
        "vllm_version": process.vllm_version or None,
        "run": Path(process.run).name if process.run else None,
    }


def choose(
    processes: list[EngineProcess], state: str, pids: Collection[int] = (), *, everything: bool = False
) -> list[EngineProcess]:
    """The processes that a command with ``--pid`` or ``--all`` means.

    Args:
        processes: all of them.
        state: that the command acts on, ``dormant`` or ``attached``.
        pids: named ones; empty: the only one in ``state``, or with ``everything`` all of them.
        everything: all in ``state``.

    Raises:
        AttachError: it means none, or is ambiguous.
    """
    if pids:
        return [_named(processes, pid) for pid in pids]
    found = [process for process in processes if process.state == state]
    if not found:
        raise AttachError(_why_none(processes, state))
    if len(found) > 1 and not everything:
        names = "; ".join(f"pid {process.pid} ({', '.join(process.engines)})" for process in found)
        raise AttachError(f"{len(found)} engine processes are {state}: {names}. Name one with --pid, or use --all")
    return found


def _named(processes: list[EngineProcess], pid: int) -> EngineProcess:
    for process in processes:
        if process.pid == pid and process.state == LOADING:
            raise AttachError(f"process {pid} is loading its engine; try again when it is ready")
        if process.pid == pid:
            return process
    known = ", ".join(str(process.pid) for process in processes) or "none"
    raise AttachError(f"process {pid} is no engine process of yours with the plugin (known: {known}). {_hint(pid)}")


def _hint(pid: int) -> str:
    if not Path(f"/proc/{pid}").exists():
        return "No process has this pid"
    return f"The pid is that of the engine core, not of its front end or of a worker; {NONE_HINT}"


def _why_none(processes: list[EngineProcess], state: str) -> str:
    others = "; ".join(describe(process) for process in processes)
    if others:
        return f"no engine process is {state}: {others}"
    return f"no engine process with the plugin is up (looked under {home()}): {NONE_HINT}"


def check_free(processes: list[EngineProcess], rundir: RunDir) -> None:
    """Check that one of the processes can report to the run.

    Raises:
        AttachError: all report to other runs.
    """
    if all(process.run not in ("", str(rundir.path)) for process in processes):
        taken = "; ".join(f"pid {process.pid} reports to the run in {process.run}" for process in processes)
        raise AttachError(f"{taken}. `rltop detach` first, or attach to that run")


def request_attach(process: EngineProcess, rundir: RunDir, timeout_s: float) -> list[dict[str, Any]]:
    """Attach the engines of a process to a run; the answer for each: ``engine``, ``state``, ``in_flight``.

    Raises:
        AttachError: it was refused, or the process does not answer.
    """
    message = {"do": attach.ATTACH, "run": str(rundir.path)}
    return _engines(attach.request(process.socket, message, timeout_s))


def request_detach(process: EngineProcess, timeout_s: float, *, keep: bool) -> list[dict[str, Any]]:
    """Detach the engines of a process; the answer for each: ``engine``, ``state``, ``notes``.

    Raises:
        AttachError: as ``request_attach``.
    """
    return _engines(attach.request(process.socket, {"do": attach.DETACH, "keep": keep}, timeout_s))


def _engines(answer: dict[str, Any]) -> list[dict[str, Any]]:
    engines = answer.get("engines")
    if not isinstance(engines, list) or not all(isinstance(engine, dict) for engine in engines):
        raise AttachError("the process answered in an unknown form; its rltop has another version")
    return engines


__all__ = [
    "ATTACHED", "DORMANT", "AttachError", "as_json", "check_free", "choose", "describe", "request_attach",
    "request_detach",
]  # fmt: skip
