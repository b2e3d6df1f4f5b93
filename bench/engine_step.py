"""What the engine collector costs: microseconds per step on the engine's thread, and tokens/s with and without it.

``python bench/engine_step.py [--rounds N] [--swap]`` boots two engines (real, on the CPU), one with the collector and a
hub's sockets, one without, and runs 64 requests on each in turn; the ratio is over neighbouring rounds. The tap itself
is measured apart from the model: wrapped schedule and step functions around a step that does nothing, with 64 outputs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from rltop.collectors.guard import Guard
from rltop.collectors.vllm.assemble import Assembler
from rltop.collectors.vllm.seams import Taps
from rltop.collectors.vllm.tap import Tap
from tests.engine_doubles import EngineCore, Outputs, output, request
from tests.harness import HubStandIn, wait_for
from tests.live_engine import ENVIRONMENT, LiveEngine

RUNNING = 64
TOKENS = 100


def tap_cost(steps: int = 20_000) -> tuple[float, float]:
    """Microseconds per step: on the engine's thread, and on the sender's thread to assemble it."""
    engine = EngineCore()
    step = ({0: Outputs([output(f"r{i}", [7]) for i in range(RUNNING)], "7")}, True)
    scheduled = SimpleNamespace(scheduled_new_reqs=[])
    engine.step_fn = lambda: step
    engine.scheduler.schedule = lambda: scheduled

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            engine.scheduler.schedule()
            engine.step_fn()
        return (time.perf_counter() - began) / steps * 1e6

    bare = min(turn() for _ in range(3))
    tap = Tap(engine, backlog_limit=1 << 40)
    Taps(engine, {"step": tap.on_step, "schedule": tap.on_schedule}, Guard())
    costs = []
    for _ in range(3):
        costs.append(turn())
        tap.records.clear()
    assembler = Assembler()
    for i in range(RUNNING):
        tap.on_add(None, request(f"r{i}"))
    for _ in range(1000):
        engine.step_fn()
    began = time.perf_counter()
    for record in tap.records:
        assembler.apply(record)
    return min(costs) - bare, (time.perf_counter() - began) / 1000 * 1e6


def throughput(rounds: int, tapped_first: bool) -> tuple[list[float], list[float]]:
    """Tokens/s of alternating rounds, with the collector and without; engines differ by a few percent by themselves."""
    os.environ.update(ENVIRONMENT)
    found: tuple[list[float], list[float]] = ([], [])
    with HubStandIn() as hub:
        engines = {}
        for tapped in (tapped_first, not tapped_first):
            os.environ.pop("RLTOP_HUB", None)
            if tapped:
                os.environ["RLTOP_HUB"] = str(hub.rundir.path)
            engines[0 if tapped else 1] = LiveEngine()
        try:
            for number in range(rounds + 1):
                order = (0, 1) if number % 2 else (1, 0)
                for which in order:
                    rate = one_round(engines[which], f"{number}-{which}")
                    if number:  # the first warms up
                        found[which].append(rate)
            expected = RUNNING * (rounds + 1)
            wait_for(lambda: len(hub.rollouts()) == expected, "every rollout of the tapped engine")
        finally:
            for engine in engines.values():
                engine.close()
    return found


def one_round(engine: LiveEngine, tag: str) -> float:
    began = time.perf_counter()
    work: list[Any] = [
        engine.generate(f"{tag}-{i}", [3, *range(5, 25 + i % 8)], TOKENS, seed=i) for i in range(RUNNING)
    ]
    for future in work:
        future.result(120)
    return RUNNING * TOKENS / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--swap", action="store_true", help="boot the engine without the collector first")
    arguments = parser.parse_args()
    on_engine, on_sender = tap_cost()
    print(
        f"tap: {on_engine:.2f} us a step on the engine's thread, {on_sender:.0f} us on the sender's ({RUNNING} running)"
    )
    with_, without = throughput(arguments.rounds, not arguments.swap)
    ratios = [a / b for a, b in zip(with_, without, strict=True)]
    print(f"tokens/s with {statistics.median(with_):.0f}, without {statistics.median(without):.0f}")
    print(
        f"ratio of paired rounds: median {statistics.median(ratios):.3f}, min {min(ratios):.3f}, max {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
