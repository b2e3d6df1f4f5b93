"""Single rows and tokens of a batch in the form that viewers get, ranked by |d| and k3. Pure."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.samples import Sequence, Token
from rltop.backend.join.batch import Batch
from rltop.backend.join.versions import token_versions
from rltop.backend.summary import CLAMP
from rltop.collectors.contract import wire

MAX_CONTEXT = 512
BEFORE, AFTER = 24, 8
"""Context tokens that are kept before a sequence, and around a single token."""

Floats = NDArray[np.float32]
Hashes = NDArray[np.uint64]
T = TypeVar("T")
Ranked = tuple[float, int, T]
"""Value, key, item: sorted by falling value, then by rising key."""


class TokenDetails:
    """The rows and tokens of a batch with their |d| and k3.

    Attributes:
        rows: numbers of the rows with trained tokens [rows]; other arrays by row have this order.
        hashes: of rank and row number [rows]. row_k3: mean k3 [rows], infinite if a token has no finite d.
        size, k3: |d| and k3 of every trained token [tokens], infinite if d is not finite.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        with np.errstate(invalid="ignore"):
            d = batch.arrays["trainer_logprobs"] - batch.arrays["rollout_logprobs"]
        clamped = np.clip(d, -CLAMP, CLAMP)
        self.size, self.k3 = np.abs(d), np.expm1(clamped) - clamped
        invalid = ~np.isfinite(d)
        self.size[invalid] = self.k3[invalid] = np.inf
        self.rows, self._starts, self._counts = np.unique(batch.token_rows, return_index=True, return_counts=True)
        self.hashes = row_hashes(batch.body.step, batch.body.rank, batch.first + self.rows)
        sums = np.add.reduceat(self.k3, self._starts) if self.rows.size else self.k3[:0]
        self.row_k3 = (sums / self._counts).astype(np.float32)
        names = [hit.record.engine if hit else "" for hit in batch.hits]
        self.engines = sorted(set(names))
        of_spans = np.array([self.engines.index(name) for name in names], np.int32)
        self._token_engines = np.repeat(of_spans, [span.end - span.start for span in batch.spans])
        self._row_engines = self._token_engines[self._starts]
        self._sequences: dict[int, Sequence] = {}
        self._tokens: dict[int, Token] = {}

    def rows_of(self, engine: str | None) -> NDArray[np.intp]:
        """Indices in ``rows`` of the rows that the engine began (None: all)."""
        every = np.arange(self.rows.size)
        return every if engine is None else every[self._row_engines == self.engines.index(engine)]

    def tokens(self, values: Floats, engine: str | None, kept: list[Ranked[Token]], most: int) -> list[Ranked[Token]]:
        """The engine's ``most`` tokens with the highest values, as far as they can enter the ranked list ``kept``."""
        rank = self._batch.body.rank
        here = None if engine is None else np.flatnonzero(self._token_engines == self.engines.index(engine))
        places = highest(values if here is None else values[here], most, threshold(kept, most))
        found = []
        for at in places if here is None else here[places].tolist():
            row = int(self._batch.token_rows[at])
            position = at - int(self._starts[np.searchsorted(self.rows, row)])
            key = (rank << 64) | (self._batch.first + row) << 32 | position
            if key not in self._tokens:
                self._tokens[key] = self._token(row, position)
            found.append((float(values[at]), key, self._tokens[key]))
        return found

    def sequence(self, index: int) -> Sequence:
        """The row at an index in ``rows``."""
        if index not in self._sequences:
            self._sequences[index] = self._sequence(int(self.rows[index]))
        return self._sequences[index]

    def _sequence(self, row: int) -> Sequence:
        batch = self._batch
        start, end = self._range(row)
        ids, mask, context = batch.row_of(row)
        first = int(mask.argmax())
        rollout, trainer = (batch.arrays[name][start:end] for name in ("rollout_logprobs", "trainer_logprobs"))
        with np.errstate(invalid="ignore"):
            d = trainer.astype(np.float64) - rollout
        d = d[np.isfinite(d)]
        clamped = np.clip(d, -CLAMP, CLAMP)
        hits = [hit for _, hit in batch.hits_of(row) if hit is not None]
        whole = [hit for hit in hits if not hit.offset]
        opening = whole[0].record.rollout if whole else None
        return Sequence(
            step=batch.body.step,
            rank=batch.body.rank,
            number=batch.first + row,
            tokens=end - start,
            invalid=end - start - d.size,
            abs_diff_mean=float(np.abs(d).mean()) if d.size else None,
            k3_mean=float((np.expm1(clamped) - clamped).mean()) if d.size else None,
            reward=self._reward(row),
            engines=list(dict.fromkeys(hit.record.engine for hit in hits)),
            requests=[hit.record.rollout.request_id for hit in whole],
            ways=list(dict.fromkeys(hit.way for hit in hits)),
            finish_reason=hits[-1].record.rollout.finish_reason if hits else "",
            prompt_tokens=opening.prompt_size if opening else None,
            cached_tokens=opening.cached_tokens if opening else None,
            context=_i4(np.concatenate([context, ids[:first]])[-MAX_CONTEXT:]),
            ids=_i4(ids[first:]),
            mask=mask[first:].astype("u1").tobytes(),
            rollout=rollout.tobytes(),
            trainer=trainer.tobytes(),
            versions=_i4(self._versions[start:end]),
            epochs=_i4(self._epochs(row)),
            unjoined=batch.waiting.get(row, ""),
        )

    def _token(self, row: int, position: int) -> Token:
        batch = self._batch
        start, end = self._range(row)
        ids, mask, context = batch.row_of(row)
        at = int(np.flatnonzero(mask)[position])
        whole = np.concatenate([context, ids])
        here = at + context.size
        span, hit = next((s, h) for s, h in batch.hits_of(row) if start + position < s.token + s.end - s.start)
        run = None if hit is None else hit.record.run_at(hit.offset + start + position - span.token)
        rollout = hit.record.rollout if hit else None
        return Token(
            step=batch.body.step,
            rank=batch.body.rank,
            number=batch.first + row,
            position=position,
            tokens=end - start,
            id=int(ids[at]),
            rollout=float(batch.arrays["rollout_logprobs"][start + position]),
            trainer=float(batch.arrays["trainer_logprobs"][start + position]),
            engine=hit.record.engine if hit else "",
            request=rollout.request_id if rollout else "",
            version=int(self._versions[start + position]),
            epoch=wire.UNKNOWN_VERSION if run is None else run.flag_epoch,
            prompt_tokens=rollout.prompt_size if rollout else None,
            cached_tokens=rollout.cached_tokens if rollout else None,
            reward=self._reward(row),
            before=_i4(whole[max(here - BEFORE, 0) : here]),
            after=_i4(whole[here + 1 : here + 1 + AFTER]),
        )

    def _range(self, row: int) -> tuple[int, int]:
        at = int(np.searchsorted(self.rows, row))
        return int(self._starts[at]), int(self._starts[at] + self._counts[at])

    def _reward(self, row: int) -> float | None:
        rewards = self._batch.arrays.get("rewards")
        return None if rewards is None or not np.isfinite(rewards[row]) else float(rewards[row])

    @functools.cached_property
    def _versions(self) -> NDArray[np.int64]:
        """Policy version of each token of the batch [tokens]."""
        return token_versions(self._batch).version

    def _epochs(self, row: int) -> NDArray[np.int64]:
        """Flag epoch of each token of the row."""
        start, end = self._range(row)
        values = np.full(end - start, wire.UNKNOWN_VERSION, np.int64)
        for span, hit in self._batch.hits_of(row):
            if hit is not None:
                size = span.end - span.start
                values[span.token - start :][:size] = hit.record.epochs[hit.offset : hit.offset + size]
        return values


def highest(values: Floats, most: int, floor: float) -> list[int]:
    """Indices of the ``most`` highest ``values`` [n] that reach ``floor``, by falling value, then by rising index."""
    if values.size > most:
        floor = max(floor, float(np.partition(values, values.size - most)[values.size - most]))
    places = np.flatnonzero(values >= floor)
    return [int(at) for at in places[np.argsort(-values[places], kind="stable")][:most]]


def threshold(ranked: list[Ranked[T]], most: int) -> float:
    """The value that an entry must reach to be kept."""
    return ranked[-1][0] if len(ranked) == most else -np.inf


def row_hashes(step: int, rank: int, numbers: NDArray[np.int64]) -> Hashes:
    """Hash of step, rank and each row number [n]: splitmix64 (Steele et al. 2014), uniform over 64 bits."""
    of_rank = _mixed(_mixed(np.array([step], np.uint64)) + np.array([rank], np.uint64))
    return _mixed(of_rank + _mixed(numbers.astype(np.uint64)))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Hashes) -> Hashes:
    with np.errstate(over="ignore"):
        mixed = values + _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _i4(values: NDArray[np.integer[Any]]) -> bytes:
    return values.astype("<i4").tobytes()
