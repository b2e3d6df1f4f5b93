"""What a probe does on an engine between two steps: sends requests and keeps what comes back, or has weights read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rltop.collectors.contract.probes import TOKENS_PER_S
from rltop.collectors.contract.wire import Arrays, Digest, Score
from rltop.collectors.vllm.probes import scoring
from rltop.collectors.vllm.probes.injection import Injection
from rltop.collectors.vllm.workers.weight_digest import DIGEST

SLICE_S = 0.02
"""How long a rank reads weights at once."""

REST = 4.0
"""After a slice the engine has its thread for so many times as long, at least."""

PATIENCE_S = 1.0
"""A probe that waits for outputs is looked at so often, to see whether it was overtaken."""


class Work(Protocol):
    """What one probe does between two steps."""

    def go(self) -> bool:
        """Go on as far as can be done now; True at the end. On the engine's thread."""

    def rest(self) -> float:
        """For how many seconds the probe asks for nothing."""

    def stop(self) -> None:
        """Leave nothing behind."""

    def report(self) -> dict[str, Any]:
        """Fields of ``ProbeReport`` beside those that all have."""

    def arrays(self) -> Arrays:
        """Its arrays."""


@dataclass
class Scoring:
    """Sends a plan's requests and keeps what comes back."""

    plan: scoring.Plan
    injection: Injection
    waiting: list[scoring.ScoringRequest] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def go(self) -> bool:
        """See ``Work``."""
        if not self.waiting:
            return self._next(next, self.plan)
        got = self.injection.answers()
        if got is None:
            return False
        for wanted, one in zip(self.waiting, got, strict=True):
            if wanted.scores:
                first = len(wanted.ids) - one.logprobs.size
                self.scores.append(Score(wanted.passage, wanted.way, first, int(one.logprobs.size), one.cached))
                self.logprobs.append(one.logprobs)
        return self._next(self.plan.send, got)

    def _next(self, ask: Callable[[Any], list[scoring.ScoringRequest]], what: Any) -> bool:
        try:
            self.waiting = ask(what)
        except StopIteration:
            return True
        self.injection.send(self.waiting)
        return False

    @property
    def lost(self) -> bool:
        """Whether somebody else ended a request."""
        return self.injection.lost

    def rest(self) -> float:
        """Until the tokens so far are no more than their rate allows."""
        due = self.started + self.injection.tokens / TOKENS_PER_S
        return max(due - time.monotonic(), 0.0) if self.injection.complete else PATIENCE_S

    def stop(self) -> None:
        """See ``Work``."""
        self.injection.end()

    def report(self) -> dict[str, Any]:
        """See ``Work``."""
        return {"scores": self.scores, "requests": self.injection.sent, "tokens": self.injection.tokens}

    def arrays(self) -> Arrays:
        """See ``Work``."""
        return {"logprobs": np.concatenate([np.empty(0, np.float32), *self.logprobs]).astype("<f4")}


@dataclass
class Digesting:
    """Has every rank read its weights, a slice at a time."""

    engine: Any
    digests: list[Digest] = field(default_factory=list)
    fused: dict[str, list[str]] = field(default_factory=dict)
    begun: bool = False
    took: float = 0.0

    def go(self) -> bool:
        """See ``Work``. Raises ``RuntimeError`` with what a rank says went wrong."""
        started = time.perf_counter()
        answers = self.engine.model_executor.collective_rpc(DIGEST, args=(not self.begun, SLICE_S))
        self.begun, self.took = True, time.perf_counter() - started
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
        return REST * self.took

    def stop(self) -> None:
        """A reading that is not finished is begun anew by the next."""

    def report(self) -> dict[str, Any]:
        """See ``Work``."""
        return {"digests": self.digests, "fused": self.fused}

    def arrays(self) -> Arrays:
        """It has none."""
        return {"logprobs": np.empty(0, "<f4")}


def answered(work: Work) -> bool:
    """Whether what it waited for is there, before its time of looking."""
    return isinstance(work, Scoring) and work.rest() == 0.0
