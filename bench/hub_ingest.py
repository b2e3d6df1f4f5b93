"""Tokens per second through a summary, through the pure core (decode, join, measure) and through a real hub.

    .venv/bin/python bench/hub_ingest.py [--rows 2000] [--tokens 1000]

The engines' rollouts and the trainer's rows of one step are created first; then each stage is timed alone on one core.
``roles`` is the part of a message's cost that decides whose it is. The real hub runs in its own process; its time is
from the first message sent to the step received by a client. The last column is the latency of a flag request sent
while that step is processed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import zmq

from rltop.backend import api
from rltop.backend.client.live import Client
from rltop.backend.hub.peers import peer_of
from rltop.backend.hub.state import HubState
from rltop.backend.ingest.processes import SenderProcesses
from rltop.backend.summary.token_runs import gap_of
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir

ROWS_PER_MESSAGE = 50
PROMPT = 100


def messages(
    rows: int, tokens: int, step: int = 0, seqs: dict[str, int] | None = None
) -> tuple[list[list[bytes]], list[list[bytes]]]:
    """Messages of one step: two engines' rollouts, and one rank's rows with the close of the step.

    ``seqs``: the next sequence number of each source, updated here; None for the first step.
    """
    rng = np.random.default_rng(step)
    engines: list[list[bytes]] = []
    trainer: list[list[bytes]] = []
    seqs = {} if seqs is None else seqs
    for source in ("e0", "e1", "trainer/0"):
        seqs.setdefault(source, 0)

    def frames(source: str, body: wire.DataBody, arrays: wire.Arrays) -> list[bytes]:
        envelope = wire.Envelope(wire.PROTO, source, "bench", seqs[source], time.time())
        seqs[source] += 1
        return [bytes(frame) for frame in wire.encode_data(envelope, body, arrays)]

    for number, start in enumerate(range(0, rows, ROWS_PER_MESSAGE)):
        n, engine = min(ROWS_PER_MESSAGE, rows - start), f"e{number % 2}"
        prompts = rng.integers(0, 30_000, (n, PROMPT)).astype("<i4")
        ids = rng.integers(0, 30_000, (n, tokens)).astype("<i4")
        logprobs = -rng.exponential(1, (n, tokens)).astype("<f4")
        sampled: wire.Arrays = {"prompt_ids": prompts.ravel(), "token_ids": ids.ravel(), "logprobs": logprobs.ravel()}
        entry = [
            wire.Rollout(f"r{step}-{start + i}", PROMPT, tokens, "stop", [wire.VersionRun(0, 0, 3)], "engine", True, 96)
            for i in range(n)
        ]
        engines.append(frames(engine, wire.Rollouts(engine, entry, wire.describe(sampled)), sampled))
        rows_of: wire.Arrays = {
            "row_ids": np.concatenate([prompts, ids], axis=1).ravel(),
            "row_mask": np.repeat(np.array([[0] * PROMPT + [1] * tokens], "u1"), n, axis=0).ravel(),
            "row_sizes": np.full(n, PROMPT + tokens, "<i4"),
            "rewards": rng.random(n).astype("<f4"),
            "rollout_logprobs": logprobs.ravel(),
            "trainer_logprobs": (logprobs + rng.normal(0, 0.02, logprobs.shape)).astype("<f4").ravel(),
            "advantages": rng.normal(size=n * tokens).astype("<f4"),
            "entropy": rng.random(n * tokens).astype("<f4"),
        }
        body = wire.Sequences(step, 0, 0, n, wire.describe(rows_of), policy_version=4, clip_low=0.8, clip_high=1.28)
        trainer.append(frames("trainer/0", body, rows_of))
    trainer.append(frames("trainer/0", wire.StepClosed(step, 0, 1, 5), {}))
    return engines, trainer


def summary(total: int) -> float:
    rng = np.random.default_rng(1)
    rollout = -rng.exponential(0.5, total).astype(np.float32)
    trainer = rollout + rng.normal(0, 0.02, total).astype(np.float32)
    gap_of(trainer[:1], rollout[:1])  # compiles
    start = time.process_time()
    gap_of(trainer, rollout)
    return total / (time.process_time() - start)


def core(engines: list[list[bytes]], trainer: list[list[bytes]], total: int) -> tuple[float, float]:
    """Tokens per second of CPU, and the longest time of one message in ms."""
    state = HubState("bench", "h", 0.0, lambda: "c")
    longest = 0.0
    start = time.process_time()
    for frames in engines + trainer:
        before = time.perf_counter()
        state.data(frames, 0.0)
        longest = max(longest, time.perf_counter() - before)
    state.tick(1.0)
    state.next_frame(1.0)
    spent = time.process_time() - start
    assert state.snapshot.steps[0].values["joined_fraction"] == 1.0
    return total / spent, longest * 1000


def hub(engines: list[list[bytes]], trainer: list[list[bytes]], total: int) -> tuple[float, float]:
    """Tokens per second of wall clock through a hub process, and the latency of a request meanwhile in ms."""
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as path:
        Path(path).chmod(0o700)
        rundir = RunDir(Path(path))
        process = subprocess.Popen([sys.executable, "-m", "rltop.backend.hub", path], stderr=subprocess.DEVNULL)
        context = zmq.Context()
        try:
            with Client(rundir) as client:
                client.snapshot(20)
                push = context.socket(zmq.PUSH)
                push.linger = 0
                push.sndhwm = 0
                push.connect(rundir.ingest)
                start = time.perf_counter()
                for frames in engines + trainer:
                    push.send_multipart(frames)
                question = api.AskSet(uuid.uuid4().hex, "prefix_caching", "off")
                asked = time.perf_counter()
                client.ask(question)
                assert client.wait(lambda c: question.id in c.answers, 60)
                answered = time.perf_counter() - asked
                assert client.wait(lambda c: c.view is not None and bool(c.view.steps), 60)
                took = time.perf_counter() - start
                assert client.view is not None
                assert client.view.steps[0].values["joined_fraction"] == 1.0
                push.close()
                client.stop_hub()
                return total / took, answered * 1000
        finally:
            context.term()
            if process.poll() is None:
                process.terminate()
            process.wait(20)


def roles(repeats: int = 20_000) -> float:
    """Seconds of CPU to find out the sender's process and to check that it has its name, for one message."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory(prefix="rl", dir="/tmp"))
        context = stack.enter_context(zmq.Context())
        pull, push = (stack.enter_context(context.socket(kind)) for kind in (zmq.PULL, zmq.PUSH))
        pull.bind(f"ipc://{path}/ingest.sock")
        push.connect(f"ipc://{path}/ingest.sock")
        push.send(b"a message")
        peer_at = functools.partial(peer_of, pull.recv(copy=False))
        processes, session = SenderProcesses(), secrets.token_hex(16)
        start = time.process_time()
        for _ in range(repeats):
            peer = peer_at()
            processes.is_sender("e0", "a life", peer.pid if peer else None, session)
        return (time.process_time() - start) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()
    total = options.rows * options.tokens
    engines, trainer = messages(options.rows, options.tokens)
    print(f"{total / 1e6:.1f} M tokens in {options.rows} rows")
    print(f"summary   {summary(total) / 1e6:6.1f} M tokens/s of CPU")
    speed, longest = core(engines, trainer, total)
    print(f"core      {speed / 1e6:6.1f} M tokens/s of CPU, longest message {longest:.1f} ms")
    per_message = total / speed / (len(engines) + len(trainer))
    print(f"roles     {(took := roles()) * 1e6:6.2f} us of CPU per message, {took / per_message:.4%} of the core's")
    speed, answered = hub(engines, trainer, total)
    print(f"hub       {speed / 1e6:6.1f} M tokens/s of wall clock, a request answered meanwhile in {answered:.1f} ms")


if __name__ == "__main__":
    main()
