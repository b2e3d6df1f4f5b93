"""The evidence of a case as arrays over steps and engines. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.sequential import Floats, Ints


@dataclass(frozen=True)
class EvidenceArrays:
    """All steps of a case, of all engines together or of some.

    Attributes:
        first, last: numbers of the steps of each stretch [steps].
        moments: [steps, FIGURES, 6]. sums: [steps, SUMS]. extremes: [steps, 3]. aligned: [steps, SHIFTS, 2].
        profile: [steps, bins, 3]. lags: [steps, lag strata, 6].
    """

    first: Ints
    last: Ints
    moments: Floats
    sums: Floats
    extremes: Floats
    aligned: Floats
    profile: Floats
    lags: Floats

    @property
    def steps(self) -> int:
        """How many stretches there are."""
        return int(self.first.size)

    def from_step(self, start: int) -> EvidenceArrays:
        """The stretches from index ``start`` on."""
        return EvidenceArrays(*(getattr(self, name)[start:] for name in self.__dataclass_fields__))


class EvidenceByEngine:
    """The piles of a case: of the run, and of each engine (the unknown one counts for the run alone)."""

    def __init__(self, case: DiagnosisInput) -> None:
        self.case = case
        found = case.evidence
        self.engines: list[str] = sorted({name for stretch in found for name in stretch.engines if name})
        self._made: dict[tuple[int, ...], EvidenceArrays] = {}
        self._first = np.array([stretch.first for stretch in found], np.int64)
        self._last = np.array([stretch.last for stretch in found], np.int64)
        nothing = Evidence()
        places = ["", *self.engines]
        self._held = {
            name: np.array(
                [[getattr(stretch.engines.get(e, nothing), name) for e in places] for stretch in found]
            ).reshape(len(found), len(places), *getattr(nothing, name).shape)
            for name in (*_SUMMED, _EXTREMES)
        }

    @functools.cached_property
    def run(self) -> EvidenceArrays:
        """All engines together."""
        return self._of(list(range(len(self.engines) + 1)))

    def engine(self, name: str) -> EvidenceArrays:
        """One engine."""
        return self._of([1 + self.engines.index(name)])

    def others(self, name: str) -> EvidenceArrays:
        """All known engines but one."""
        return self._of([1 + at for at, other in enumerate(self.engines) if other != name])

    def _of(self, places: list[int]) -> EvidenceArrays:
        """Of these places, added up once."""
        key = tuple(places)
        if key not in self._made:  # not functools.cache: that would keep all piles for ever
            self._made[key] = self._sum(places)
        return self._made[key]

    def _sum(self, places: list[int]) -> EvidenceArrays:
        parts = {name: self._held[name][:, places].sum(axis=1) for name in _SUMMED}
        extremes = self._held[_EXTREMES][:, places]
        if places:
            low, high, least = extremes[..., 0].min(1), extremes[..., 1].max(1), extremes[..., 2].min(1)
        else:
            low = least = np.full(self._first.size, np.inf)
            high = -low
        return EvidenceArrays(self._first, self._last, extremes=np.stack([low, high, least], axis=1), **parts)


_SUMMED = ("moments", "sums", "aligned", "profile", "lags")
_EXTREMES = "extremes"
