"""The evidence of a run by steps, in bounded memory: the latest steps singly, older ones merged. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rltop.backend.evidence.evidence import Evidence

MAX_PARTS = 4096
"""Largest number of ``Evidence`` kept, at about 5 kB each: 20 MB. For two engines at least the last 1,000 steps stay
unmerged."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The evidence of one step, or of several that were merged.

    Attributes:
        first, last: step numbers.
        engines: evidence by engine; the empty name is for tokens of unknown engines.
    """

    first: int
    last: int
    engines: Mapping[str, Evidence]

    def __add__(self, later: Stretch) -> Stretch:
        engines = dict(self.engines)
        for engine, evidence in later.engines.items():
            engines[engine] = engines[engine] + evidence if engine in engines else evidence
        return Stretch(self.first, later.last, engines)


class EvidenceSeries:
    """All stretches of a run. If there are too many, the older half is merged in pairs."""

    def __init__(self, max_parts: int = MAX_PARTS) -> None:
        self._max = max_parts
        self._parts = 0
        self._stretches: list[Stretch] = []

    def stretches(self) -> Sequence[Stretch]:
        """All stretches in the order of steps."""
        return list(self._stretches)

    def of_step(self, step: int) -> Mapping[str, Evidence]:
        """The evidence of a step by engine; empty if the step is merged or unknown."""
        for stretch in reversed(self._stretches):
            if stretch.first == stretch.last == step:
                return stretch.engines
        return {}

    def put(self, step: int, engines: Mapping[str, Evidence]) -> None:
        """Add the evidence of a step. If the trainer went back to a step, it replaces that step and all later ones."""
        if not engines:
            return
        kept = self._stretches
        if any(stretch.first <= step <= stretch.last for stretch in kept):
            while kept and kept[-1].last >= step:
                self._parts -= len(kept.pop().engines)
        at = bisect.bisect(kept, step, key=lambda stretch: stretch.first)
        kept.insert(at, Stretch(step, step, engines))
        self._parts += len(engines)
        if self._parts > self._max and len(kept) > 2:
            self._merge()

    def _merge(self) -> None:
        half = len(self._stretches) // 2
        older, newer = self._stretches[:half], self._stretches[half:]
        pairs = [older[i] + older[i + 1] if i + 1 < half else older[i] for i in range(0, half, 2)]
        self._stretches = pairs + newer
        self._parts = sum(len(stretch.engines) for stretch in self._stretches)
