"""Cost of the collector on a simulated engine that steps at a given rate.

``python -m bench.engine_threads [--tokens N] [--step-ms MS]``: a real agent, its real threads, and a real hub process
process the output of 64 requests at a time in steps of ``--step-ms``. The simulated engine computes for part of each
step, so that the collector's code leaves the caches as on a real engine. Prints CPU by thread, per step and per
finished request, and the time that the hooks add to the engine's own thread; ``--profile`` also prints a profile of the
sender's thread, which slows it down. ``--against CHECKOUT`` runs the collector of another checkout and this one in
turn, and prints both results of each pair.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bench.engine_side import Attached, Cpu, StepTimer
from rltop.backend.client.live import Client
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Sender
from tests.support.engine_doubles import AsyncScheduler, EngineCore, LogprobsLists, Output, Outputs

ROOT = Path(__file__).parent.parent
PAIRS = 5
RUNNING = 64
PROMPT = 32
BUSY = 0.6
"""Share of a step in which the simulated engine holds the interpreter, as when it prepares its next batch."""


class Scheduler(AsyncScheduler):
    """Returns the prepared schedule and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.finished_req_ids: set[str] = set()
        self.scheduled: Any = None
        self.outputs: dict[int, Outputs] = {}

    def schedule(self, throttle_prefills: bool = False) -> Any:  # noqa: ARG002 - the double's signature
        return self.scheduled

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:  # noqa: ARG002
        return self.outputs


