"""Cost of a busy Python thread for rltop's threads in the same process: each measured with and without it in one run.

    python -m bench.starved [--part trainer engine hub compile] [--rounds N] [--against CHECKOUT]

A thread that computes in Python releases the interpreter lock every 5 ms, so another thread that releases the lock n
times per message delays the message by up to n x 5 ms.

*trainer*: a process with a collector passes steps; the time from ``step()`` to the arrival of the close in another
process, and the queue of the collector at the end. *engine*: an agent on a simulated engine; the time from the end of a
request to its arrival. *hub*: a real hub process; the latency of a command: idle, with a busy thread, and while steps
of ``--rows`` x 1000 tokens are measured, whose rollouts arrive before or after the rows. *compile*: the same while the
kernels are compiled for the first time. ``--against``: each part with the code of another checkout first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.collectors import TrainerCollector
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir

ROOT = Path(__file__).parent.parent
PARTS = ("trainer", "engine", "hub", "compile")
STEPS = {"small": (40, 8, 64, 0.1), "large": (5, 250, 1000, 1.0), "heavy": (5, 750, 1000, 1.5)}
"""Load of a trainer: number of steps, rows, tokens per row, seconds between steps."""

ENGINE_BATCHES = 4
TOKENS = 128
PAUSE_S = 0.005
"""Time between two requests."""


def spin(seconds: float) -> None:
    """Compute in Python and release the interpreter lock only on request."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(1000):
            pass


@contextlib.contextmanager
def run_directory() -> Iterator[RunDir]:
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as path:
        yield RunDir(Path(path))


