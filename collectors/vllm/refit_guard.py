"""The refit guard of one engine: sketches its weights at the start, after every weight update, and after waking up.

The hub compares the sketches with the trainer's, with other engines' and with the update before. The guard reads at
step boundaries, in slices of ``SLICE_S``, and rests so long after each that it takes at most ``SHARE`` of the engine's
time; the next update begins another pass. It waits for no device.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rltop.collectors.contract.wire import RefitReport, WeightSketch
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.probes.probe_checks import weights_offloaded
from rltop.collectors.vllm.rollouts.tap import Tap
from rltop.collectors.vllm.workers.all_ranks import reachable
from rltop.collectors.vllm.workers.weight_sketches import SKETCH

VARIABLE = "RLTOP_REFIT_GUARD"
"""Environment variable; ``0`` turns the guard off."""

SLICE_S = 0.01
"""How long a rank reads weights without interruption."""

SHARE = 0.01
"""Largest share of the engine's time, counted as the time of the thread that runs the model."""

BURST_S = 1.0
"""Time that the guard may spend before it has to rest by ``SHARE``: the first updates of a run are checked at once."""

SETTLE_S = 0.1
"""Time after an update in which its version may still be stated: weights are read later."""

POLL_S = 0.05
"""Rest while a device computes."""

Report = Callable[[RefitReport], None]
Version = Callable[[], tuple[int | None, str]]


@dataclass(slots=True)
class Pass:
    """One pass over the weights: what it began with, and what it took."""

    reason: str
    updates: int
    version: int | None
    source: str
    begun: bool = False
    stall_s: float = 0.0
    longest_s: float = 0.0
    found: list[WeightSketch] = field(default_factory=list)
    fused: dict[str, list[str]] = field(default_factory=dict)
    filled: int = 0


class RefitGuard:
    """Reads the weights of one engine.

    Args:
        engine: vLLM's engine core.
        name: id of the engine.
        tap: knows the weight updates.
        version: returns the policy version in use and its source.
        report: sends a report. On the engine's thread.
        environ: of the process.
    """

    def __init__(
        self,
        engine: Any,
        name: str,
        tap: Tap,
        version: Version,
        report: Report,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._engine, self._name, self._tap = engine, name, tap
        self._version, self._report = version, report
        self._fault = "turned off by RLTOP_REFIT_GUARD=0" if environ.get(VARIABLE) == "0" else self._obstacle()
        self._error = ""  # of the last pass
        self._guard = ErrorBoundary()
        self._pass: Pass | None = None
        self._reported: tuple[int, int | None] | None = None  # weight updates and version at the last report
        self._slept_at: int | None = None  # engine step at which it was seen asleep
        self._since = time.monotonic()
        self._next = 0.0
        self._spent = 0.0

    @property
    def fact(self) -> str:
        """Whether the guard runs, for the fingerprint."""
        return f"off: {self._fault}" if self._fault else f"failed: {self._error}" if self._error else "on"

    def due(self) -> bool:
        """Whether the guard needs a step boundary now. From any thread."""
        if self._fault or time.monotonic() < self._next:
            return False
        if self._tap.update_open or time.time() - self._tap.last_update < SETTLE_S:
            return False
        return bool(self._pass is not None or self._reason())

    def at_boundary(self) -> None:
        """Read a slice if that is due. On the engine's thread; never raises."""
        if self._fault:
            return
        if weights_offloaded(self._engine):
            self._pass, self._slept_at = None, self._tap.step
        elif self.due():
            self._guard.run("refit guard", self._advance)

    def _reason(self) -> str:
        """Why the weights have to be read; empty if they have not changed. After waking, from the first step on."""
        if self._reported is None:
            return "start"
        if (self._tap.updates.count, self._version()[0]) != self._reported:
            return "update"
        return "wake" if self._slept_at is not None and self._tap.step > self._slept_at else ""

    def _advance(self) -> None:
        if self._pass is None or self._pass.updates != self._tap.updates.count:
            self._pass = Pass(self._reason(), self._tap.updates.count, *self._version())
        current = self._pass
        started = time.perf_counter()
        done = self._read(current)
        elapsed = time.perf_counter() - started
        current.stall_s += elapsed
        current.longest_s = max(current.longest_s, elapsed)
        self._next = time.monotonic() + self._rest()
        if done:
            self._finish(current)

    def _rest(self) -> float:
        """Seconds until the share is kept; while a device computes, at least ``POLL_S``."""
        up = time.monotonic() - self._since
        return max((self._spent - BURST_S) / SHARE - up, POLL_S)

    def _read(self, current: Pass) -> bool:
        """Let every rank read a slice; True once all have read all. Raises ``RuntimeError`` if a rank can't."""
        answers = self._engine.model_executor.collective_rpc(SKETCH, args=(not current.begun, SLICE_S))
        current.begun = True
        if errors := [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if answer["error"]]:
            self._error, self._pass = "; ".join(errors), None
            self._reported = current.updates, self._version()[0]  # the next update retries
            return False
        self._error = ""
        self._spent += max(answer["cpu_s"] for answer in answers)
        for answer in answers:
            if answer["done"]:
                current.found += [WeightSketch(*fields) for fields in answer["found"]]
                current.fused |= answer["fused"]
                current.filled += answer["filled"]
        return all(answer["done"] for answer in answers)

    def _finish(self, current: Pass) -> None:
        version, source = self._version()  # it may have been named since the pass began
        self._pass, self._reported, self._slept_at = None, (current.updates, version), None
        self._report(
            RefitReport(
                self._name, current.reason, current.updates, version, source, current.filled, current.found,
                current.fused, current.stall_s, current.longest_s, self._spent, time.monotonic() - self._since,
            )
        )  # fmt: skip

    def _obstacle(self) -> str:
        """Why this engine can't be guarded; empty if it can."""
        if getattr(getattr(self._engine.vllm_config, "parallel_config", None), "enable_eplb", False):
            return "expert load balancing moves weights"
        try:
            return "" if reachable(self._engine) else "the collector is not loaded in every worker"
        except Exception as error:  # noqa: BLE001 - executors may raise anything
            return f"{type(error).__name__}: {error}"
