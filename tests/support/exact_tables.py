"""Distributions over a whole vocabulary from a table of logits, as an engine samples and as a trainer computes."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Key(msgspec.Struct, frozen=True):
    """How a table of logits becomes distributions."""

    version: int
    heat: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    usual: bool = False
    rounded: bool = False
    noise: float = 0.0
    mask: int = 0
    old: int = -1
    mixed: float = 0.0


class Dists:
    """Distributions of all contexts.

    Attributes:
        logp: [contexts, vocabulary]. entropy: of each [contexts].
    """

    def __init__(self, logp: Floats) -> None:
        self.logp = logp
        p = np.exp(logp)
        below = np.cumsum(p, axis=1)
        self._below = (below / below[:, -1:] + np.arange(len(p))[:, None]).ravel()
        with np.errstate(invalid="ignore"):
            self.entropy = -np.where(p > 0, p * logp, 0.0).sum(axis=1)

    @classmethod
    def of(cls, logits: NDArray[np.float32], key: Key) -> Dists:
        """What a table of logits makes at the key's temperature and truncation."""
        return cls(_cut(_log_softmax(logits.astype(np.float64) / key.heat), key))

    def drawn(self, places: Ints, u: Floats) -> Ints:
        """Tokens of these contexts, by numbers from 0 to 1."""
        found: Ints = np.searchsorted(self._below, places + u, side="right") - places * self.logp.shape[1]
        return found


def _log_softmax(logits: Floats) -> Floats:
    top = logits.max(axis=-1, keepdims=True)
    found: Floats = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return found


def _cut(logp: Floats, key: Key) -> Floats:
    """What top-p, top-k and min-p leave, with their sum 1."""
    if key.top_p >= 1 and not key.top_k and not key.min_p:
        return logp
    order = np.argsort(-logp, axis=1)
    ranked = np.take_along_axis(logp, order, axis=1)
    p = np.exp(ranked)
    kept = np.cumsum(p, axis=1) - p < key.top_p
    if key.top_k:
        kept &= np.arange(p.shape[1]) < key.top_k
    kept &= p >= key.min_p * p[:, :1]
    ranked = np.where(kept, ranked - np.log((p * kept).sum(axis=1, keepdims=True)), -np.inf)
    found = np.empty_like(logp)
    np.put_along_axis(found, order, ranked, axis=1)
    return found


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to 8 significant bits, to the nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
