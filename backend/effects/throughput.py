"""Sampling speed of each engine, from the states that it reports. Pure, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rltop.collectors.contract import wire

BIN_S = 5.0
"""Width of a bin in seconds."""

MAX_SAMPLES, LEAST_SAMPLES, TOTAL_SAMPLES = 720, 100, 50_000
"""Samples kept per engine: an hour of work; fewer in large fleets, but as many as an estimate can use."""

MAX_GAP_S = 10.0
"""States that are further apart give no sample."""


@dataclass(frozen=True, slots=True)
class SpeedSample:
    """``tokens`` in ``seconds`` of work up to ``time`` (wall clock of the hub), all in one bin and flag epoch."""

    time: float
    life: str
    epoch: int
    seconds: float
    tokens: int

    @property
    def bin(self) -> float:
        """Number of its bin of ``BIN_S`` seconds."""
        return self.time // BIN_S


class Throughput:
    """Speed samples of every engine. Intervals in which an engine was idle or paused are left out."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float, wire.EngineState]] = {}
        self._samples: dict[str, deque[SpeedSample]] = {}
        self._finished: list[tuple[str, SpeedSample]] = []  # samples that are complete

    def record(self, envelope: wire.Envelope, state: wire.EngineState, now: float) -> None:
        """Record an engine state; seconds are by the sender's clock."""
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
            self._add(state.engine, SpeedSample(now, envelope.epoch, state.flag_epoch, seconds, tokens))

    def _add(self, engine: str, new: SpeedSample) -> None:
        samples = self._samples.setdefault(engine, deque())
        last = samples[-1] if samples else None
        if last and last.bin == new.bin and (last.life, last.epoch) == (new.life, new.epoch):
            samples[-1] = replace(new, seconds=last.seconds + new.seconds, tokens=last.tokens + new.tokens)
        else:
            if last:
                self._finished.append((engine, last))
            samples.append(new)
        if len(samples) > max(min(MAX_SAMPLES, TOTAL_SAMPLES // len(self._samples)), LEAST_SAMPLES):
            samples.popleft()

    def present(self) -> dict[str, tuple[str, int]]:
        """Process epoch and flag epoch of every engine, as last reported."""
        return {engine: (life, state.flag_epoch) for engine, (life, _, state) in self._last.items()}

    def take_finished(self) -> list[tuple[str, SpeedSample]]:
        """Engine and sample of the samples that were completed since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def restore(self, samples: Mapping[str, Sequence[SpeedSample]]) -> None:
        """Restore the samples of an earlier hub."""
        self._samples = {engine: deque(own[-MAX_SAMPLES:]) for engine, own in samples.items()}

    def samples(self) -> dict[str, list[SpeedSample]]:
        """Samples by engine, oldest first."""
        return {engine: list(samples) for engine, samples in self._samples.items()}
