"""The fault bench: records real runs of the demo with real faults, and tabulates their attribution.

    .venv/bin/python -m bench.faults record lying-replica --seed 3 --out DIR -- --objective gspo
    .venv/bin/python -m bench.faults record-all --out DIR [NAME ...]
    .venv/bin/python -m bench.faults list
    .venv/bin/python -m bench.faults figures --out DIR
    .venv/bin/python -m bench.faults look lying-replica

``record`` records one run (``bench/recorder.py``), ``record-all`` those of ``bench/fault_runs.py`` that are not in DIR
yet; NAMEs select runs by parts of their names.

``look`` makes a row of docs/attribution.md: it prints ``rltop attribution`` of the last steps, and saves some steps as
the hub received them to ``tests/data/fault-NAME.npz`` for the tests. This script runs the hub itself.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import fault_figures, fault_runs, recorder
from rltop.backend.api.attribution import Attribution, Interval, Stratum
from rltop.backend.client.live import Client
from rltop.backend.hub import process, startup
from rltop.backend.hub.peers import Peer
from rltop.backend.hub.state import HubState
from rltop.backend.text.attribution_text import line_text
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir, for_run
from tests.support.fault_recordings import DATA, rows_of, save

STOP_S = 60.0
SEED = 0
WINDOW = 20
"""Number of last steps to use, the default of `rltop attribution`."""

KEPT = range(6, 18)
"""Steps to save: faults show, and the trainer still has every version that a replica may have."""


def serve(rundir: RunDir, path: Path) -> int:
    """Run the hub; save the messages of some steps when it ends."""
    messages: list[tuple[wire.DataBody, wire.Arrays]] = []

    class RecordingState(HubState):
        def data(self, frames: list[bytes], now: float, peer: Peer | None = None) -> Any:
            _, body, arrays = wire.decode_data([bytes(frame) for frame in frames])
            messages.append((body, arrays))
            return super().data(frames, now, peer)

    setattr(process, "HubState", RecordingState)  # noqa: B010 - the hub looks the class up by this name
    code = startup.main(rundir)
    if rows := [row for row in rows_of(messages, SEED) if row.step in KEPT]:
        save(path, rows, SEED)
    return code


def look_at(name: str, steps: int, demo: list[str]) -> int:
    """Run the demo with the fault and print its row."""
    fault = [] if name == "healthy" else ["--fault", name]
    path = DATA / f"fault-{name}.npz"
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as home:
        os.environ["RLTOP_HOME"] = home
        rundir = for_run("fault")
        rundir.create()
        hub = subprocess.Popen([sys.executable, "-m", "bench.faults", "--serve", str(rundir.path), str(path)])
        with Client(rundir) as client:
            client.snapshot(60.0)
            command = ["demo", "--headless", "--run", "fault", "--steps", str(steps), "--seed", str(SEED)]
            command += [*fault, *demo]
            code = subprocess.run([sys.executable, "-m", "rltop.tui.cli.main", *command], check=False).returncode
            found = client.attribution(WINDOW)
            subprocess.run([sys.executable, "-m", "rltop.tui.cli.main", "attribution", "fault"], check=False)
        hub.send_signal(signal.SIGTERM)
        hub.wait(STOP_S)
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
    """A row of the table; see ``COLUMNS``."""
    lines = {line.engine: line for line in found.lines}
    cells = [name]
    cells += [_cell(_of(found.strata, "engine", engine), "k3") for engine in ("e0", "e1")]
    cells.append(", ".join(f"{mean_lag(found, engine):.1f}" for engine in ("e0", "e1")))
    for engine in ("e0", "e1"):
        cells.append(line_text(lines[engine]) if engine in lines else "one lag")
    cells += [_cell(_of(found.matched, "engine", engine), "k3") for engine in ("e0", "e1")]
    cells += [_cell(_of(found.matched, "prefix", label), "abs_diff") for label in ("hit", "miss")]
    return f"| {' | '.join(cells)} |"


def mean_lag(found: Attribution, engine: str) -> float:
    """Mean lag of the tokens of an engine, in versions."""
    strata = [s for s in found.strata if s.dimension == "lag" and s.engine == engine and s.label.strip("+").isdigit()]
    return sum(int(s.label.strip("+")) * s.tokens for s in strata) / sum(s.tokens for s in strata)


def _of(strata: list[Stratum], dimension: str, label: str) -> Stratum | None:
    return next((s for s in strata if (s.dimension, s.label) == (dimension, label)), None)


def _cell(stratum: Stratum | None, figure: str) -> str:
    return "-" if stratum is None else _text(getattr(stratum, figure))


def _text(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{value.mean:.2g}"
    return f"{value.mean:.2g} ({value.low:.2g} to {value.high:.2g})"


LOCK_RELEASED_S = 0.5
"""Time without the lock between two turns, for other processes that wait for it."""


def record_all(given: argparse.Namespace) -> int:
    """Record the listed runs that have no recording yet, one at a time. Returns the number of failures."""
    listed = [run for run in fault_runs.RUNS if not given.names or any(name in run.name for name in given.names)]
    tried: set[str] = set()
    failed = 0
    while _todo(listed, given.out, tried):
        with recorder.exclusive(given.lock):
            for run in _todo(listed, given.out, tried)[: given.per_turn]:
                tried.add(run.name)
                failed += not _recorded(run, given.out, given.limit)
        time.sleep(LOCK_RELEASED_S)
    return failed


def _todo(listed: list[fault_runs.Run], out: Path, tried: set[str]) -> list[fault_runs.Run]:
    return [run for run in listed if run.name not in tried and not (out / run.name / "run.json").exists()]


def _recorded(run: fault_runs.Run, out: Path, limit_s: float) -> bool:
    began = time.monotonic()
    try:
        recorder.record(run, out, limit_s)
    except Exception as error:  # noqa: BLE001 - the next run may succeed
        print(f"{time.strftime('%T')} {run.name}: {type(error).__name__}: {error}", flush=True)
        return False
    print(f"{time.strftime('%T')} {run.name}: {time.monotonic() - began:.0f} s", flush=True)
    return True


def main() -> int:
    """See the top of the file."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(RunDir(Path(sys.argv[2])), Path(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("list", help="print the runs of the bench")
    look, one, every = (parts.add_parser(part) for part in ("look", "record", "record-all"))
    for command, steps in ((look, 28), (one, 24)):
        command.add_argument("name", help="healthy, or a fault of `rltop demo`")
        command.add_argument("--steps", type=int, default=steps)
        command.epilog = "Options of `rltop demo` follow after --."
    one.add_argument("--seed", type=int, default=SEED)
    every.add_argument("names", nargs="*", help="parts of run names (default: all runs)")
    every.add_argument("--lock", type=Path, help="file to lock with flock while a run is recorded")
    every.add_argument("--per-turn", type=int, default=1, help="runs per turn with the lock")
    for command in (one, every):
        command.add_argument(
            "--out", type=Path, required=True, help="directory for the recordings, one directory per run"
        )
        command.add_argument("--limit", type=float, default=600.0, help="time limit of a run of the demo, in seconds")
    figures = parts.add_parser("figures", help="print the table of the recorded runs for tuning (docs/faults.md)")
    figures.add_argument("--out", type=Path, required=True, help="directory of the recordings")
    arguments = sys.argv[1:]
    own = arguments.index("--") if "--" in arguments else len(arguments)
    given, demo = parser.parse_args(arguments[:own]), arguments[own + 1 :]
    recorder.end_on_sigterm()
    if given.part == "list":
        for run in fault_runs.RUNS:
            print(run.part, run.name)
        return 0
    if given.part == "figures":
        for line in fault_figures.rows(given.out):
            print(line)
        return 0
    if given.part == "record-all":
        return min(record_all(given), 1)
    if given.part == "record":
        run = fault_runs.Run(given.name, given.seed, steps=given.steps, options=tuple(demo))
        return 0 if _recorded(run, given.out, given.limit) else 1
    return look_at(given.name, given.steps, demo)


if __name__ == "__main__":
    sys.exit(main())
