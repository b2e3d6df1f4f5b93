"""Cost of the collector on a real engine, to which it is attached and detached in turn.

``python bench/engine_step.py [--model DIR] [--device cuda] [--tensor N] [--seconds N]`` serves 64 requests at a time on
a real engine, with a real hub process and no viewer, and prints

- the microseconds per step of the collector's hooks on the engine's own thread,
- the CPU time of the collector's threads, alone and with the hooks, in percent of the engine's processes,
- the ratio of tokens/s with and without the collector: pairs of adjacent batches in alternating order, so that drift
  cancels; with a 95 % interval (Student's t over the logs of the ratios) and the median, which is more robust against
  other load on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rltop.backend.client.live import Client
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import RunDir

ROOT = Path(__file__).parent.parent
RUNNING = 64
CPU_MODEL = ROOT / "backend" / "demo" / "sort-sft"
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "RLTOP_DEMO_ASYNC": "1",
}
TIMED_BATCHES = 4
MIN_PAIRS, MAX_PAIRS = 8, 200


@dataclass
class Batch:
    """One batch: tokens/s, and the CPU seconds of the engine core's process, its workers and the collector's threads.

    The collector's threads, its own (``sender``) and ZeroMQ's, belong to the engine core's process.
    """

    rate: float
    core: float
    workers: float
    sender: float
    zeromq: float


@dataclass
class Measurements:
    """``costs``, ``own``: see ``engine_side.StepTimer``. ``pairs``: a batch with the collector, and one without."""

    costs: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    pairs: list[tuple[Batch, Batch]] = field(default_factory=list)
    rollouts: list[int] = field(default_factory=lambda: [0, 0, 0])


def add_plugin(folder: Path) -> None:
    """Make vLLM load ``engine_side`` in all its processes, by a package with an entry point."""
    info = folder / "rltop_bench-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rltop-bench\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nrltop_bench = bench.engine_side:register\n")
    sys.path[:0] = [str(folder), str(ROOT)]


class Engine:
    """A real engine, with or without the collector."""

    def __init__(self, arguments: argparse.Namespace, rundir: RunDir) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.tokens: int = arguments.tokens
        self.vocabulary: int = arguments.vocabulary
        self.measured = Measurements()
        self._rundir = rundir
        # A step of a pipeline holds part of the requests, as they happen to be split over its stages.
        self.timed_from = RUNNING if arguments.pipeline == 1 else RUNNING // (2 * arguments.pipeline)
        self._batches = 0
        self._attached = False
        more: dict[str, Any] = {"gpu_memory_utilization": 0.3, "dtype": "bfloat16", "max_model_len": 1024}
        if arguments.device == "cpu":
            more = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "async_scheduling": True}
        self.llm: Any = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(arguments.model),
                skip_tokenizer_init=True,
                max_num_seqs=RUNNING,
                enforce_eager=arguments.eager or arguments.device == "cpu",
                disable_log_stats=True,
                generation_config="vllm",
                tensor_parallel_size=arguments.tensor,
                pipeline_parallel_size=arguments.pipeline,
                **more,
            )
        )

    async def call(self, method: str, *args: Any) -> Any:
        """Call a utility of ``engine_side``."""
        return await self.llm.engine_core.call_utility_async(method, *args)

    async def attach(self, attached: bool, timed: bool = False) -> None:
        """Attach the collector, or detach it."""
        if attached and not self._attached:
            await self.call("bench_attach", str(self._rundir.path), self.timed_from if timed else 0)
        elif self._attached and not attached:
            counts, costs, own = await self.call("bench_detach")
            self.measured.rollouts = [a + b for a, b in zip(self.measured.rollouts, counts, strict=True)]
            self.measured.costs += costs
            self.measured.own += own
        self._attached = attached

    async def batch(self) -> Batch:
        """Sample ``RUNNING`` requests, all at once, to the last token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._batches += 1
        rng = np.random.default_rng(self._batches)
        params = SamplingParams(
            temperature=1.0,
            max_tokens=self.tokens,
            min_tokens=self.tokens,
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

        async def one(number: int) -> None:
            prompt = rng.integers(3, self.vocabulary, 32).tolist()
            async for _ in self.llm.generate({"prompt_token_ids": prompt}, params, f"b{self._batches}-{number}"):
                pass

        gc.collect()
        before = await self.call("bench_cpu")
        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(RUNNING)))
        rate = RUNNING * self.tokens / (time.perf_counter() - began)
        after = await self.call("bench_cpu")
        return Batch(rate, *(b - a for a, b in zip(before, after, strict=True)))

    async def measure(self, seconds: float) -> Measurements:
        """Run timed batches, then pairs for ``seconds``."""
        await self.batch()
        await self.attach(True, timed=True)
        for _ in range(TIMED_BATCHES):
            await self.batch()
        await self.attach(False)
        until = time.monotonic() + seconds
        pairs = self.measured.pairs
        while len(pairs) < MAX_PAIRS and (len(pairs) < MIN_PAIRS or time.monotonic() < until):
            with_first = len(pairs) % 2 == 0
            batches = {}
            for attached in (with_first, not with_first):
                await self.attach(attached)
                batches[attached] = await self.batch()
            pairs.append((batches[True], batches[False]))
        await self.attach(False)
        return self.measured


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean with its 95 % interval, Student's t over the logarithms."""
    logs = np.log(ratios)
    half = _t975(len(logs) - 1) * float(logs.std(ddof=1)) / len(logs) ** 0.5
    middle = float(logs.mean())
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))


