"""The demo's output: one line per step, and a line for anything that takes long."""

from __future__ import annotations

import statistics
import sys
import time
from typing import TextIO

import msgspec

from rltop.backend.api import Step
from rltop.backend.demo.jobs import EngineUp, StepDone
from rltop.backend.demo.jobs import Progress as TrainerLine

PERIOD_S = 5.0
"""How often a line reports that something slow is in progress."""

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward_mean", ".3f"),
    ("gap", "logp_abs_diff_mean", ".4f"),
    ("k3", "kl_k3", ".5f"),
    ("backend", "backend_abs_diff_mean", ".1e"),
    ("clip lo", "clip_frac_low", ".3f"),
    ("clip hi", "clip_frac_high", ".3f"),
    ("entropy", "entropy", ".3f"),
    ("lag", "lag_mean", ".2f"),
    ("hits", "prefix_hit_rate", ".2f"),
    ("joined", "joined_fraction", ".3f"),
)
"""Heading, metric and format of the columns of a step's line."""

WIDTH = 8

_line: msgspec.json.Decoder[TrainerLine] = msgspec.json.Decoder(TrainerLine)


class ProgressPrinter:
    """Prints to ``out``, warnings to standard error. ``steps``: number of steps of the run."""

    def __init__(self, out: TextIO, steps: int) -> None:
        self._out = out
        self._steps = steps
        self._began = time.monotonic()
        self._printed = self._began
        self._booting: list[str] = []
        self._trained: list[StepDone] = []
        self._hub = "connecting"

    def line(self, text: str) -> None:
        """Print one line."""
        self._printed = time.monotonic()
        print(f"[{self._printed - self._began:5.1f}s] {text}", file=self._out, flush=True)

    def warn(self, text: str) -> None:
        """Print one line on standard error."""
        print(f"rltop demo: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def booting(self, engines: list[str]) -> None:
        """These engines are booting."""
        self._booting = list(engines)
        self.line(f"booting vLLM engines {', '.join(engines)} and the trainer (20 to 60 s)")

    def trainer_line(self, line: bytes) -> None:
        """Process one line of the trainer's standard output."""
        match _line.decode(line):
            case EngineUp(engine, boot_s):
                self._booting.remove(engine)
                self.line(f"engine {engine} is up after {boot_s:.0f} s")
                if not self._booting:
                    self.line("step " + " ".join(f"{heading:>{WIDTH}}" for heading, _, _ in COLUMNS))
            case StepDone() as done:
                self._trained.append(done)

    def step(self, step: Step) -> None:
        """The hub measured a step."""
        values = (_cell(step.values.get(metric), spec) for _, metric, spec in COLUMNS)
        self.line(f"{step.step:4d} " + " ".join(values) + (" (partial)" if step.partial else ""))

    def tick(self, hub: str) -> None:
        """Report slow operations, and changes of the hub's state (``Client.state``)."""
        if hub != self._hub:
            if "lost" in (hub, self._hub):
                self.warn("the hub is lost; training continues" if hub == "lost" else "the hub is live again")
            self._hub = hub
        if time.monotonic() - self._printed > PERIOD_S:
            waiting = f"booting engine {', '.join(self._booting)}" if self._booting else self._training()
            self.line(f"{waiting} ...")

    def summary(self) -> None:
        """Print the trainer's own averages over the run."""
        if not self._trained:
            return
        means = {name: _mean(self._trained, name) for name in ("step_s", "train_s", "spanning_share", "update_ms")}
        self.line(
            f"{len(self._trained)} steps trained: {_text(means['step_s'], '.2f')} s per step "
            f"({_text(means['train_s'], '.2f')} s training), weight updates {_text(means['update_ms'], '.0f')} ms, "
            f"{_text(means['spanning_share'], '.1%')} of sequences span two versions"
        )

    def _training(self) -> str:
        return f"training, step {len(self._trained)}" if len(self._trained) < self._steps else "finishing"


def _cell(value: float | None, spec: str) -> str:
    return f"{_text(value, spec):>{WIDTH}}"


def _text(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _mean(done: list[StepDone], name: str) -> float | None:
    values = [step.metrics[name] for step in done if name in step.metrics]
    return statistics.fmean(values) if values else None


def ranges(steps: list[int]) -> str:
    """Ascending numbers as text: ``[3, 4, 5, 9]`` as ``3-5, 9``."""
    found: list[list[int]] = []
    for step in steps:
        if found and found[-1][1] == step - 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
