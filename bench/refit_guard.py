"""Share of an engine's time that the refit guard takes: ``python -m bench.refit_guard [UPDATES] [SECONDS]``.

One engine on the CPU generates without a pause; its weights are updated every ``SECONDS``. The guard's time is that of
the thread that runs the model, so it is the same on a busy machine.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import Future
from typing import Any

from rltop.collectors.contract import wire
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ENVIRONMENT, MODEL, LiveEngine, result


def updated(engine: LiveEngine, number: int) -> None:
    """Load the weights, as trainers do."""
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

    path = str(MODEL / "model.safetensors")
    engine.run(engine.llm.pause_generation(mode="keep", clear_cache=True))
    engine.run(engine.llm.start_weight_update())
    engine.run(engine.llm.update_weights(WeightTransferUpdateRequest(update_info={"path": path})))
    engine.run(engine.llm.finish_weight_update(f"step-{number}"))
    engine.run(engine.llm.resume_generation())


def reports(hub: HubStandIn) -> list[wire.RefitReport]:
    """What the guard has sent so far."""
    return [body for _, body, _ in list(hub.messages) if isinstance(body, wire.RefitReport)]


def measure(updates: int, seconds: float) -> list[wire.RefitReport]:
    """The guard's reports of this many updates."""
    with HubStandIn() as hub:
        os.environ |= ENVIRONMENT | {"RLTOP_HUB": str(hub.rundir.path)}
        engine = LiveEngine()
        running: list[Future[Any]] = []
        for number in range(1, updates + 1):
            running += [engine.generate(f"{number}-{i}", [3, 40 + i, 5], 200, seed=i) for i in range(16)]
            time.sleep(seconds)
            updated(engine, number)
            wait_for(lambda: len(reports(hub)) > number, "the report")  # noqa: B023 - waits here
        for work in running:
            result(work)
        found = reports(hub)
        engine.close()
        return found


def main(updates: int = 20, seconds: float = 2.0) -> None:
    """Print the cost of each check, and the share."""
    found = measure(updates, seconds)
    last = found[-1]
    for one in found:
        cost = f"{len(one.sketches)} tensors, longest stall {1e3 * one.longest_s:.1f} ms"
        print(f"update {one.weight_updates:3d}: {cost}")
    cost = f"{1e3 * last.spent_s / len(found):.2f} ms per update"
    print(f"{cost}; {last.spent_s / last.up_s:.4%} of the engine's time")


if __name__ == "__main__":
    main(*(int(sys.argv[1]), float(sys.argv[2])) if len(sys.argv) > 2 else ())
