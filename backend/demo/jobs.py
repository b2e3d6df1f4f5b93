"""Jobs of the demo's processes, each passed as one JSON argument, and their end with the supervisor.

The supervisor holds the other end of every child's standard input. When that closes, for any reason, the child ends
itself and its group, so no process of the demo outlives its supervisor.
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
"""Steps whose tickets are out: the one in training and the next. Bounds the lag to two versions."""

SNAPSHOTS = 10
"""Weight versions that the trainer keeps to recompute logprobs."""

LEARNING_RATE = 5e-4
GRADIENT_NORM = 1.0

END_GRACE_S = 40.0
"""How long an orphan may take to end after SIGTERM before its group is killed."""


class EngineJob(msgspec.Struct, frozen=True):
    """One engine: its id, checkpoint, trainer socket, sampling and fault."""

    engine: str
    model: str
    socket: str
    seed: int
    temperature: float
    fault: Fault = HEALTHY


class TrainerJob(msgspec.Struct, frozen=True):
    """The trainer: run name, checkpoint, socket, directory for weights, and training parameters.

    ``facts``: the trainer states its configuration to rltop.
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


# --- the trainer's standard output, one JSON object per line ------------------------------------------------------


class EngineUp(msgspec.Struct, frozen=True, tag="engine"):
    """An engine has booted."""

    engine: str
    boot_s: float


class StepDone(msgspec.Struct, frozen=True, tag="step"):
    """A step was trained; ``metrics`` are the trainer's own."""

    step: int
    metrics: dict[str, float]


Progress = EngineUp | StepDone


def encode(job: object) -> str:
    """Encode a job as a process argument."""
    return msgspec.json.encode(job, enc_hook=str).decode()


def decode(argument: str, kind: type[T]) -> T:
    """Decode a job from a process argument. Raises ``msgspec.DecodeError``."""
    return msgspec.json.decode(argument, type=kind, dec_hook=lambda kind, value: kind(value))  # paths


def end_with_parent() -> None:
    """End this process and its group when standard input closes: SIGTERM, then SIGKILL after ``END_GRACE_S``."""

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        os.killpg(0, signal.SIGTERM)
        time.sleep(END_GRACE_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
