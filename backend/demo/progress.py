"""What a person reads while the demo runs: one line per step, and word of anything that takes long."""

from __future__ import annotations

import statistics
import sys
import time
from typing import TextIO

import msgspec

from rltop.backend.api import Step
from rltop.backend.demo.jobs import EngineUp, StepDone
from rltop.backend.demo.jobs import Progress as Line

PERIOD_S = 5.0
"""How often a line says that something slow still goes on."""

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
"""Heading, metric and format of a step's line."""

WIDTH = 8

_line: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class ProgressPrinter:
    """Prints to ``out``; trouble goes to standard error. ``steps``: how many the run has."""

    def __init__(self, out: TextIO, steps: int) -> None:
        self._out = out
        self._steps = steps
        self._began = time.monotonic()
        self._spoke = self._began
        self._booting: list[str] = []
        self._trained: list[StepDone] = []
        self._hub = "connecting"

    def say(self, text: str) -> None:
        """One line, now."""
        self._spoke = time.monotonic()
        print(f"[{self._spoke - self._began:5.1f}s] {text}", file=self._out, flush=True)

    def trouble(self, text: str) -> None:
        """One line on standard error."""
        print(f"rltop demo: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def booting(self, engines: list[str]) -> None:
        """These engines were started."""
        self._booting = list(engines)
        self.say(f"booting vLLM engines {', '.join(engines)} and the trainer (20 to 60 s)")

    def hear(self, line: bytes) -> None:
        """One line of the trainer's standard output."""
        match _line.decode(line):
            case EngineUp(engine, boot_s):
                self._booting.remove(engine)
                self.say(f"engine {engine} is up after {boot_s:.0f} s")
                if not self._booting:
                    self.say("step " + " ".join(f"{heading:>{WIDTH}}" for heading, _, _ in COLUMNS))
            case StepDone() as done:
                self._trained.append(done)

    def step(self, step: Step) -> None:
        """The hub measured a step."""
        values = (_cell(step.values.get(metric), spec) for _, metric, spec in COLUMNS)
        self.say(f"{step.step:4d} " + " ".join(values) + (" (partial)" if step.partial else ""))

    def tick(self, hub: str) -> None:
        """Say that something slow goes on, and when the hub (``Client.state``) goes or comes back."""
        if hub != self._hub:
            if "lost" in (hub, self._hub):
                self.trouble("the hub is away; training goes on" if hub == "lost" else "the hub is back")
            self._hub = hub
        if time.monotonic() - self._spoke > PERIOD_S:
            waiting = f"booting engine {', '.join(self._booting)}" if self._booting else self._training()
            self.say(f"{waiting} ...")

    def summary(self) -> None:
        """The trainer's own figures over the run."""
        if not self._trained:
            return
        means = {name: _mean(self._trained, name) for name in ("step_s", "train_s", "spanning_share", "update_ms")}
        self.say(
            f"{len(self._trained)} steps trained: {_text(means['step_s'], '.2f')} s a step "
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


def spans(steps: list[int]) -> str:
    """Rising numbers as text: ``[3, 4, 5, 9]`` as ``3-5, 9``."""
    found: list[list[int]] = []
    for step in steps:
        if found and found[-1][1] == step - 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
