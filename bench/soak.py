"""Feeds a hub for half an hour at ten times the demo's rate, and prints its memory, descriptors and bytes per step.

    .venv/bin/python -m bench.soak [--minutes 30] [--rate 6] [--engines 4] [--budget 0.1] [--kill-every 0]

Run it from the root of a checkout. Each step has 64 sequences of 16 tokens from engines and trainer; every engine
reports once a second; a viewer follows. Every minute it prints the memory of the hub's process, and the bytes of store
per step since the last line (the write-ahead log grows to 16 MB and stays there). Tables with a byte budget fill up
over hours at the demo's rate: ``--budget`` scales the budget down, so that it is full for most of the half hour.
``--kill-every S`` kills the hub with SIGKILL every S seconds and starts the next one. At the end every step that was
sent must be stored, once and complete, with every sequence joined.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from rltop.backend.client.live import Client
from rltop.backend.hub import startup
from rltop.backend.store import retention
from rltop.backend.store.read import NAME, Reader
from rltop.backend.store.write import Writer
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.support.hub_messages import engine_state
from tests.support.receiver import run_directory

ROWS, TOKENS, PROMPT = 64, 16, 48


class Load:
    """Simulated engines and trainer; ``step`` sends the messages of one step."""

    def __init__(self, rundir: RunDir, engines: int) -> None:
        self._rng = np.random.default_rng(0)
        self.steps = 0
        self.engines = [Sender[Message](rundir, f"e{n}", "engine", lambda _, items: items) for n in range(engines)]
        self.trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)

    def step(self) -> None:
        share = ROWS // len(self.engines)
        for engine in self.engines:
            prompts = self._rng.integers(0, 30_000, (share, PROMPT)).astype("<i4")
            ids = self._rng.integers(0, 30_000, (share, TOKENS)).astype("<i4")
            logprobs = -self._rng.exponential(1, (share, TOKENS)).astype("<f4")
            sampled: wire.Arrays = {
                "prompt_ids": prompts.ravel(), "token_ids": ids.ravel(), "logprobs": logprobs.ravel(),
            }  # fmt: skip
            entries = [
                wire.Rollout(
                    f"{self.steps}-{n}", PROMPT, TOKENS, "stop", [wire.VersionRun(0, 0, self.steps)], "engine", True
                )
                for n in range(share)
            ]
            engine.offer("all", 10_000, (wire.Rollouts(engine.source, entries, wire.describe(sampled)), sampled))
            rows: wire.Arrays = {
                "row_ids": np.concatenate([prompts, ids], axis=1).ravel(),
                "row_mask": np.repeat(np.array([[0] * PROMPT + [1] * TOKENS], "u1"), share, axis=0).ravel(),
                "row_sizes": np.full(share, PROMPT + TOKENS, "<i4"),
                "rewards": self._rng.random(share).astype("<f4"),
                "rollout_logprobs": logprobs.ravel(),
                "trainer_logprobs": (logprobs + self._rng.normal(0, 0.02, logprobs.shape)).astype("<f4").ravel(),
            }
            body = wire.Sequences(self.steps, 0, 0, share, wire.describe(rows), policy_version=self.steps)
            self.trainer.offer("all", 20_000, (body, rows))
        closed = wire.StepClosed(self.steps, 0, 1, self.steps, {"loss": 0.5}, rows=ROWS)
        self.trainer.offer("all", 500, (closed, {}))
        self.steps += 1

    def report(self) -> None:
        for engine in self.engines:
            state = engine_state(engine.source, step=self.steps, generated_tokens=self.steps * ROWS * TOKENS)
            engine.offer("all", 500, (state, {}))


def usage(pid: int, store: Path) -> tuple[float, int, float]:
    """Resident MB and open descriptors of the process, MB of the store with its log."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1e3
    size = sum(path.stat().st_size for path in store.parent.glob(store.name + "*")) / 1e6
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir())), size


def serve(rundir: RunDir, budget: float) -> int:
    """Run the hub with that share of the byte budgets."""
    limits = retention.LIMITS
    limits = replace(
        limits, sample_bytes=int(budget * limits.sample_bytes), strata_bytes=int(budget * limits.strata_bytes)
    )
    original = Writer.__init__
    setattr(Writer, "__init__", lambda *args, **kwargs: original(*args, **kwargs, limits=limits))  # noqa: B010
    return startup.main(rundir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=6.0, help="steps per second")
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--budget", type=float, default=1.0)
    parser.add_argument("--kill-every", type=float, default=0, help="seconds; 0 for never")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        sys.exit(serve(RunDir(options.serve), options.budget))
    with run_directory() as rundir, Client(rundir) as client:
        command = [sys.executable, "-m", "bench.soak", "--serve", str(rundir.path), "--budget", str(options.budget)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            client.snapshot(60)
            load = Load(rundir, options.engines)
            start = next_step = next_report = time.monotonic()
            next_line = start + 60
            next_kill = start + (options.kill_every or float("inf"))
            last_steps, last_size = 0, 0.0
            while (now := time.monotonic()) < start + options.minutes * 60:
                if now >= next_step:
                    load.step()
                    next_step += 1 / options.rate
                if now >= next_report:
                    load.report()
                    next_report += 1.0
                client.poll(0.02)
                if now >= next_kill:
                    next_kill += options.kill_every
                    process.kill()
                    process.wait(30)
                    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                if now >= next_line:
                    next_line += 60
                    resident, files, size = usage(process.pid, rundir.path / NAME)
                    snapshot = client.view
                    assert snapshot is not None
                    steps = max(snapshot.steps) + 1
                    values = next(reversed(snapshot.steps.values())).values
                    each = (size - last_size) * 1e6 / max(steps - last_steps, 1)
                    last_steps, last_size = steps, size
                    print(
                        f"{(now - start) / 60:3.0f} min: {steps} steps, joined {values['joined_fraction']}, "
                        f"{resident:.0f} MB resident, {files} descriptors, store {size:.1f} MB, {each:.0f} B/step, "
                        f"{[snapshot.counters.get(name, 0) for name in ('unstored', 'lost_messages', 'faults')]}",
                        flush=True,
                    )
            last = load.steps - 1
            assert client.wait(lambda c: c.view is not None and last in c.view.steps, 120), (
                "the last step did not arrive"
            )
            for sender in (*load.engines, load.trainer):
                sender.close(5)
        finally:
            process.terminate()
            process.wait(30)
        check(rundir, load.steps)


def check(rundir: RunDir, steps: int) -> None:
    """Check that every step is stored once and complete, with all its rollouts, and that nothing was lost."""
    with Reader(rundir.path) as reader:
        found = reader.execute("SELECT step, partial, joined_fraction FROM step ORDER BY id").fetchall()
        losses = reader.execute("SELECT text FROM event WHERE kind IN ('gap', 'lost')").fetchall()
    odd = [row for row in found if row[1:] != (0, 1.0)]
    missing = set(range(steps)) - {row[0] for row in found}
    again = len(found) - len({row[0] for row in found})
    print(f"{steps} steps sent: {len(missing)} missing, {again} twice; {losses}")
    print(f"{len(odd)} partial or not all joined (step, partial, share joined): {odd[:20]}")
    assert not (missing or again or odd or losses)


if __name__ == "__main__":
    main()
