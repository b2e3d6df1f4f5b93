"""The work of a probe between two engine steps: scoring requests, or reading weights."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rltop.collectors.contract.probes import TOKENS_PER_S
from rltop.collectors.contract.wire import Arrays, Digest, Score
from rltop.collectors.vllm.probes import scoring
from rltop.collectors.vllm.probes.injection import Injection
from rltop.collectors.vllm.workers.weight_digest import DIGEST

SLICE_S = 0.02
"""How long a rank reads weights without interruption."""

REST = 4.0
"""After a slice the probe pauses for at least this multiple of its duration."""

WATCH_S = 1.0
"""Interval of step boundaries while a probe waits for results, to detect interruptions."""


class Work(Protocol):
    """The work of one probe."""

    def advance(self) -> bool:
        """Do as much as possible now; True when complete. On the engine's thread."""

    def rest(self) -> float:
        """Seconds until the probe needs a step boundary again."""

    def stop(self) -> None:
        """Clean up."""

    def report(self) -> dict[str, Any]:
        """Fields of ``ProbeReport`` that depend on the kind of probe."""

    def arrays(self) -> Arrays:
        """The arrays of the report."""


@dataclass
class Scoring:
    """Sends the requests of a plan and collects their results."""

    plan: scoring.Plan
    injection: Injection
    batch: list[scoring.ScoringRequest] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def advance(self) -> bool:
        """See ``Work``."""
        results: list[scoring.ScoringResult] | None = None
        if self.batch:
            results = self.injection.results()
            if results is None:
                return False
            self._collect(results)
        try:
            self.batch = next(self.plan) if results is None else self.plan.send(results)
        except StopIteration:
            return True
        self.injection.send(self.batch)
        return False

    def _collect(self, results: list[scoring.ScoringResult]) -> None:
        for request, result in zip(self.batch, results, strict=True):
            if request.scores:
                size = int(result.logprobs.size)
                self.scores.append(Score(request.passage, request.way, len(request.ids) - size, size, result.cached))
                self.logprobs.append(result.logprobs)

    @property
    def lost(self) -> bool:
        """Whether another caller aborted a request."""
        return self.injection.lost

    def rest(self) -> float:
        """Until the tokens sent so far are within ``TOKENS_PER_S``, or ``WATCH_S`` while requests are in flight."""
        due = self.started + self.injection.tokens / TOKENS_PER_S
        return max(due - time.monotonic(), 0.0) if self.injection.complete else WATCH_S

    def stop(self) -> None:
        """See ``Work``."""
        self.injection.stop()

    def report(self) -> dict[str, Any]:
        """See ``Work``."""
        return {"scores": self.scores, "requests": self.injection.sent, "tokens": self.injection.tokens}

    def arrays(self) -> Arrays:
        """See ``Work``."""
        return {"logprobs": np.concatenate([np.empty(0, np.float32), *self.logprobs]).astype("<f4")}


@dataclass
class Digesting:
    """Lets every rank read its weights, one slice at a time."""

    engine: Any
    digests: list[Digest] = field(default_factory=list)
    fused: dict[str, list[str]] = field(default_factory=dict)
    started: bool = False
    slice_s: float = 0.0

    def advance(self) -> bool:
        """See ``Work``. Raises ``RuntimeError`` with the errors of ranks."""
        started = time.perf_counter()
        answers = self.engine.model_executor.collective_rpc(DIGEST, args=(not self.started, SLICE_S))
        self.started, self.slice_s = True, time.perf_counter() - started
        if errors := [f"rank {rank}: {answer['error']}" for rank, answer in enumerate(answers) if answer["error"]]:
            raise RuntimeError("; ".join(errors))
        for rank, answer in enumerate(answers):
            if answer["done"]:
                self.digests += [
                    Digest(name, kind, whole, rows, dtype, elements, rank, columns)
                    for name, kind, whole, rows, dtype, elements, columns in answer["found"]
                ]
                self.fused |= answer["fused"]
        return all(answer["done"] for answer in answers)

    def rest(self) -> float:
        """See ``REST``."""
        return REST * self.slice_s

    def stop(self) -> None:
        """Nothing to do: the next digest starts from the beginning."""

    def report(self) -> dict[str, Any]:
        """See ``Work``."""
        return {"digests": self.digests, "fused": self.fused}

    def arrays(self) -> Arrays:
        """None."""
        return {"logprobs": np.empty(0, "<f4")}


def is_ready(work: Work) -> bool:
    """Whether the results that it waits for are complete."""
    return isinstance(work, Scoring) and work.rest() == 0.0
