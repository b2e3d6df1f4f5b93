"""The evidence of a run as arrays over steps and engines. Pure."""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.kernel import EXTREME
from rltop.backend.evidence.sequential import Floats, Ints


@dataclass(frozen=True)
class EvidenceArrays:
    """The evidence of all steps, of some engines added up; one entry for each stretch of steps.

    Attributes:
        first, last: step numbers of each stretch [steps].
        moments: [steps, FIGURE, MOMENT].
        sums: [steps, SUM_COLUMNS].
        extremes: [steps, EXTREME].
        aligned: [steps, SHIFTS, 2].
        profile: [steps, position bins, 3].
        lags: [steps, lag strata, MOMENT].
        turns: [steps, TURNS, MOMENT].
    """

    first: Ints
    last: Ints
    moments: Floats
    sums: Floats
    extremes: Floats
    aligned: Floats
    profile: Floats
    lags: Floats
    turns: Floats

    @property
    def steps(self) -> int:
        """Number of stretches."""
        return int(self.first.size)

    def from_step(self, start: int) -> EvidenceArrays:
        """The stretches from index ``start`` on."""
        return EvidenceArrays(*(getattr(self, name)[start:] for name in self.__dataclass_fields__))


class EvidenceByEngine:
    """The evidence of a run and of each of its engines; tokens of an unknown engine count for the run alone."""

    def __init__(self, run: DiagnosisInput) -> None:
        self.input = run
        stretches = run.evidence
        self.engines: list[str] = sorted({name for stretch in stretches for name in stretch.engines if name})
        self._by_places: dict[tuple[int, ...], EvidenceArrays] = {}
        self._first = np.array([stretch.first for stretch in stretches], np.int64)
        self._last = np.array([stretch.last for stretch in stretches], np.int64)
        empty = Evidence()
        places = ["", *self.engines]
        self._arrays = {
            name: np.array(
                [[getattr(stretch.engines.get(place, empty), name) for place in places] for stretch in stretches]
            ).reshape(len(stretches), len(places), *getattr(empty, name).shape)
            for name in (*_SUMMED, _EXTREMES)
        }

    @functools.cached_property
    def run(self) -> EvidenceArrays:
        """All engines together."""
        return self._of(list(range(len(self.engines) + 1)))

    def engine(self, name: str) -> EvidenceArrays:
        """One engine."""
        return self._of([1 + self.engines.index(name)])

    def of(self, names: Collection[str]) -> EvidenceArrays:
        """Some engines together."""
        return self._of([1 + at for at, name in enumerate(self.engines) if name in names])

    def others(self, name: str) -> EvidenceArrays:
        """All known engines but one."""
        return self.of([other for other in self.engines if other != name])

    def _of(self, places: list[int]) -> EvidenceArrays:
        """The sum over places, computed once."""
        key = tuple(places)
        if key not in self._by_places:  # functools.cache would keep the arrays alive
            self._by_places[key] = self._sum(places)
        return self._by_places[key]

    def _sum(self, places: list[int]) -> EvidenceArrays:
        summed = {name: self._arrays[name][:, places].sum(axis=1) for name in _SUMMED}
        extremes = np.full((self._first.size, len(EXTREME)), np.inf)
        extremes[:, EXTREME.high] = -np.inf
        if places:
            of_places = self._arrays[_EXTREMES][:, places]
            extremes = of_places.min(axis=1)
            extremes[:, EXTREME.high] = of_places[..., EXTREME.high].max(axis=1)
        return EvidenceArrays(self._first, self._last, extremes=extremes, **summed)


_SUMMED = ("moments", "sums", "aligned", "profile", "lags", "turns")
_EXTREMES = "extremes"
