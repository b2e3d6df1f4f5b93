"""What the demo's processes are told when they start: one JSON argument each, and how they notice that they must end.

The supervisor holds the other end of every child's standard input. When that closes, for whatever reason, the child
ends itself and its group: no process of the demo outlives its supervisor.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TypeVar

import msgspec

from rltop.backend.demo.faults import HEALTHY, Fault

T = TypeVar("T")

GROUPS, GROUP_SIZE = 8, 8
"""Prompts per step, and samples per prompt."""

AHEAD = 2
"""Steps for which tickets are out: the one in training and the one after. Bounds the lag to two versions."""

SNAPSHOTS = 10
"""Versions of the weights the trainer keeps to recompute logprobs under."""

LEARNING_RATE = 5e-4
GRADIENT_NORM = 1.0

END_GRACE_S = 40.0
"""How long an orphan may take to end in good order before its group is killed."""


class EngineJob(msgspec.Struct, frozen=True):
    """One engine: its id, the checkpoint, where the trainer listens, how it samples, and what is wrong with it."""

    engine: str
    model: str
    socket: str
    seed: int
    temperature: float
    fault: Fault = HEALTHY


class TrainerJob(msgspec.Struct, frozen=True):
    """The trainer: the run's name, the checkpoint, its socket, where weights are published, and what to train.

    ``facts``: it tells rltop what it computes with.
    """

    run: str
    model: str
    socket: str
    weights: str
    engines: list[str]
    steps: int
    seed: int
    temperature: float
    objective: str
    matched: int
    fault: Fault = HEALTHY
    facts: bool = True


# --- what the trainer says on its standard output, one JSON object a line -----------------------------------------


class EngineUp(msgspec.Struct, frozen=True, tag="engine"):
    """An engine reported ready."""

    engine: str
    boot_s: float


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """A step is trained; the trainer's own measurements beside what it passed to rltop."""

    step: int
    metrics: dict[str, float]


Progress = EngineUp | StepDone


def encode(job: object) -> str:
    """A job as the one argument of a process."""
    return msgspec.json.encode(job, enc_hook=str).decode()


def decode(argument: str, kind: type[T]) -> T:
    """A job from the one argument of a process. Raises ``msgspec.DecodeError``."""
    return msgspec.json.decode(argument, type=kind, dec_hook=lambda wanted, value: wanted(value))  # paths


def end_with_parent() -> None:
    """End this process and its group when its standard input closes: politely, then for good."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.killpg(0, signal.SIGTERM)
        time.sleep(END_GRACE_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
