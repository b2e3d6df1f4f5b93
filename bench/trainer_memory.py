"""Memory that a trainer collector takes in its trainer: ``python -m bench.trainer_memory [--calls 40] [--hub absent]``.

Batches of 1,000,000 tokens arrive four times a second, and the hub is stopped (``SIGSTOP``) or absent: nothing leaves
the process. Prints the growth of its resident memory and the number of dropped calls.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from rltop.collectors import TrainerCollector
from rltop.collectors.contract.launch import ensure_hub
from rltop.collectors.contract.rundir import for_run

ROWS, TOKENS = 500, 2000
PERIOD_S = 0.25
CONNECT_S = 3.0


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--hub", choices=("stopped", "absent"), default="stopped")
    options = parser.parse_args()
    home = tempfile.mkdtemp(prefix="rl", dir="/tmp")
    os.environ["RLTOP_HOME"] = home
    rundir = for_run("memory")
    hub = ensure_hub(rundir) if options.hub == "stopped" else None
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 150_000, (ROWS, TOKENS))
    figures = -rng.random((4, ROWS, TOKENS)).astype(np.float32)
    mask = np.ones((ROWS, TOKENS), bool)
    trainer = TrainerCollector(run="memory", start_hub=hub is not None)
    time.sleep(CONNECT_S)
    if hub is not None:
        os.kill(hub.pid, signal.SIGSTOP)
    before, most, calls = resident_mb(), 0.0, []
    for step in range(options.calls):
        began = time.perf_counter()
        trainer.sequences(
            step, token_ids=ids, mask=mask, rollout_logprobs=figures[0], trainer_logprobs=figures[1],
            old_logprobs=figures[2], entropy=figures[3],
        )  # fmt: skip
        calls.append(time.perf_counter() - began)
        most = max(most, resident_mb() - before)
        time.sleep(max(0.0, PERIOD_S - calls[-1]))
    counts = trainer._sender.health().counts["sequences"]
    print(f"{options.hub} hub, {options.calls} calls: at most {most:.0f} MB more; {counts.dropped} dropped")
    if hub is not None:
        os.kill(hub.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
