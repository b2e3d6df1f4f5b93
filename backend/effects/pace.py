"""How fast each engine sampled, second by second, from the states it reports. Pure, bounded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rltop.collectors import wire

MAX_SAMPLES = 3600
"""Intervals kept per engine: an hour of work at one state a second."""

MAX_GAP_S = 10.0
"""Two states that are further apart say nothing about the time between them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``tokens`` sampled in ``seconds`` of work up to ``time`` (wall clock of the hub), all in one flag epoch."""

    time: float
    life: str
    epoch: int
    seconds: float
    tokens: int


class Pace:
    """Samples of every engine. An interval in which an engine had nothing to do, or was paused, is left out."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float, wire.EngineState]] = {}
        self._samples: dict[str, deque[Sample]] = {}

    def report(self, envelope: wire.Envelope, state: wire.EngineState, now: float) -> None:
        """A new state of an engine; seconds are by the clock of its sender."""
        before = self._last.get(state.engine)
        self._last[state.engine] = envelope.epoch, envelope.sent, state
        if before is None or before[0] != envelope.epoch:
            return
        _, sent, last = before
        seconds, tokens = envelope.sent - sent, state.generated_tokens - last.generated_tokens
        working = tokens > 0 or (last.running and state.running)
        if not 0 < seconds <= MAX_GAP_S or not working or last.paused or state.paused:
            return
        if last.flag_epoch == state.flag_epoch and tokens >= 0:
            sample = Sample(now, envelope.epoch, state.flag_epoch, seconds, tokens)
            self._samples.setdefault(state.engine, deque(maxlen=MAX_SAMPLES)).append(sample)

    def present(self) -> dict[str, tuple[str, int]]:
        """Life and flag epoch of every engine, as last heard."""
        return {engine: (life, state.flag_epoch) for engine, (life, _, state) in self._last.items()}

    def samples(self) -> dict[str, list[Sample]]:
        """By engine, oldest first."""
        return {engine: list(samples) for engine, samples in self._samples.items()}
