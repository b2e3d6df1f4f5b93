"""An engine's measurements for a probe, unpacked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rltop.collectors.contract import wire

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """One request's logprobs [n] in nats, from token ``first`` of its passage on; ``cached`` as in ``wire``."""

    passage: int
    way: str
    first: int
    logprobs: Floats
    cached: int | None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine's ``wire.ProbeReport``, with its arrays."""

    body: wire.ProbeReport
    scores: list[Scored]

    @classmethod
    def unpack(cls, body: wire.ProbeReport, arrays: wire.Arrays) -> Self:
        """Unpack a report. Raises ``WireError`` if the sizes do not match."""
        logprobs = arrays.get("logprobs", np.empty(0, np.float32))
        sizes = [score.size for score in body.scores]
        if logprobs.dtype != np.float32 or min(sizes, default=0) < 0 or sum(sizes) != logprobs.size:
            raise wire.WireError(
                f"logprobs: {logprobs.size} entries of {logprobs.dtype} do not match the scores' sizes"
            )
        scores, at = [], 0
        for score in body.scores:
            scores.append(Scored(score.passage, score.way, score.first, logprobs[at : at + score.size], score.cached))
            at += score.size
        return cls(body, scores)

    def by_passage(self, way: str) -> dict[int, Scored]:
        """The scores of one way, by the number of their passage."""
        return {score.passage: score for score in self.scores if score.way == way}
