"""Sketches of weights, joined over ranks and over the trainer's parts of fused tensors, and how two differ. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rltop.backend.probes.digest_verdict import PACKED_MARK, checkpoint_parts
from rltop.collectors.contract import wire
from rltop.collectors.contract.weight_sketch import ROUNDED

_FULL = 1 << 64

PADDING = 2048
"""Rows that an engine may have more than the trainer: a vocabulary padded with zeros."""

VOCABULARY = ("embed", "wte", "lm_head", "output_layer")
"""Modules with a row for each token, which engines pad."""

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that wrappers of a model add to the names of its tensors."""

PRECISION = {"float32": 1e-5, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""By dtype of the engine: how far sums may be from a factor's, relative to the root of the sum of squares."""

LEAST_FACTOR = 1e-3
"""A factor differs from 1 by at least this much, and by twice the precision."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What adds up over parts of a tensor."""

    rows: int
    hashes: tuple[int, ...]
    square: float
    sums: tuple[float, ...]
    bad: int

    @classmethod
    def of(cls, sketches: Sequence[wire.WeightSketch]) -> Sums:
        """The sums over parts along the first axis."""
        kinds = zip(*(one.hashes for one in sketches), strict=False)
        return cls(
            sum(one.rows for one in sketches),
            tuple(sum(int(each, 16) for each in kind) % _FULL for kind in kinds),
            math.fsum(one.square for one in sketches),
            tuple(math.fsum(column) for column in zip(*(one.sums for one in sketches), strict=False)),
            sum(one.bad for one in sketches),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """One tensor of an engine.

    Attributes:
        name, dtype: of the tensor.
        whole: summed over the ranks, of which each has some rows.
        first: of the first rank, where all ranks have a copy, or where they split the tensor by columns.
    """

    name: str
    dtype: str
    whole: Sums
    first: Sums

    @property
    def is_empty(self) -> bool:
        """Whether all values are 0, or some are no numbers."""
        return bool(self.whole.bad) or self.whole.square == 0

    def matching(self, trainer: Sums) -> Sums | None:
        """The sums that compare with the trainer's; None if the tensor is of another size."""
        if self.whole.rows == trainer.rows:
            return self.whole
        if self.first.rows == trainer.rows:
            return self.first
        is_padded = any(part in self.name for part in VOCABULARY)
        return self.whole if is_padded and 0 < self.whole.rows - trainer.rows <= PADDING else None


EngineWeights = dict[str, EngineTensor]
"""By name."""


def engine_weights(sketches: Iterable[wire.WeightSketch]) -> EngineWeights:
    """The tensors of an engine, each over all its ranks."""
    by_name: dict[str, list[wire.WeightSketch]] = {}
    for one in sketches:
        by_name.setdefault(one.name, []).append(one)
    return {
        name: EngineTensor(name, ranks[0].dtype, Sums.of(ranks), Sums.of(ranks[:1])) for name, ranks in by_name.items()
    }


class TrainerState:
    """The trainer's weights of one version; each rank may have stated some."""

    def __init__(self) -> None:
        self._sketches: dict[str, wire.WeightSketch] = {}
        self._joined: dict[str, Sums | None] = {}

    def add(self, sketches: Iterable[wire.WeightSketch]) -> None:
        """Add what one rank stated."""
        self._sketches.update({_plain(one.name): one for one in sketches})
        self._joined.clear()

    def parts_of(self, name: str, fused: Mapping[str, list[str]]) -> Sums | None:
        """The sums of the tensors that the engine's tensor is made of; None if one was not stated."""
        if name not in self._joined:
            found = [self._sketches.get(part) for part in checkpoint_parts(name.removesuffix(PACKED_MARK), fused)]
            known = [one for one in found if one is not None]
            self._joined[name] = Sums.of(known) if len(known) == len(found) else None
        return self._joined[name]


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def equals(here: Sums, trainer: Sums, dtype: str) -> bool:
    """Whether an engine of this dtype has the trainer's values, rounded as loading does."""
    return here.hashes[0] == trainer.hashes[ROUNDED.index(dtype)]


def is_cast(here: Sums, trainer: Sums) -> bool:
    """Whether the engine has the trainer's values after a cast to another type."""
    return here.hashes[0] in trainer.hashes


def factor(here: Sums, other: Sums, dtype: str) -> float | None:
    """The factor by which all values are those of ``other``; None if there is none besides 1."""
    if not here.square or not other.square:
        return None
    size, precision = math.sqrt(here.square / other.square), PRECISION.get(dtype, 2.0**-8)
    for k in (size, -size):
        close = all(
            abs(one - k * two) <= precision * math.sqrt(here.square)
            for one, two in zip(here.sums, other.sums, strict=True)
        )
        if close and abs(k - 1) > max(LEAST_FACTOR, 2 * precision):
            return k
    return None
