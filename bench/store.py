"""Write rate, size and query times of the store.

    .venv/bin/python -m bench.store [--steps 1000000]

Run it from the root of a checkout. It writes a run of ``--steps`` steps frame by frame through the writer of the hub:
all metrics of a step, two engines' parts, 40 scalars of the trainer. Then it times the commits of a hub (a frame of one
step each) and the queries: the snapshot as a hub or a replay opens it, the newest 500 steps of a metric, and the 20
worst tokens of 100 steps from kept sequences. Queries run in a process that has not read the file before, with a warm
page cache unless marked cold. *Painted* is the overview of the whole run at 160x48.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from rltop.backend import api, metrics
from rltop.backend.api.samples import Sequence as KeptSequence
from rltop.backend.api.samples import Token
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.retention import Limits
from rltop.backend.store.row_mapping import SampleRow, sample_row
from rltop.backend.store.write import Writer
from tests.support import pictures
from tests.support.screens import dashboard

ALL = Limits(steps=10**9, coarse_steps=10**9, step_engines=10**9)
NAMES = [metric.name for metric in metrics.METRICS]


def steps(count: int, engines: int, scalars: int) -> list[api.Step]:
    """``count`` steps to be used in turn, so that their creation is not timed."""
    rng = random.Random(0)

    def values() -> dict[str, float | None]:
        return {name: rng.gauss(0, 1) for name in NAMES}

    return [
        api.Step(
            n, 1e9 + n, n, False, values(), {f"e{e}": values() for e in range(engines)},
            trainer={f"s{i}": rng.random() for i in range(scalars)},
        )
        for n in range(count)
    ]  # fmt: skip


def frame(step: api.Step, number: int) -> api.Frame:
    made = api.Step(number, step.closed + number, number, False, step.values, step.engines, step.unjoined, step.trainer)
    return api.Frame("bench", number + 1, 1e9 + number / 5, steps=[made])


def ingest(directory: Path, count: int, engines: int, scalars: int, limits: Limits, tidy: bool) -> tuple[float, float]:
    """Steps per second of CPU in transactions of 200 frames, and MB of the closed file."""
    made = steps(200, engines, scalars)
    writer = Writer(directory / NAME, "bench", "bench", 1e9, limits=limits)
    start = time.process_time()
    for first in range(0, count, 200):
        writer.write([frame(step, first + place) for place, step in enumerate(made)])
        if tidy:
            writer.maintain()
    spent = time.process_time() - start
    while tidy and writer._retention._reached["step"] < count - limits.steps:
        writer.maintain()
    writer.close()
    return count / spent, (directory / NAME).stat().st_size / 1e6


def commits(directory: Path, count: int) -> list[float]:
    """Microseconds of each commit of one step's frame."""
    made = steps(count, 0, 0)
    writer = Writer(directory / NAME, "bench", "bench", 1e9)
    took = []
    for number, step in enumerate(made):
        one = [frame(step, number)]
        start = time.perf_counter()
        writer.write(one)
        took.append((time.perf_counter() - start) * 1e6)
    writer.close()
    return took


def tokens(directory: Path, count: int) -> None:
    """Time 24 kept sequences of 1000 tokens and 64 single tokens per step, and queries of the worst of 100 steps."""
    rng = np.random.default_rng(0)
    writer = Writer(directory / NAME, "bench", "bench", 1e9)
    spent, total = 0.0, 0
    for step in range(count):
        made = []
        for number in range(24):
            rollout = -rng.exponential(1, 1000).astype("<f4")
            rollout[rng.random(1000) < 0.4] = 0.0
            trainer = (rollout + rng.normal(0, 0.02, 1000)).astype("<f4")
            ids = rng.zipf(1.3, 1000).clip(max=150_000).astype("<i4")
            body = KeptSequence(
                step, 0, number, 1000, 0, 0.02, 3e-4, 1.0, ["e0"], ["r1"], ["content"], "stop", 100, 96,
                ids[:100].tobytes(), ids.tobytes(), b"\1" * 1000, rollout.tobytes(), trainer.tobytes(),
                np.full(1000, step, "<i4").tobytes(), bytes(4000),
            )  # fmt: skip
            made.append(SampleRow(step, "worst", "e0", 1000, float(rng.random()), msgspec.msgpack.encode(body)))
        around = rng.integers(0, 150_000, 32).astype("<i4").tobytes()
        for place in range(64):
            token = Token(
                step, 0, place, 5, 1000, 17, -0.5, -0.25, "e0", "r1", step, 0, 100, 96, 1.0, around[:96], around[96:]
            )
            kind = "abs_diff" if place < 32 else "k3"
            made.append(SampleRow(step, kind, "e0", 1000, float(rng.random()), msgspec.msgpack.encode(token)))
        start = time.process_time()
        rows = [("sample", sample_row(one)) for one in made]
        writer.write([api.Frame("bench", step + 1, 1e9 + step, steps=[])], [rows])
        spent += time.process_time() - start
        total += 24_000
    writer.close()
    size = (directory / NAME).stat().st_size
    with Reader(directory) as reader:
        took = []
        for first in range(0, count - 100, 37):
            start = time.perf_counter()
            found = reader.samples("abs_diff", first, first + 99)
            took.append((time.perf_counter() - start) * 1e3)
            assert len(found) == 20
    print(
        f"kept sequences: {total / spent / 1e6:.2f} M tokens/s of CPU, {size / total:.1f} B/token with 64 single "
        f"tokens a step; 20 worst tokens of 100 steps: {took[0]:.2f} ms first, {statistics.median(took):.2f} ms median"
    )


