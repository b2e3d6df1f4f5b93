"""Runs many real demos on one machine, several at once, within a time budget, and collects their output.

    bench/gpu_demo.sh SETUP OUT                                    # a smoke test
    bench/gpu_demo.sh SETUP OUT --runs runs.txt --at-once 6 --budget 540

A line of ``runs.txt`` is a name and a shell command, run in the checkout with ``$INTO`` as its output folder and
``$RLTOP_HOME`` as its home. The first line runs alone, so that compiled code is cached for the others; if it fails,
nothing else runs. ``OUT`` gets ``summary.txt`` and ``runs-N.tar`` with a folder per run: its output, ``log``, and the
logs of its engines if it failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

DEMO = f"{sys.executable} -m rltop.tui.cli.main demo --headless --json $INTO/report.json"
SMOKE = f"smoke {DEMO} --engines 2 --steps 4"

POLL_S = 0.2
END_S = 45.0
"""Time between SIGTERM and SIGKILL: a run first shuts its engines down."""

TAR_BYTES = 12 << 20
"""Size beyond which the next tar is started."""

TAIL_LINES = 60


@dataclass
class Run:
    """A line of the list, running or ended."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    began: float
    terminated: float = 0.0
    """Time of SIGTERM; 0 if none was sent."""


class Bench:
    """Starts runs, ends them at their time limit and keeps their output."""

    def __init__(self, out: Path, work: Path, each_s: float, end: float) -> None:
        self._out = out
        self._work = work
        self._each_s = each_s
        self._end = end
        self._tars = 0
        self._quickest_s = 0.0
        self._began = time.monotonic()
        self.failed: list[str] = []

    def go(self, lines: list[str], at_once: int) -> None:
        """Run the first line alone, then ``at_once`` at a time, while the quickest run so far fits the budget."""
        waiting, running = list(lines), list[Run]()
        first = True
        while waiting or running:
            for run in [run for run in running if self._is_over(run)]:
                running.remove(run)
                self._keep(run)
                if first and self.failed:
                    waiting.clear()
                first = False
            while waiting and len(running) < (1 if first else at_once):
                if time.monotonic() + self._quickest_s > self._end:
                    self.log(f"no time for {', '.join(line.split()[0] for line in waiting)}")
                    waiting.clear()
                else:
                    running.append(self._start(waiting.pop(0)))
            time.sleep(POLL_S)

    def log(self, text: str) -> None:
        """Write one line to standard output and to the summary."""
        line = f"[{time.monotonic() - self._began:5.0f}s] {text}"
        print(line, flush=True)
        with (self._out / "summary.txt").open("a") as file:
            file.write(line + "\n")

    def _start(self, line: str) -> Run:
        name, command = line.split(maxsplit=1)
        folder = self._work / name
        (folder / "home").mkdir(parents=True)
        (folder / "into").mkdir()
        environment = {**os.environ, "INTO": str(folder / "into"), "RLTOP_HOME": str(folder / "home")}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
        return Run(name, process, folder, time.monotonic())

    def _is_over(self, run: Run) -> bool:
        """Whether the run has ended; SIGTERM at its time limit, SIGKILL after ``END_S`` more."""
        if run.process.poll() is not None:
            return True
        now = time.monotonic()
        if run.terminated and now > run.terminated + END_S:
            os.killpg(run.process.pid, signal.SIGKILL)
        elif not run.terminated and now > min(run.began + self._each_s, self._end):
            run.terminated = now
            os.killpg(run.process.pid, signal.SIGTERM)
        return False

    def _keep(self, run: Run) -> None:
        code, took = run.process.returncode, time.monotonic() - run.began
        made = sorted(path for path in (run.folder / "into").rglob("*") if path.is_file())
        outputs = ", ".join(f"{path.name} {path.stat().st_size}" for path in made)
        self.log(
            f"{run.name}: exit {code} after {took:.0f} s{', at its time limit' if run.terminated else ''}; "
            f"{outputs or 'no output'}"
        )
        kept = [run.folder / "log", *made]
        if code == 0:
            self._quickest_s = min(took, self._quickest_s or took)
        else:
            self.failed.append(run.name)
            kept += sorted((run.folder / "home").glob("*/*.log"))
            for log in [run.folder / "log", *sorted((run.folder / "home").glob("*/*.log"))]:
                print(f"--- the end of {log.relative_to(self._work)}\n{tail(log)}", flush=True)
        with tarfile.open(self._tar(), "a") as tar:
            for path in kept:
                tar.add(path, path.relative_to(self._work))
        shutil.rmtree(run.folder, ignore_errors=True)

    def _tar(self) -> Path:
        path = self._out / f"runs-{self._tars}.tar"
        if path.exists() and path.stat().st_size > TAR_BYTES:
            self._tars += 1
            return self._tar()
        return path


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def main() -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, help="list of runs (default: a smoke test)")
    parser.add_argument("--at-once", type=int, default=6)
    parser.add_argument("--each", type=float, default=240.0, help="time limit of a run, in seconds")
    parser.add_argument(
        "--budget", type=float, default=540.0, help="time limit of all runs, in seconds; END_S more to end"
    )
    given = parser.parse_args()
    lines = given.runs.read_text().splitlines() if given.runs else [SMOKE]
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as work:
        bench = Bench(given.out, Path(work), given.each, time.monotonic() + given.budget)
        bench.go(wanted, given.at_once)
    if not given.runs and not bench.failed:
        with tarfile.open(given.out / "runs-0.tar") as tar:
            log = tar.extractfile("smoke/log")
            print(log.read().decode() if log else "")
    bench.log(f"failed: {', '.join(bench.failed) or 'none'}")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
