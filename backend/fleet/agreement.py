"""Watches whether the facts of engines and trainer agree, and tells each difference once, and once its end. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rltop.backend.fleet import facts
from rltop.collectors.contract import wire
from rltop.collectors.contract.facts import as_text

SETTLE_S = 3.0
"""A difference is told when it has stood this long: a fleet is switched one engine after the other."""

PERIOD_S = 1.0
"""How often the facts are compared: as often as engines report."""

RECENT = 64
"""So many of an engine's latest requests say how it samples."""


@dataclass(frozen=True, slots=True)
class FactChange:
    """A difference that appeared, or is no more."""

    severity: str
    text: str


class SamplingFacts:
    """How each engine's requests were sampled lately; only of those that asked for logprobs, as training does."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[dict[str, float]]] = {}

    def take(self, body: wire.Rollouts) -> None:
        """Finished requests of one engine."""
        recent = self._recent.setdefault(body.engine, deque(maxlen=RECENT))
        recent.extend(rollout.sampling for rollout in body.rollouts[-RECENT:] if rollout.has_logprobs)

    def facts(self, engine: str) -> dict[str, str]:
        """By parameter, the value or the values; empty before the first request."""
        recent = self._recent.get(engine)
        if not recent:
            return {}
        found = {}
        for name, idle in facts.NEUTRAL.items():
            values = sorted({sampling.get(name, float(idle)) for sampling in recent})
            found[name] = facts.MIXED.join(as_text(value) or "" for value in values)
        return found


class DifferenceWatch:
    """Which differences stand, since when, and which of them were told."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}
        self._told: set[tuple[str, str]] = set()

    def look(self, found: Iterable[facts.Difference], engines: int, now: float) -> list[FactChange]:
        """Compare with what stood before.

        Args:
            found: all differences of now.
            engines: how many engines were compared; of none, nothing can be told.
            now: seconds.
        """
        if not engines:
            return []
        standing: dict[tuple[str, str], list[facts.Difference]] = {}
        for one in found:
            standing.setdefault((one.fact, one.against), []).append(one)
        ended = [key for key in self._since if key not in standing]
        news = [_ended(key) for key in ended if key in self._told]
        for key in ended:
            del self._since[key]
            self._told.discard(key)
        for key, ones in standing.items():
            if now - self._since.setdefault(key, now) >= SETTLE_S and key not in self._told:
                self._told.add(key)
                news.append(_appeared(ones))
        return news


def _appeared(ones: list[facts.Difference]) -> FactChange:
    first = ones[0]
    why = facts.because(first.fact)
    if first.against == facts.TRAINER:
        who = facts.has([one.engine for one in ones], first.value)
        return FactChange("warn", f"{first.fact}: {who}, {first.says}{why}")
    values: dict[str, list[str]] = {}
    for one in ones:
        values.setdefault(one.value, []).append(one.engine)
    each = "; ".join(facts.has(engines, value) for value, engines in values.items())
    rest = "" if len(values) > 1 else f"; {first.says}"
    severity = "info" if first.fact in facts.FLAG_NAMES else "warn"  # a canary is meant to differ
    return FactChange(severity, f"{first.fact} differs across the fleet: {each}{rest}{why}")


def _ended(key: tuple[str, str]) -> FactChange:
    fact, against = key
    return FactChange(
        "info", f"{fact} no longer differs {'across the fleet' if against == facts.FLEET else 'from training'}"
    )


class Fingerprints:
    """All of it for one run: facts go in as they come, differences come out once a second."""

    def __init__(self) -> None:
        self.sampled = SamplingFacts()
        self._watch = DifferenceWatch()
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time to compare again."""
        if now < self._next:
            return False
        self._next = now + PERIOD_S
        return True

    def compare(
        self, engines: Mapping[str, facts.Facts], trainer: facts.Facts, now: float
    ) -> tuple[dict[str, dict[str, str]], list[FactChange]]:
        """What each engine is marked with, and what is new."""
        found = facts.compare(engines, trainer)
        return facts.by_engine(found), self._watch.look(found, len(engines), now)
