"""How fast each engine sampled, from the states it reports. Pure, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rltop.collectors.contract import wire

BIN_S = 5.0
"""Seconds that are taken together."""

MAX_SAMPLES, LEAST_SAMPLES, TOTAL_SAMPLES = 720, 100, 50_000
"""Samples kept of an engine: an hour of work; less in large fleets, but what a question of an effect looks at."""

MAX_GAP_S = 10.0
"""Two states that are further apart say nothing about the time between them."""


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
        """Number of the stretch of ``BIN_S`` seconds that it is of."""
        return self.time // BIN_S


class Throughput:
    """Samples of every engine. An interval in which an engine had nothing to do, or was paused, is left out."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float, wire.EngineState]] = {}
        self._samples: dict[str, deque[SpeedSample]] = {}
        self._done: list[tuple[str, SpeedSample]] = []  # nothing will be added to them

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
            self._add(state.engine, SpeedSample(now, envelope.epoch, state.flag_epoch, seconds, tokens))

    def _add(self, engine: str, new: SpeedSample) -> None:
        samples = self._samples.setdefault(engine, deque())
        last = samples[-1] if samples else None
        if last and last.bin == new.bin and (last.life, last.epoch) == (new.life, new.epoch):
            samples[-1] = replace(new, seconds=last.seconds + new.seconds, tokens=last.tokens + new.tokens)
        else:
            if last:
                self._done.append((engine, last))
            samples.append(new)
        if len(samples) > max(min(MAX_SAMPLES, TOTAL_SAMPLES // len(self._samples)), LEAST_SAMPLES):
            samples.popleft()

    def present(self) -> dict[str, tuple[str, int]]:
        """Life and flag epoch of every engine, as last heard."""
        return {engine: (life, state.flag_epoch) for engine, (life, _, state) in self._last.items()}

    def take_done(self) -> list[tuple[str, SpeedSample]]:
        """Engine and sample, of those to which nothing will be added, since this was last asked."""
        done, self._done = self._done, []
        return done

    def take_up(self, samples: Mapping[str, Sequence[SpeedSample]]) -> None:
        """Samples that an earlier hub took."""
        self._samples = {engine: deque(own[-MAX_SAMPLES:]) for engine, own in samples.items()}

    def samples(self) -> dict[str, list[SpeedSample]]:
        """By engine, oldest first."""
        return {engine: list(samples) for engine, samples in self._samples.items()}