async def paint(picture: api.Snapshot) -> float:
    """Milliseconds from the snapshot to the painted overview."""
    client = pictures.HeldClient(pictures.no_steps())
    async with dashboard(client, (160, 48)) as (app, _):
        client.show(picture)
        began = time.perf_counter()
        app.tick()
        return 1e3 * (time.perf_counter() - began)


def query(path: Path, cold: bool) -> None:
    """Time the queries, in a process of its own."""
    file = os.open(path / NAME, os.O_RDONLY)
    if cold:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    with Reader(path) as reader:
        first = time.perf_counter()
        reader.series("kl_k3")
        series = (time.perf_counter() - first) * 1e3
        start, cpu = time.perf_counter(), time.process_time()
        picture = reader.snapshot()
        opened = time.perf_counter() - start
        columns = {name: [step.values.get(name) for step in picture.steps.values()] for name in NAMES}
        shown, cpu = time.perf_counter() - start, time.process_time() - cpu
        took = []
        for name in ["kl_k3", *NAMES[:20]]:
            start = time.perf_counter()
            found = reader.series(name, last=500)
            took.append((time.perf_counter() - start) * 1e3)
            assert len(found) == 500
    print(
        f"{'cold' if cold else 'warm'}: open {opened * 1e3:.0f} ms, with columns {shown * 1e3:.0f} ms "
        f"({cpu * 1e3:.0f} of CPU), painted in {asyncio.run(paint(picture)):.0f} ms more, "
        f"{len(picture.steps)} steps in it, {len(columns)} metrics; "
        f"newest 500 of a metric {series:.2f} ms first, {statistics.median(took):.2f} ms median"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--query", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.query:
        query(options.query, options.cold)
        return
    with tempfile.TemporaryDirectory(prefix="rl") as made:
        for name in ("commits", "small", "tokens", "whole", "thinned"):
            (Path(made) / name).mkdir()
        took = sorted(commits(Path(made) / "commits", 5000))
        print(f"commit of a step: p50 {took[2500]:.0f} us, p99 {took[4950]:.0f}, max {took[-1]:.0f}")
        tokens(Path(made) / "tokens", 300)
        for engines, scalars in ((0, 0), (2, 40)):
            rate, size = ingest(Path(made) / "small", 100_000 // (1 + engines), engines, scalars, ALL, tidy=False)
            each = size * 1e6 / (100_000 // (1 + engines))
            print(f"{engines} engines, {scalars} scalars: {rate:,.0f} steps/s of CPU, {each:.0f} B/step")
            (Path(made) / "small" / NAME).unlink()
        for name, limits in (("whole", ALL), ("thinned", Limits())):
            rate, size = ingest(Path(made) / name, options.steps, 0, 0, limits, tidy=name == "thinned")
            print(f"{options.steps} steps {name}: {rate:,.0f} steps/s of CPU, {size:.0f} MB", flush=True)
            for how in (["--cold"], [], []):
                arguments = ["--query", str(Path(made) / name), *how]
                subprocess.run([sys.executable, "-m", "bench.store", *arguments], check=True)


if __name__ == "__main__":
    main()
