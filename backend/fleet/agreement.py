"""Watches mismatches between the facts of engines and trainer, and reports the start and end of each once. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rltop.backend.fleet import facts
from rltop.collectors.contract import wire
from rltop.collectors.contract.facts import as_text

SETTLE_S = 3.0
"""A mismatch is reported once it has lasted this long, since fleets are switched one engine at a time."""

PERIOD_S = 1.0
"""How often facts are compared: as often as engines report."""

RECENT = 64
"""Latest requests of an engine that its sampling facts come from."""


@dataclass(frozen=True, slots=True)
class FactChange:
    """The event of a mismatch that started or ended."""

    severity: str
    text: str


class SamplingFacts:
    """Sampling parameters of each engine's recent requests with logprobs, which are those of training."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[dict[str, float]]] = {}

    def observe(self, body: wire.Rollouts) -> None:
        """Add finished requests of one engine."""
        recent = self._recent.setdefault(body.engine, deque(maxlen=RECENT))
        recent.extend(rollout.sampling for rollout in body.rollouts[-RECENT:] if rollout.has_logprobs)

    def facts(self, engine: str) -> dict[str, str]:
        """The value or values of each parameter; empty before the first request."""
        recent = self._recent.get(engine)
        if not recent:
            return {}
        found = {}
        for name, idle in facts.NEUTRAL.items():
            values = sorted({sampling.get(name, float(idle)) for sampling in recent})
            found[name] = facts.MIXED.join(as_text(value) or "" for value in values)
        return found


class DifferenceWatch:
    """Current mismatches, their start, and which of them were reported."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._reported: set[tuple[str, str]] = set()

    def update(self, differences: Iterable[facts.Difference], engines: int, now: float) -> list[FactChange]:
        """Compare with the mismatches so far; returns the events to publish.

        Args:
            differences: all current mismatches.
            engines: number of engines that were compared; without any, nothing changes.
            now: seconds.
        """
        if not engines:
            return []
        current: dict[tuple[str, str], list[facts.Difference]] = {}
        for one in differences:
            current.setdefault((one.fact, one.against), []).append(one)
        ended = [key for key in self._since if key not in current]
        changes = [_ended(key) for key in ended if key in self._reported]
        for key in ended:
            del self._since[key]
            self._reported.discard(key)
        for key, ones in current.items():
            if now - self._since.setdefault(key, now) >= SETTLE_S and key not in self._reported:
                self._reported.add(key)
                changes.append(_started(ones))
        return changes


def _started(ones: list[facts.Difference]) -> FactChange:
    first = ones[0]
    why = facts.because(first.fact)
    if first.against == facts.TRAINER:
        who = facts.has([one.engine for one in ones], first.value)
        return FactChange("warn", f"{first.fact}: {who}, {first.explanation}{why}")
    values: dict[str, list[str]] = {}
    for one in ones:
        values.setdefault(one.value, []).append(one.engine)
    each = "; ".join(facts.has(engines, value) for value, engines in values.items())
    rest = "" if len(values) > 1 else f"; {first.explanation}"
    severity = "info" if first.fact in facts.FLAG_NAMES else "warn"  # a canary is meant to differ
    return FactChange(severity, f"{first.fact} differs across the fleet: {each}{rest}{why}")


def _ended(key: tuple[str, str]) -> FactChange:
    fact, against = key
    return FactChange(
        "info", f"{fact} no longer differs {'across the fleet' if against == facts.FLEET else 'from training'}"
    )


class Fingerprints:
    """Mismatch detection for one run, once a second."""

    def __init__(self) -> None:
        self.sampled = SamplingFacts()
        self._watch = DifferenceWatch()
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether the next comparison is due."""
        if now < self._next:
            return False
        self._next = now + PERIOD_S
        return True

    def compare(
        self, engines: Mapping[str, facts.Facts], trainer: facts.Facts, now: float
    ) -> tuple[dict[str, dict[str, str]], list[FactChange]]:
        """The mismatches of each engine, and the events to publish."""
        differences = facts.compare(engines, trainer)
        return facts.by_engine(differences), self._watch.update(differences, len(engines), now)
