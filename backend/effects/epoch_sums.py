"""Sums per engine and flag epoch, from which the effect of a switch is estimated. Pure.

A token belongs to the flag epoch in which it was sampled, whichever step trains on it. For each figure a cell holds the
moments (``summary.kernel.Moments``) of which a mean over tokens and its variance are made, with sequences as the
independent units. Cells of the same key merge by addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.join.versions import token_versions
from rltop.backend.measure.measure import by_row, clips
from rltop.backend.summary import CLAMP, Floats
from rltop.backend.summary.kernel import MOMENT
from rltop.backend.util.bounded import ByteBoundedCache
from rltop.collectors.contract import wire

TOKEN_FIGURES = ("gap", "k3", "ratio", "entropy", "lag")
REQUEST_FIGURES = ("prompt", "temperature", "latency", "token_time")
FIGURES = (*TOKEN_FIGURES, "clip", "reward", *REQUEST_FIGURES)
"""The figures of a cell, in the order of its rows.

gap: |d| in nats. k3: exp(d) - 1 - d in nats. ratio: exp(d). entropy: nats. lag: versions. All per token of update 0;
``d = trainer - rollout`` is clamped to +-20 except in gap. clip: 1 if clipped, low or high, of all updates, per token
(per sequence for GSPO without a mask). reward: per sequence. prompt (tokens) and temperature: per request. latency:
seconds from arrival to end of a request; token_time: seconds from its first scheduling to its end, per token; both of
requests that were not aborted. A request counts if it lies within one flag epoch.
"""

CELL_BYTES = 700
"""Approximate memory use of a cell with its key."""

TOTAL_BYTES, STEPS, MOST_BYTES = 4 << 20, 200, 64 << 20
"""Bounds on past steps. With 8 engines the last 750 are kept, with 100 and more the last 200, which is what an estimate
can use, with 1,000 the last 90."""

ROW = {name: number for number, name in enumerate(FIGURES)}

Cell = Floats
"""float64 [len(FIGURES), Moments]; ``n`` counts tokens, sequences or requests, as the figure does."""


class EpochKey(NamedTuple):
    """A flag epoch of an engine process. ``life`` is the process's epoch: each process counts flag epochs from 0."""

    engine: str
    life: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StepCells:
    """The cells of one step, and the time it closed (wall clock of the hub, seconds)."""

    step: int
    closed: float
    cells: dict[EpochKey, Cell]


class Cells:
    """The cells of the latest steps, bounded by bytes."""

    def __init__(self, total_bytes: int = TOTAL_BYTES, steps: int = STEPS) -> None:
        self._steps: ByteBoundedCache[StepCells] = ByteBoundedCache(total_bytes, steps=steps, most_bytes=MOST_BYTES)

    def put(self, step: int, closed: float, cells: dict[EpochKey, Cell]) -> None:
        """Store a finished step, replacing an earlier one of that number (of a restarted trainer)."""
        self._steps.put(step, StepCells(step, closed, cells), CELL_BYTES * (1 + len(cells)))

    def of_step(self, step: int) -> dict[EpochKey, Cell]:
        """The cells of a step; empty if none are kept."""
        stored = self._steps.get(step)
        return stored.cells if stored else {}

    def steps(self) -> list[StepCells]:
        """All steps, in the order in which they closed."""
        return [cells for _, cells in self._steps.items()]


def empty() -> Cell:
    """A cell without observations."""
    return np.zeros((len(FIGURES), len(MOMENT)))


def mean(cell: Cell, figure: str) -> float | None:
    """Mean of a figure; None without observations."""
    row = cell[ROW[figure]]
    return float(row[MOMENT.s] / row[MOMENT.n]) if row[MOMENT.n] else None


def variance(cell: Cell, figure: str) -> float | None:
    """Variance of ``mean`` with sequences as the independent units (ratio estimator); None with fewer than two."""
    m, n, s, nn, ss, ns = map(float, cell[ROW[figure]])
    if m < 2 or not n:
        return None
    r = s / n
    return max(ss - 2 * r * ns + r * r * nn, 0.0) / n**2 * m / (m - 1)


def measure_cells(batch: Batch) -> dict[EpochKey, Cell]:
    """The cells of a batch. Tokens of unknown engines are in no cell; a row of several keys adds no reward."""
    keys: dict[EpochKey, int] = {}
    token_keys = _token_keys(batch, keys)
    cells = [empty() for _ in keys]
    if not cells:
        return {}
    starts = _starts(batch.token_rows, token_keys)
    group_keys = token_keys[starts]
    row_keys = _row_keys(batch, batch.token_rows[starts], group_keys)
    clipped = np.fmax(*clips(batch))  # of either side; a side without a bound has only NaN
    if by_row(batch):
        _add(cells, "clip", row_keys, clipped, np.arange(batch.rows))
    else:
        _add(cells, "clip", group_keys, clipped, starts)
    if batch.body.update == 0:
        for name, values in _token_values(batch).items():
            _add(cells, name, group_keys, values, starts)
        if (rewards := batch.arrays.get("rewards")) is not None:
            _add(cells, "reward", row_keys, rewards.astype(np.float64), np.arange(batch.rows))
        _add_requests(batch, cells, keys)
    return dict(zip(keys, cells, strict=True))


