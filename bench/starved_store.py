"""Cost for the store of a busy Python thread in the hub's process: each figure alone and next to one, in one run.

    python -m bench.starved_store [--commits 200]
    python -m bench.starved_store --starts 8 [--against PYTHON]

*store*: this process is the hub. The frames are those of a real hub state with rows of two engines, with the aggregates
that are stored with them. As in a hub, the writer process is launched before the rest is imported. The first write of a
run counts from the start of the store, with a writer that waits for it: file, tables, columns. Then a
frame is handed over every 50 ms; its commit ends when the store has acknowledged it. *hub*: a real hub process, two
engines, 20 steps a second. From the first step that a viewer is shown, and from the last, to a frame whose ``unstored``
is 0. *starts*: from a hub being ready (``hub.json``) to its store having the hub's row, also of the hub of another
checkout, alternating.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.store.aggregates import FrameAggregates
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.schema import StoreError
from rltop.backend.store.store import Store
from rltop.backend.store.writer_launch import launch_writer
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub
from tests.support.receiver import run_directory
from tests.support.store_load import SCALARS, fleet
from tests.support.training import Training

DEADLINE_S = 120.0

MADE = 30
"""Frames that are prepared, and used in turn."""

IMPORTS_S = 1.0
"""What a hub imports meanwhile takes about as long."""

PERIOD_S = 0.05
POLL_S = 0.003
STEPS = 60
PATIENCE_S = 10.0
"""How long to wait for a frame whose ``unstored`` is 0."""

BUSY_HUB = (
    "import runpy, sys, threading\n"
    "def spin():\n"
    "    while True:\n"
    "        for _ in range(1000): pass\n"
    "if sys.argv.pop(1) == 'busy': threading.Thread(target=spin, daemon=True).start()\n"
    "runpy.run_module('rltop.backend.hub', run_name='__main__', alter_sys=True)"
)

Item = tuple[api.Frame, FrameAggregates]


@contextlib.contextmanager
def busy_thread(wanted: bool) -> Iterator[None]:
    """Run a thread in this process that computes in Python and never waits."""
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            for _ in range(1000):
                pass

    thread = threading.Thread(target=spin, daemon=True)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if wanted:
            thread.join()


def frames(count: int) -> list[Item]:
    """Return what a hub hands to its store, a step in each."""
    hub, training = Hub("bench"), Training(engines=2, rows=32)
    made = []
    for _ in range(count):
        for source, body, arrays in training.step():
            if isinstance(body, wire.StepClosed):
                body = msgspec.structs.replace(body, metrics=SCALARS)
            hub.send(source, body, arrays)
        hub.engine("e0")
        hub.engine("e1")
        hub.state.tick(hub.now)
        frame = hub.state.next_frame(hub.now, heartbeat=True)
        assert frame is not None
        made.append((frame, hub.state.frames.aggregates(frame)))
        hub.now += 1.0
    return [item for item in made if item[0].steps]


def numbered(item: Item, number: int) -> Item:
    """Return the frame as the ``number``-th of a run."""
    frame, beside = item
    return msgspec.structs.replace(frame, seq=number, time=1e9 + number * PERIOD_S), beside


def store_times(made: list[Item], commits: int) -> tuple[float, list[float]]:
    """Seconds of the first write of a run, and of each commit after it."""
    with tempfile.TemporaryDirectory() as directory:
        writer = launch_writer(Path(directory))
        time.sleep(IMPORTS_S)
        start = time.perf_counter()
        store = Store(Path(directory), "bench", "bench", 1e9, writer)
        store.start()
        took = []
        for number in range(commits + 1):
            item = numbered(made[number % len(made)], number + 1)
            start = time.perf_counter() if number else start
            assert store.put(*item)
            assert store.settle(60) == 0
            took.append(time.perf_counter() - start)
            time.sleep(PERIOD_S)
        store.end()
    return took[0], took[1:]


def hub_times(how: str) -> tuple[float, float]:
    """Seconds from the first step shown to the first frame without ``unstored``, and the same from the last step."""
    with run_directory() as rundir:
        process = subprocess.Popen([sys.executable, "-c", BUSY_HUB, how, str(rundir.path)], stderr=subprocess.DEVNULL)
        try:
            with Client(rundir) as client, fleet(rundir, steps_per_s=20) as load:
                first = settled_after(client, 0)
                while load.steps < STEPS:
                    client.poll(0.05)
                load.pause()
                last = settled_after(client, load.steps - 1)
                client.stop_hub()
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
    return first, last


def settled_after(client: Client, step: int) -> float:
    """Seconds from a frame with the step to one whose ``unstored`` is 0; infinite if none arrived."""
    assert client.wait(lambda c: c.view is not None and step in c.view.steps, DEADLINE_S)
    shown = time.perf_counter()
    settled = client.wait(lambda c: c.view is not None and not c.view.counters.get("unstored"), PATIENCE_S)
    return time.perf_counter() - shown if settled else float("inf")


def start_time(python: str) -> float:
    """Seconds from a hub being ready to its store having the hub's row."""
    with run_directory() as rundir:
        command = [python, "-m", "rltop.backend.hub", str(rundir.path)]
        hub = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/")
        try:
            while not rundir.info.exists():
                time.sleep(POLL_S)
            ready = time.perf_counter()
            while not has_hub(rundir.path / NAME):
                time.sleep(POLL_S)
            return time.perf_counter() - ready
        finally:
            hub.terminate()
            hub.wait(DEADLINE_S)


def has_hub(path: Path) -> bool:
    with contextlib.suppress(StoreError), Reader(path) as reader:
        return bool(reader.lives())
    return False


def starts(count: int, against: str | None) -> None:
    hubs = {"this": sys.executable} | ({"against": against} if against else {})
    took: dict[str, list[float]] = {name: [] for name in hubs}
    for _ in range(count):
        for name, python in hubs.items():
            took[name].append(start_time(python))
    for name, seconds in took.items():
        print(
            f"{name}: ready to stored p50 {statistics.median(seconds) * 1000:.0f} ms, max {max(seconds) * 1000:.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--starts", type=int, default=0, help="only time this many starts of a hub")
    parser.add_argument("--against", help="Python of another checkout's environment")
    options = parser.parse_args()
    if options.starts:
        starts(options.starts, options.against)
        return
    made = frames(MADE)
    with busy_thread(wanted=False):
        store_times(made, 2)  # imports and compiles
    print("| | first write | commit p50 | p99 | first step to unstored 0 | last step to unstored 0 |")
    print("|---|---|---|---|---|---|")
    for how in ("alone", "busy"):
        with busy_thread(wanted=how == "busy"):
            first, commits = store_times(made, options.commits)
        shown_first, shown_last = hub_times(how)
        p99 = statistics.quantiles(commits, n=100, method="inclusive")[98]
        print(
            f"| {'alone' if how == 'alone' else 'next to a busy thread'} | {first * 1000:.0f} ms "
            f"| {statistics.median(commits) * 1000:.1f} ms | {p99 * 1000:.1f} ms "
            f"| {shown_first:.2f} s | {shown_last:.2f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