@contextlib.contextmanager
def child(*arguments: str, environ: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process of this file, until the end of the block."""
    command = [sys.executable, "-m", "bench.starved", "--child", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (environ or {})
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


# --- children ---------------------------------------------------------------------------------------------------------


def receive(path: str) -> None:
    """The hub's end: prints when each closed step, and each rollout after its end, arrived; ends with its stdin."""
    directory, context = RunDir(Path(path)), zmq.Context()
    data, control = context.socket(zmq.PULL), context.socket(zmq.ROUTER)
    data.bind(directory.ingest)
    control.bind(directory.control)
    print("ready", flush=True)
    poller = zmq.Poller()
    for polled in (data, control, sys.stdin.fileno()):
        poller.register(polled, zmq.POLLIN)
    steps: dict[int, float] = {}
    late: list[float] = []
    while sys.stdin.fileno() not in (ready := dict(poller.poll())):
        if control in ready:
            identity, frame = control.recv_multipart()
            if isinstance(bye := wire.decode_to_hub(frame), wire.Bye):
                control.send_multipart([identity, wire.encode(wire.ByeAck(bye.epoch))])
        if data in ready:
            _, body, _ = wire.decode_data(data.recv_multipart())
            if isinstance(body, wire.StepClosed):
                steps[body.step] = time.time()
            elif isinstance(body, wire.Rollouts):
                late += [time.time() - rollout.finished for rollout in body.rollouts]
    print(json.dumps({"steps": steps, "late": late}), flush=True)
    context.destroy(0)


def train(path: str, size: str, how: str) -> None:
    """Pass steps of one size; prints when each was closed and how many bytes wait at the end."""
    steps, rows, tokens, period = STEPS[size]
    rng = np.random.default_rng(0)
    shape = rows, tokens
    arrays: dict[str, Any] = {
        name: -rng.random(shape, np.float32)
        for name in ("rollout_logprobs", "trainer_logprobs", "old_logprobs", "entropy")
    }
    arrays |= {"token_ids": rng.integers(0, 32_000, shape), "mask": np.ones(shape, bool)}
    arrays |= {"advantages": rng.random(rows, np.float32), "rewards": rng.random(rows, np.float32)}
    collector = TrainerCollector(hub=path, start_hub=False)
    work = spin if how == "busy" else time.sleep
    work(1.0)
    closed = {}
    for step in range(steps):
        collector.sequences(step, **arrays)
        collector.step(step)
        closed[step] = time.time()
        work(period)
    waiting = collector._sender.health().queue_bytes
    print(json.dumps({"closed": closed, "waiting": waiting}), flush=True)
    while collector._sender.health().queue_bytes:
        work(0.01)
    collector.close()


def step_engine(path: str, how: str) -> None:
    """Step a stand-in engine that computes in Python all the time, or hardly at all."""
    from bench import engine_threads
    from rltop.collectors.transport.error_boundary import ErrorBoundary
    from rltop.collectors.vllm.agent import Agent

    engine_threads.BUSY = 1.0 if how == "busy" else 0.0
    load = engine_threads.Load(TOKENS, 0.0055, spread=True)
    agent = Agent(load.engine, RunDir(Path(path)), ErrorBoundary())
    for _ in range(ENGINE_BATCHES):
        load.batch()
    agent.close()


def serve(path: str, how: str) -> None:
    """A hub; perhaps with a busy thread next to its own."""
    from rltop.backend.hub import startup

    if how == "busy":
        threading.Thread(target=spin, args=(600.0,), daemon=True).start()
    code = startup.main(RunDir(Path(path)))
    os._exit(code)


# --- what is measured -------------------------------------------------------------------------------------------------


def quantiles(seconds: list[float]) -> tuple[float, float, float]:
    """Median, 99th percentile and maximum, in ms."""
    found = np.quantile(np.array(seconds) * 1000, (0.5, 0.99, 1.0))
    return float(found[0]), float(found[1]), float(found[2])


def show(name: str, alone: list[float], beside: list[float], note: str = "") -> None:
    figures = [quantiles(alone), quantiles(beside)]
    cells = "".join(f"{p50:8.0f} /{p99:6.0f} /{most:6.0f} |" for p50, p99, most in figures)
    ratio = figures[1][0] / figures[0][0]
    print(f"{name:34} |{cells} {ratio:6.1f} | {note}  n={len(alone)}, {len(beside)}", flush=True)


def read_all(receiver: subprocess.Popen[str]) -> Any:
    """End a receiver; what it found."""
    assert receiver.stdin is not None
    assert receiver.stdout is not None
    receiver.stdin.close()
    return json.loads(receiver.stdout.readline())


def trainer(size: str, how: str) -> tuple[list[float], int]:
    with run_directory() as directory, child("receive", str(directory.path)) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        with child("train", str(directory.path), size, how) as process:
            output, _ = process.communicate(timeout=300)
        found, closed = read_all(receiver), json.loads(output)
        return [found["steps"][step] - at for step, at in closed["closed"].items()], closed["waiting"]


def engine(how: str) -> list[float]:
    with run_directory() as directory, child("receive", str(directory.path)) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        with child("engine", str(directory.path), how) as process:
            process.wait(300)
        return list(read_all(receiver)["late"])


class Asker:
    """Asks a hub for a flag, again and again; no engine is live, so the hub answers by itself."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.took: list[float] = []

    def ask(self) -> None:
        """One question, and a pause."""
        question = api.AskSet(uuid.uuid4().hex, "prefix_caching", "off")
        began = time.perf_counter()
        self.client.ask(question)
        assert self.client.wait(lambda c: question.id in c.answers, 120)
        self.took.append(time.perf_counter() - began)
        time.sleep(PAUSE_S)

    def until(self, step: int) -> None:
        """Until that step is measured, or much longer than it takes."""
        deadline = time.monotonic() + 120
        while self.client.view is None or step not in self.client.view.steps:
            assert time.monotonic() < deadline
            self.ask()


@contextlib.contextmanager
def hub(how: str, environ: dict[str, str] | None = None) -> Iterator[tuple[Asker, zmq.Socket[bytes]]]:
    context = zmq.Context()
    with run_directory() as directory, child("hub", str(directory.path), how, environ=environ) as process:
        with Client(directory) as client:
            client.snapshot(60)
            push = context.socket(zmq.PUSH)
            push.linger = 0
            push.sndhwm = 0
            push.connect(directory.ingest)
            yield Asker(client), push
            push.close()
            client.stop_hub()
        process.wait(60)
    context.term()


def idle(how: str, count: int) -> list[float]:
    with hub(how) as (asker, _):
        for _ in range(count):
            asker.ask()
        return asker.took


def measuring(rows: int, rounds: int, *, rows_first: bool, how: str = "alone") -> list[float]:
    from bench.hub_ingest import messages

    seqs: dict[str, int] = {}
    with hub(how) as (asker, push):
        for step in range(rounds + 1):
            engines, rank = messages(rows, 1000, step, seqs)
            if step == 1:
                asker.took.clear()  # the first had the kernels loaded
            for frames in rank + engines if rows_first else engines + rank:
                push.send_multipart(frames)
            asker.until(step)
        return asker.took


def compiling(how: str) -> tuple[list[float], float]:
    from bench.hub_ingest import messages

    with (
        tempfile.TemporaryDirectory() as empty,
        hub(how, {"NUMBA_CACHE_DIR": empty}) as (asker, push),
    ):
        engines, rank = messages(50, 100)
        began = time.perf_counter()
        for frames in engines + rank:
            push.send_multipart(frames)
        asker.until(0)
        return asker.took, time.perf_counter() - began


def compare(other: Path, options: argparse.Namespace) -> None:
    """Part by part, with the code of another checkout and with that of this one."""
    for part in options.part:
        for checkout in (other, ROOT):
            with tempfile.TemporaryDirectory() as tree:
                (Path(tree) / "rltop").mkdir()
                for package in ("collectors", "integrations", "backend", "tui"):
                    (Path(tree) / "rltop" / package).symlink_to(checkout.resolve() / package)
                command = [sys.executable, "-m", "bench.starved", "--part", part]
                command += ["--rows", str(options.rows), "--rounds", str(options.rounds)]
                print(f"\n{part}, {'here' if checkout == ROOT else 'there'}", flush=True)
                subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{tree}:{ROOT}"}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--rows", type=int, default=1000, help="of a step that the hub measures, of 1000 tokens each")
    parser.add_argument("--rounds", type=int, default=6, help="steps that the hub measures")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, *rest = options.child
        children: dict[str, Callable[..., None]] = {
            "receive": receive, "train": train, "engine": step_engine, "hub": serve,
        }  # fmt: skip
        children[name](*rest)
        return
    if options.against is not None:
        compare(options.against, options)
        return
    print(f"{'ms: p50 / p99 / max':34} |{'alone':>24} |{'beside':>24} |  p50 x |")
    if "trainer" in options.part:
        for size in STEPS:
            (alone, _), (beside, waiting) = trainer(size, "alone"), trainer(size, "busy")
            show(f"trainer, {size} steps", alone, beside, f"{waiting >> 10} KiB wait at the end")
    if "engine" in options.part:
        show("engine, a finished request", engine("alone"), engine("busy"))
    if "hub" in options.part:
        quiet = idle("alone", 200)
        show("hub, next to a busy thread", quiet, idle("busy", 200))
        show("hub, measuring, rollouts first", quiet, measuring(options.rows, options.rounds, rows_first=False))
        show("hub, measuring, rows first", quiet, measuring(options.rows, options.rounds, rows_first=True))
    if "compile" in options.part:
        (took, wall), (busy, longer) = compiling("alone"), compiling("busy")
        show("hub, compiling", idle("alone", 100), took, f"{wall:.1f} s until measured")
        show("hub, compiling next to a busy thread", idle("busy", 100), busy, f"{longer:.1f} s until measured")


if __name__ == "__main__":
    main()
