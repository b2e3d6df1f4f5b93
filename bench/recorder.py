"""Records runs of the demo: the hub tapes every call of its state, and a replay of the tape must give the same result.

A recording is a directory ``OUT/NAME/`` with ``tape.xz`` (replayed by ``tests/support/tapes.py``), ``run.json`` (the
run's settings) and ``demo.log``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import lzma
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.fault_runs import Run
from rltop.backend.client.live import Client
from rltop.backend.demo.faults import BY_NAME, HEALTHY
from rltop.backend.hub import process as hub_process
from rltop.backend.hub import startup
from rltop.backend.hub.state import HubState
from rltop.backend.summary.strata import warm
from rltop.collectors.contract.rundir import RunDir
from tests.support.tapes import digest, replay, taping

HUB_START_S = 120.0
HUB_STOP_S = 60.0
ROOT = Path(__file__).resolve().parents[1]


class RecordingError(RuntimeError):
    """The recording can't be used; the message says why."""


def end_on_sigterm() -> None:
    """Handle SIGTERM as Ctrl-C, so that child processes are ended too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def serve(rundir: RunDir, tape: Path) -> int:
    """Run the hub; write the tape, and next to it a digest of the final snapshot."""
    warm()
    states: list[HubState] = []
    with tape.open("wb") as file:
        make = taping(file.write)

        def state(*arguments: Any) -> HubState:
            states.append(make(*arguments))
            return states[-1]

        setattr(hub_process, "HubState", state)  # noqa: B010 - the hub looks the class up by this name
        code = startup.main(rundir)
    tape.with_suffix(".digest").write_text(digest(states[0].snapshot))
    return code


def record(run: Run, out: Path, limit_s: float) -> Path:
    """Run the demo, and keep its tape if a replay gives the same snapshot as its hub had.

    Args:
        run: the run to record.
        out: parent of the recording's directory, which is replaced if it exists.
        limit_s: time limit of the demo.

    Raises:
        RecordingError: the demo failed or exceeded its time limit, or the replay differs.
    """
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as home:
        rundir, tape = RunDir(Path(home) / "fault"), Path(home) / "tape"
        with _hub(rundir, tape, home):
            code = _demo(run, home, Path(home) / "demo.log", limit_s)
        text = _without_checkout((Path(home) / "demo.log").read_bytes()).decode()
        tape.write_bytes(_without_checkout(tape.read_bytes()))
        if code:
            raise RecordingError(f"the demo ended with {code}:\n{text[-2000:]}")
        found = replay(tape)
        if digest(found.picture) != tape.with_suffix(".digest").read_text():
            raise RecordingError("a replay of the tape differs from the run")
        if sorted(found.steps) != list(range(run.steps)):
            raise RecordingError(f"the hub measured steps {sorted(found.steps)} of {run.steps}")
        directory = out / run.name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "tape.xz").write_bytes(lzma.compress(tape.read_bytes()))
        (directory / "demo.log").write_text(text)
        (directory / "run.json").write_text(json.dumps(_settings(run, began, digest(found.picture)), indent=1) + "\n")
    return directory


def _without_checkout(recording: bytes) -> bytes:
    """The path of this checkout overwritten by one of the same length: recordings must not name this machine."""
    path = str(ROOT).encode()
    return recording.replace(path, b"/checkout".ljust(len(path), b"_")[: len(path)])


@contextlib.contextmanager
def _hub(rundir: RunDir, tape: Path, home: str) -> Iterator[None]:
    os.environ["RLTOP_HOME"] = home
    rundir.create()
    process = subprocess.Popen([sys.executable, "-m", "bench.recorder", str(rundir.path), str(tape)], cwd=ROOT)
    try:
        with Client(rundir) as client:
            client.snapshot(HUB_START_S)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(HUB_STOP_S)


def _demo(run: Run, home: str, log: Path, limit_s: float) -> int:
    """Run the demo and return its exit code, or 1 after ending it at its time limit."""
    command = [sys.executable, "-m", "rltop.tui.cli.main", "demo", "--headless", "--run", "fault", *run.arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "RLTOP_HOME": home})
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return 1
        finally:
            process.terminate()
            process.wait(HUB_STOP_S)


def _settings(run: Run, began: float, shown: str) -> dict[str, object]:
    fault = HEALTHY if run.fault == "healthy" else BY_NAME[run.fault]
    temperature = fault.temperature if run.temperature is None else run.temperature
    return {
        "name": run.name,
        "fault": run.fault,
        "codes": fault.codes,
        "code": next(iter(fault.codes), ""),
        "part": run.part,
        "seed": run.seed,
        "at": run.at,
        "onset": run.at + fault.first,
        "engine": run.on or fault.engine,
        "objective": run.objective,
        "temperature": temperature,
        "facts": "--no-facts" not in run.options,
        "engines": run.engines,
        "steps": run.steps,
        "demo": run.arguments,
        "digest": shown,
        "began": began,
        "seconds": time.time() - began,
        "versions": {name: _version(name) for name in ("rltop", "vllm", "torch", "transformers", "numpy")}
        | {"python": platform.python_version(), "commit": _commit()},
    }


def _version(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def _commit() -> str:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return head.stdout.strip()


@contextlib.contextmanager
def exclusive(lock: Path | None) -> Iterator[None]:
    """Hold ``lock``, so that no other process that respects it runs engines on this machine."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(serve(RunDir(Path(sys.argv[1])), Path(sys.argv[2])))
