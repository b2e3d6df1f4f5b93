"""The evidence of a run's steps, in order: the latest singly, older ones merged, within a bound. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rltop.backend.evidence.evidence import Evidence

MAX_PARTS = 4096
"""Engines times steps that are kept singly or merged, at about 5 kB each: 20 MB. Of two engines the last 1,000
steps at least are kept singly."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """One step, or several that were merged.

    Attributes:
        first, last: numbers of the steps.
        engines: evidence by engine; the empty name is of tokens whose engine is not known.
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
    """All stretches of a run. Where there are too many, the older half is merged in pairs."""

    def __init__(self, max_parts: int = MAX_PARTS) -> None:
        self._max = max_parts
        self._parts = 0
        self._stretches: list[Stretch] = []

    def stretches(self) -> Sequence[Stretch]:
        """In the order of their steps."""
        return list(self._stretches)

    def of_step(self, step: int) -> Mapping[str, Evidence]:
        """Of one of the latest steps; nothing where none is kept singly."""
        for stretch in reversed(self._stretches):
            if stretch.first == stretch.last == step:
                return stretch.engines
        return {}

    def put(self, step: int, engines: Mapping[str, Evidence]) -> None:
        """A step is done. One that comes again is of a trainer that went back to it: what came after it is no more."""
        if not engines:
            return
        found = self._stretches
        if any(stretch.first <= step <= stretch.last for stretch in found):
            while found and found[-1].last >= step:
                self._parts -= len(found.pop().engines)
        at = bisect.bisect(found, step, key=lambda stretch: stretch.first)
        found.insert(at, Stretch(step, step, engines))
        self._parts += len(engines)
        if self._parts > self._max and len(found) > 2:
            self._merge()

    def _merge(self) -> None:
        half = len(self._stretches) // 2
        older, newer = self._stretches[:half], self._stretches[half:]
        pairs = [older[i] + older[i + 1] if i + 1 < half else older[i] for i in range(0, half, 2)]
        self._stretches = pairs + newer
        self._parts = sum(len(stretch.engines) for stretch in self._stretches)
