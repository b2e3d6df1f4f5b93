"""Record the epoch sums, throughput and commands of a real demo run, into ``tests/data/NAME.npz`` for the tests.

    .venv/bin/python -m bench.effects healthy-t07 -- --temperature 0.7 --seed 12 --steps 400
    .venv/bin/python -m bench.effects switch-1 --switch 40:all:logprobs_mode=raw \\
        --switch 80:all:logprobs_mode=processed --switch 120:e1:logprobs_mode=raw -- --temperature 0.7 --seed 11

``--switch STEP:ENGINES:FLAG=VALUE`` requests a switch when the step closes. This script runs the hub itself, so that it
can save the hub's state at the end; ``--minutes`` limits the run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.hub import process, startup
from rltop.backend.hub.state import HubState
from rltop.collectors.contract.rundir import RunDir, for_run
from tests.support.recordings import DATA, Recording, save

STOP_S = 60.0


def serve(rundir: RunDir, path: Path) -> int:
    """Run the hub; save its state when it ends."""
    states: list[HubState] = []

    class RememberedState(HubState):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            states.append(self)

    setattr(process, "HubState", RememberedState)  # noqa: B010 - the hub looks the class up by this name
    code = startup.main(rundir)
    (state,) = states
    effects = state._hub.effects
    marks = {k: m for k, m in effects.marks.items() if k in state.snapshot.changes}
    changes = {k: state.snapshot.changes[k] for k in marks}
    steps = state._hub.steps.cells.steps()
    save(path, Recording(steps, effects.throughput.samples(), changes, marks, effects.throughput.present()))
    return code


def record(name: str, minutes: float, switches: list[str], demo: list[str]) -> int:
    """Run the demo with the recording hub and request each switch when its step closes."""
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as home:
        os.environ["RLTOP_HOME"] = home
        rundir = for_run(name)
        rundir.create()
        DATA.mkdir(exist_ok=True)
        path = DATA / f"{name}.npz"
        hub_process = subprocess.Popen([sys.executable, "-m", "bench.effects", "--serve", str(rundir.path), str(path)])
        with Client(rundir) as client:
            client.snapshot(30.0)
            run = subprocess.Popen(
                [sys.executable, "-m", "rltop.tui.cli.main", "demo", "--headless", "--run", name, *demo]
            )  # fmt: skip
            _follow(client, run, time.monotonic() + 60 * minutes, switches)
        for process in (run, hub_process):
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
        print(f"{path}: {path.stat().st_size} bytes")
        return hub_process.returncode


def _follow(client: Client, run: subprocess.Popen[bytes], until: float, switches: list[str]) -> None:
    left = list(switches)
    while run.poll() is None and time.monotonic() < until:
        client.poll(0.2)
        steps = client.view.steps if client.view else {}
        if left and steps and max(steps) >= int(left[0].split(":")[0]):
            _, where, setting = left.pop(0).split(":")
            flag, value = setting.split("=")
            engines = None if where == "all" else where.split(",")
            client.ask(api.AskSet(uuid.uuid4().hex, flag, value, engines, why="bench/effects.py"))


def main() -> int:
    """See the top of the file."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(RunDir(Path(sys.argv[2])), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--switch", action="append", default=[], metavar="STEP:ENGINES:FLAG=VALUE")
    parser.add_argument("demo", nargs="*", help="options of `rltop demo`, after --")
    given = parser.parse_args()
    return record(given.name, given.minutes, given.switch, given.demo)


if __name__ == "__main__":
    sys.exit(main())