def _token_keys(batch: Batch, keys: dict[EpochKey, int]) -> NDArray[np.int64]:
    """Number of each token's key [tokens], -1 if unknown; ``keys`` is filled in."""
    found = np.full(batch.tokens, -1, np.int64)
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is None:
            continue
        record = hit.record
        for run in record.rollout.runs:  # the later run overwrites the rest
            start = max(run.start - hit.offset, 0)
            if start >= span.end - span.start:
                break
            key = EpochKey(record.engine, record.life, run.flag_epoch)
            found[span.token + start : span.token + span.end - span.start] = keys.setdefault(key, len(keys))
    return found


def _row_keys(batch: Batch, group_rows: NDArray[np.int64], group_keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The key of each row's tokens [rows], -1 if there are several or none."""
    keys = np.full(batch.rows, -1, np.int64)
    keys[group_rows] = group_keys
    keys[np.bincount(group_rows, minlength=batch.rows) != 1] = -1
    return keys


def _starts(rows: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Starts of the runs of tokens of one row and one key, which are the independent units."""
    change = (rows[1:] != rows[:-1]) | (keys[1:] != keys[:-1])
    return np.concatenate([[0], np.flatnonzero(change) + 1])


def _token_values(batch: Batch) -> dict[str, Floats]:
    """Values per token [tokens] of update 0, NaN if they do not count."""
    arrays = batch.arrays
    with np.errstate(invalid="ignore"):  # inf - inf gives NaN, which is not counted
        d = arrays["trainer_logprobs"].astype(np.float64) - arrays["rollout_logprobs"]
    d[~np.isfinite(d)] = np.nan
    clamped = np.clip(d, -CLAMP, CLAMP)
    excess = np.expm1(clamped)
    values = {"gap": np.abs(d), "k3": excess - clamped, "ratio": excess + 1}
    if "entropy" in arrays:
        values["entropy"] = arrays["entropy"].astype(np.float64)
    if batch.body.policy_version is not None:
        versions = token_versions(batch).version
        lag = batch.lags(versions).astype(np.float64)
        values["lag"] = np.where(versions == wire.UNKNOWN_VERSION, np.nan, lag)
    return values


def _add(cells: list[Cell], figure: str, keys: NDArray[np.int64], values: Floats, starts: NDArray[np.int64]) -> None:
    """Add values to cells. ``starts``: first value of each sequence; ``keys``: its cell, or -1."""
    n = np.diff(starts, append=values.size).astype(np.float64)
    s = np.add.reduceat(values, starts)
    if not np.isfinite(s).all():
        counted = np.isfinite(values)
        n = np.add.reduceat(counted, starts, dtype=np.float64)
        s = np.add.reduceat(np.where(counted, values, 0.0), starts)
    used = (n > 0) & (keys >= 0)
    n, s, cell_of = n[used], s[used], keys[used]
    for column, moments in zip(MOMENT, (np.ones_like(n), n, s, n * n, s * s, n * s), strict=True):
        sums = np.bincount(cell_of, moments, minlength=len(cells))
        for cell, total in zip(cells, sums, strict=True):
            cell[ROW[figure], column] += total


def _add_requests(batch: Batch, cells: list[Cell], keys: dict[EpochKey, int]) -> None:
    found: dict[str, tuple[list[int], list[float]]] = {figure: ([], []) for figure in REQUEST_FIGURES}

    def append(figure: str, key: int, value: float) -> None:
        found[figure][0].append(key)
        found[figure][1].append(value)

    for hit in batch.hits:
        if hit is None or hit.offset:  # a later part of a request that was counted at its start
            continue
        record, rollout = hit.record, hit.record.rollout
        epochs = {run.flag_epoch for run in rollout.runs}
        if len(epochs) != 1:
            continue
        key = keys.get(EpochKey(record.engine, record.life, epochs.pop()))
        if key is None:
            continue
        append("prompt", key, rollout.prompt_size)
        if (temperature := rollout.sampling.get("temperature")) is not None:
            append("temperature", key, temperature)
        if rollout.finish_reason == "abort":
            continue
        if 0 < rollout.arrived <= rollout.finished:
            append("latency", key, rollout.finished - rollout.arrived)
        if 0 < rollout.scheduled <= rollout.finished:
            append("token_time", key, (rollout.finished - rollout.scheduled) / rollout.size)
    for figure, (cell_of, values) in found.items():
        if cell_of:
            _add(cells, figure, np.array(cell_of, np.int64), np.array(values, np.float64), np.arange(len(cell_of)))
