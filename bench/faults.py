"""What a fault looks like in the attribution: a real demo run with it, and the figures of docs/attribution.md.

    .venv/bin/python -m bench.faults healthy
    .venv/bin/python -m bench.faults lying-replica

Prints what ``rltop attribution`` tells of the last steps and the row of the table, and writes some steps, as the hub
heard them, to ``tests/data/fault-NAME.npz`` for the tests. The hub of the run is this script's own.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rltop.backend import hub
from rltop.backend.client import Client
from rltop.backend.gaps.attributed import Attribution, Interval, Stratum
from rltop.backend.state import State
from rltop.collectors import wire
from rltop.collectors.rundir import RunDir, for_run
from tests.fault_recordings import DATA, rows_of, save

STOP_S = 60.0
SEED = 0
WINDOW = 20
"""Steps that are asked about, as `rltop attribution` does."""

KEPT = range(6, 18)
"""Steps that are written down: faults show, and the trainer still has all versions that a replica may be at."""


def serve(rundir: RunDir, path: Path) -> int:
    """Be the hub of a run; write down what it heard of some steps when it is told to end."""
    heard: list[tuple[wire.DataBody, wire.Arrays]] = []

    class Listening(State):
        def data(self, frames: list[bytes], now: float) -> Any:
            _, body, arrays = wire.decode_data([bytes(frame) for frame in frames])
            heard.append((body, arrays))
            return super().data(frames, now)

    setattr(hub, "State", Listening)  # noqa: B010 - the name that the hub makes its state by
    code = hub.main(rundir)
    if rows := [row for row in rows_of(heard, SEED) if row.step in KEPT]:
        save(path, rows, SEED)
    return code


def run(name: str, steps: int, demo: list[str]) -> int:
    """Run the demo with the fault, print its row."""
    fault = [] if name == "healthy" else ["--fault", name]
    path = DATA / f"fault-{name}.npz"
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as home:
        os.environ["RLTOP_HOME"] = home
        rundir = for_run("fault")
        rundir.create()
        told = ["--serve", str(rundir.path), str(path)]
        hubs = subprocess.Popen([sys.executable, "-m", "bench.faults", *told])
        with Client(rundir) as client:
            client.snapshot(60.0)
            command = ["demo", "--headless", "--run", "fault", "--steps", str(steps), "--seed", str(SEED)]
            command += [*fault, *demo]
            code = subprocess.run([sys.executable, "-m", "rltop.tui.cli.main", *command], check=False).returncode
            found = client.attribution(WINDOW)
            subprocess.run([sys.executable, "-m", "rltop.tui.cli.main", "attribution", "fault"], check=False)
        hubs.send_signal(signal.SIGTERM)
        hubs.wait(STOP_S)
    if code == 0:
        print(f"| {' | '.join(COLUMNS)} |")
        print(row(name, found))
        print(f"{path}: {path.stat().st_size} bytes")
    return code


COLUMNS = (
    "run", "k3 of e0", "k3 of e1", "lags of e0, e1", "e0: k3 = a + b lag", "e1: k3 = a + b lag",
    "matched k3 of e0", "matched k3 of e1", "matched |d| of hits", "matched |d| of misses",
)  # fmt: skip


def row(name: str, found: Attribution) -> str:
    """A line of the table, under ``COLUMNS``."""
    lines = {line.engine: line for line in found.lines}
    cells = [name]
    cells += [_told(_of(found.strata, "engine", engine), "k3") for engine in ("e0", "e1")]
    cells.append(", ".join(f"{mean_lag(found, engine):.1f}" for engine in ("e0", "e1")))
    for engine in ("e0", "e1"):
        line = lines.get(engine)
        cells.append(f"{_text(line.at_lag0)} + {_text(line.per_lag)}" if line else "one lag")
    cells += [_told(_of(found.matched, "engine", engine), "k3") for engine in ("e0", "e1")]
    cells += [_told(_of(found.matched, "prefix", label), "abs_diff") for label in ("hit", "miss")]
    return f"| {' | '.join(cells)} |"


def mean_lag(found: Attribution, engine: str) -> float:
    """Over the tokens of an engine, in versions."""
    strata = [s for s in found.strata if s.dimension == "lag" and s.engine == engine and s.label.strip("+").isdigit()]
    return sum(int(s.label.strip("+")) * s.tokens for s in strata) / sum(s.tokens for s in strata)


def _of(strata: list[Stratum], dimension: str, label: str) -> Stratum | None:
    return next((s for s in strata if (s.dimension, s.label) == (dimension, label)), None)


def _told(stratum: Stratum | None, figure: str) -> str:
    return "-" if stratum is None else _text(getattr(stratum, figure))


def _text(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.2g}"
    return f"{value.mean:.2g} ({value.low:.2g} to {value.high:.2g})"


def main() -> int:
    """See the top of the file."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(RunDir(Path(sys.argv[2])), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="healthy, or a fault of `rltop demo`")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("demo", nargs="*", help="options of `rltop demo`, after --")
    given = parser.parse_args()
    return run(given.name, given.steps, given.demo)


if __name__ == "__main__":
    sys.exit(main())