def _t975(freedom: int) -> float:
    """Student's t quantile at 0.975, to 0.1 % from 5 degrees of freedom (Abramowitz and Stegun 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def row(found: Measurements, size: str) -> dict[str, Any]:
    """A row in the format of ``gpu_suite.Suite.add``."""
    low, median, high = np.quantile(found.costs, [0.025, 0.5, 0.975])
    middle, lower, upper = interval([with_.rate / without.rate for with_, without in found.pairs])
    thread = f"{median:.1f} us a step on the engine's thread (95 %: {low:.1f} to {high:.1f}, {len(found.costs)} steps)"
    rate = f"tokens/s with / without {middle:.4f} (95 %: {lower:.4f} to {upper:.4f}, {len(found.pairs)} pairs)"
    says = f"{thread}; {rate}"
    return {"size": size, "runner": "", "part": "cost", "switch": "", "outcome": "measured", "says": says}


def report(found: Measurements, tokens: int) -> None:
    if not found.costs:
        raise SystemExit("no step emitted tokens of enough requests: nothing was timed")
    low, median, high = np.quantile(found.costs, [0.025, 0.5, 0.975])
    print(f"engine's thread: {median:.1f} us per step at {RUNNING} running (95 % of {len(found.costs)} steps: ", end="")
    print(f"{low:.1f} to {high:.1f}; mean {np.mean(found.costs):.1f})")
    print(f"  of which timing itself: about {np.median(found.own):.1f} us for each of two methods")
    tapped = [with_ for with_, _ in found.pairs]
    steps = len(tapped) * tokens
    core, workers = sum(batch.core for batch in tapped), sum(batch.workers for batch in tapped)
    zeromq = sum(batch.zeromq for batch in tapped)
    threads, hooks = sum(batch.sender for batch in tapped) + zeromq, steps * float(np.mean(found.costs)) / 1e6
    print(f"collector's threads: {threads / steps * 1e6:.1f} us of CPU per step, ", end="")
    print(
        f"{threads / len(tapped) / RUNNING * 1e6:.0f} per finished request ({zeromq / threads:.0%} in ZeroMQ's); ",
        end="",
    )
    print("with its hooks on the engine's thread ", end="")
    print(f"{(threads + hooks) / (core + workers):.2%} of the engine's CPU time, ", end="")
    print(f"{(threads + hooks) / core:.2%} of its core process alone")
    print(
        f"engine: {(core + workers) / steps * 1e3:.2f} ms of CPU per step, {core / steps * 1e3:.2f} in the core process"
    )
    print(f"rollouts offered, sent, dropped: {found.rollouts}")
    for label, ratios in (
        ("tokens/s", [a.rate / b.rate for a, b in found.pairs]),
        ("tokens per CPU second", [(b.core + b.workers) / (a.core + a.workers) for a, b in found.pairs]),
    ):
        middle, lower, upper = interval(ratios)
        print(
            f"{label}, with / without, {len(ratios)} pairs: {middle:.4f} (95 %: {lower:.4f} to {upper:.4f}), ", end=""
        )
        print(f"median {statistics.median(ratios):.4f}")
    rates = [statistics.median(batch.rate for batch in side) for side in zip(*found.pairs, strict=True)]
    print(f"  median tokens/s with {rates[0]:.0f}, without {rates[1]:.0f}; load {os.getloadavg()[0]:.1f}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CPU_MODEL)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--eager", action="store_true", help="no compilation, no CUDA graphs")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--pipeline", type=int, default=1, help="pipeline-parallel stages")
    parser.add_argument("--out", type=Path, help="folder for rows.json, in the format of bench.gpu_suite")
    parser.add_argument("--tokens", type=int, default=50, help="tokens per request")
    parser.add_argument("--vocabulary", type=int, default=30, help="prompts are random ids from 3 to this")
    parser.add_argument("--seconds", type=float, default=120, help="duration of the pairs; the start takes as long")
    arguments = parser.parse_args()
    for name in ("RLTOP_HUB", "RLTOP_RUN"):
        os.environ.pop(name, None)  # only the bench attaches the collector
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if arguments.device == "cpu":
        os.environ.update(CPU_ENVIRONMENT)
    folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    add_plugin(folder)
    rundir = RunDir(folder / "bench")
    ensure_hub(rundir)
    engine = None
    try:
        engine = Engine(arguments, rundir)
        found = await engine.measure(arguments.seconds)
        report(found, arguments.tokens)
        if arguments.out is not None:
            size = f"tp{arguments.tensor} pp{arguments.pipeline}"
            rows = {"head": f"cost, {size}", "rows": [row(found, size)]}
            (arguments.out / "rows.json").write_text(json.dumps(rows) + "\n")
    finally:
        if engine is not None:
            engine.llm.shutdown()
        with Client(rundir) as client:
            client.stop_hub()


if __name__ == "__main__":
    asyncio.run(main())