class Load:
    """An engine core that samples one token per step for each of ``RUNNING`` requests of ``tokens`` tokens.

    Requests start and end together; with ``spread``, one after the other, as in a real run.
    """

    def __init__(self, tokens: int, step_s: float, spread: bool) -> None:
        self.engine = EngineCore(Scheduler())
        self.engine.step_fn = self._step
        self.scheduler: Any = self.engine.scheduler
        self._tokens, self._step_s = tokens, step_s
        self._running: list[Any] = []
        self._first = [tokens * row // RUNNING if spread else tokens for row in range(1, RUNNING + 1)]
        self._served = 0
        self._params = SimpleNamespace(logprobs=0, temperature=1.0, top_p=1.0, seed=None)
        self._rng = np.random.default_rng(0)
        self._cold = np.ones(4 << 20, np.int64)

    def batch(self) -> None:
        """Run as many steps as a request has tokens, so that ``RUNNING`` requests end."""
        for _ in range(self._tokens):
            until = time.perf_counter() + self._step_s
            self.engine.step_fn()
            self._compute(until)

    def _request(self) -> Any:
        self._served += 1
        added = SimpleNamespace(
            request_id=f"b{self._served}-1a2b3c4d",
            prompt_token_ids=self._rng.integers(3, 30000, PROMPT).tolist(),
            sampling_params=self._params,
            arrival_time=time.time(),
            output_token_ids=[],
            skip_reading_prefix_cache=False,
            resumable=False,
            left=self._first.pop() if self._first else self._tokens,
        )
        self.scheduler.add_request(added)
        return added

    def _step(self) -> tuple[dict[int, Outputs], bool]:
        scheduler = self.scheduler
        kept = [request for request in self._running if request.left]
        new = [self._request() for _ in range(RUNNING - len(kept))]
        self._running = [*kept, *new]
        scheduler.scheduled = SimpleNamespace(
            scheduled_new_reqs=[SimpleNamespace(req_id=request.request_id) for request in new],
            total_num_scheduled_tokens=RUNNING,
            finished_req_ids=scheduler.finished_req_ids,
        )
        scheduled = scheduler.schedule()
        scheduler.finished_req_ids = set()
        tokens = torch.from_numpy(
            self._rng.integers(3, 30000, (RUNNING, 1), np.int32)
        ).numpy()  # as a model runner's, backed by torch
        values = torch.from_numpy(-self._rng.random((RUNNING, 1), np.float32)).numpy()
        outputs = []
        for row, (request, (token,)) in enumerate(zip(self._running, tokens.tolist(), strict=True)):
            request.output_token_ids.append(token)
            request.left -= 1
            lists = LogprobsLists(tokens[row : row + 1], values[row : row + 1])
            finish = None if request.left else "length"
            outputs.append(Output(request.request_id, [token], lists, finish, SimpleNamespace(num_cached_tokens=0)))
            if finish:
                scheduler.finished_req_ids.add(request.request_id)
                del scheduler.requests[request.request_id]
        scheduler.outputs = {0: Outputs(outputs)}
        sampled = SimpleNamespace(req_ids=[output.request_id for output in outputs])
        sampled.logprobs = LogprobsLists(tokens, values)
        return scheduler.update_from_output(scheduled, sampled), True

    def _compute(self, until: float) -> None:
        """Use CPU and memory for a share of the rest of the step, then sleep as if waiting for a GPU."""
        busy = time.perf_counter() + BUSY * (until - time.perf_counter())
        while time.perf_counter() < busy:
            self._cold[:: 8 * 64] += 1
            sorted(map(str, range(100)))
        time.sleep(max(until - time.perf_counter(), 0.0))


def measure(load: Load, rundir: RunDir, batches: int) -> tuple[list[Cpu], StepTimer, list[float]]:
    """CPU of the collector's threads in each batch, the times of its hooks, and its rollout counts."""
    timer = StepTimer(load.engine, RUNNING)
    attached = Attached(load.engine, rundir, timer)
    load.batch()
    found = []
    for _ in range(batches):
        before = attached.cpu()
        load.batch()
        found.append(Cpu(*(b - a for a, b in zip(before, attached.cpu(), strict=True))))
    counts = attached.counts()
    attached.agent.close()
    return found, timer, counts


def compare(other: Path, arguments: list[str]) -> None:
    """Run both collectors in turn, each in a process of its own."""
    for _ in range(PAIRS):
        costs = []
        for checkout in (other, ROOT):
            with tempfile.TemporaryDirectory() as tree:
                (Path(tree) / "rltop").mkdir()
                for package in ("collectors", "integrations", "backend", "tui"):
                    (Path(tree) / "rltop" / package).symlink_to(checkout.resolve() / package)
                command = [sys.executable, "-m", "bench.engine_threads", "--brief", *arguments]
                environ = os.environ | {"PYTHONPATH": f"{tree}:{ROOT}"}
                done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True)
                costs.append([float(cost) for cost in done.stdout.split()])
        for label, there, here in zip(("threads", "hooks"), *costs, strict=True):
            print(f"{label}: {there:.1f} us per step there, {here:.1f} here: {here / there:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="tokens per request")
    parser.add_argument("--step-ms", type=float, default=5.5)
    parser.add_argument("--spread", action="store_true", help="requests end one after the other, not together")
    parser.add_argument("--batches", type=int, default=10, help="number of batches of 64 finished requests")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument(
        "--brief", action="store_true", help="print only microseconds per step: of all threads, of the hooks"
    )
    arguments = parser.parse_args()
    if arguments.against is not None:
        more = ["--spread"] if arguments.spread else []
        for name in ("tokens", "step_ms", "batches"):
            more += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        compare(arguments.against, more)
        return
    profile = cProfile.Profile(time.thread_time)
    if arguments.profile:
        work = Sender._loop
        Sender._loop = lambda *given: profile.runcall(work, *given)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as folder:
        rundir = RunDir(Path(folder) / "bench")
        ensure_hub(rundir)
        try:
            load = Load(arguments.tokens, arguments.step_ms / 1000, arguments.spread)
            found, timer, counts = measure(load, rundir, arguments.batches)
        finally:
            with Client(rundir) as client:
                client.stop_hub()
    if arguments.brief:
        print(float(np.median([sum(cpu) for cpu in found])) / arguments.tokens * 1e6, np.median(timer.costs))
        return
    for name, seconds in zip(Cpu._fields, map(np.array, zip(*found, strict=True)), strict=True):
        us = seconds * 1e6
        print(f"{name}: {np.median(us) / arguments.tokens:.1f} us per step, ", end="")
        print(f"{np.median(us) / RUNNING:.1f} us per finished request (best batch {us.min() / RUNNING:.1f})")
    print(f"hooks: {np.median(timer.costs):.1f} us per step, {np.median(timer.own):.1f} of them the timing itself")
    print(f"rollouts offered, sent, dropped: {counts}")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
