"""Cost of ``TrainerCollector.sequences()`` for its caller, as a ratio to copying the same arrays.

Copies and calls alternate, so that both see the same load. A receiver in a process of its own receives the data.
``python bench/trainer_call.py [--library torch|numpy|cuda]``
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rltop.collectors import TrainerCollector
from rltop.collectors.contract.rundir import RunDir

RECEIVER = """
import sys, zmq
from pathlib import Path
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
directory, context = RunDir(Path(sys.argv[1])), zmq.Context()
data, control = context.socket(zmq.PULL), context.socket(zmq.ROUTER)
data.bind(directory.ingest)
control.bind(directory.control)
print("ready", flush=True)
while True:
    for socket in zmq.select([data, control], [], [])[0]:
        frames = socket.recv_multipart()
        if socket is control and isinstance(bye := wire.decode_to_hub(frames[1]), wire.Bye):
            control.send_multipart([frames[0], wire.encode(wire.ByeAck(bye.epoch))])
"""


def arrays(library: str, rows: int, time_: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    made: dict[str, Any] = {
        "token_ids": random.integers(0, 32_000, (rows, time_)),
        "mask": np.ones((rows, time_), bool),
        **{
            name: -random.random((rows, time_), np.float32)
            for name in ("rollout_logprobs", "trainer_logprobs", "old_logprobs", "entropy")
        },
        "advantages": random.random(rows, np.float32),
        "rewards": random.random(rows, np.float32),
    }
    if library == "numpy":
        return made
    import torch

    device = "cuda" if library == "cuda" else "cpu"
    return {name: torch.from_numpy(array).to(device) for name, array in made.items()}


def plain_copy(library: str, values: dict[str, Any]) -> Callable[[], Any]:
    if library == "numpy":
        return lambda: [value.copy() for value in values.values()]
    return lambda: [value.to("cpu", copy=True) for value in values.values()]


def measure(library: str, rows: int, time_: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as path:
        receiver = subprocess.Popen([sys.executable, "-c", RECEIVER, path], stdout=subprocess.PIPE)
        assert receiver.stdout is not None
        receiver.stdout.readline()
        collector = TrainerCollector(hub=str(RunDir(Path(path)).path), start_hub=False)
        values = arrays(library, rows, time_)
        copy = plain_copy(library, values)
        copies, calls = [], []
        for step in range(repeats):
            copies.append(timed(copy))
            calls.append(timed(partial(collector.sequences, step, **values)))
            deadline = time.monotonic() + 30  # between steps a trainer computes while the thread sends
            while collector._sender.health().counts["sequences"].queued and time.monotonic() < deadline:
                time.sleep(0.002)
        collector.close()
        receiver.kill()
        receiver.wait()
        counts = collector._sender.health().counts["sequences"]
        ratios = [call / copy for call, copy in zip(calls, copies, strict=True)]
        print(
            f"{library:6} {rows:4} x {time_:<5} copy {statistics.median(copies) * 1e3:8.3f} ms  "
            f"call {statistics.median(calls) * 1e3:8.3f} ms  ratio {statistics.median(ratios):5.2f} "
            f"(90 %: {sorted(ratios)[int(0.9 * repeats)]:5.2f})  sent {counts.sent} of {counts.offered}"
        )


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=("numpy", "torch", "cuda"), nargs="*", default=["numpy", "torch"])
    for name in parser.parse_args().library:
        measure(name, 64, 64, 200)
        measure(name, 512, 4096, 20)
