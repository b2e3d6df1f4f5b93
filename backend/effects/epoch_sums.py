"""What the effect of a switch is reckoned from: sums per engine and flag epoch, and how sequences vary. Pure.

A token belongs to the flag epoch it was sampled in, whichever step trains on it. A cell holds, for each figure, what
a mean over tokens and the variance of that mean need when the tokens of a sequence are not independent: for sequences
with n tokens and a sum of s each, the sums of 1, n, s, n n, s s and n s. Cells of the same place merge by addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.measure.measure import by_row, clips, token_versions
from rltop.backend.summary import CLAMP, Floats
from rltop.backend.util.bounded import ByteBoundedCache
from rltop.collectors.contract import wire

TOKEN_FIGURES = ("gap", "k3", "ratio", "entropy", "lag")
REQUEST_FIGURES = ("prompt", "temperature", "latency", "token_time")
FIGURES = (*TOKEN_FIGURES, "clip", "reward", *REQUEST_FIGURES)
"""The figures of a cell, in the order of its rows.

gap: |d| in nats. k3: exp(d) - 1 - d in nats. ratio: exp(d). entropy: nats. lag: versions. All per token of update 0,
``d = trainer - rollout`` held to +-20 but in gap. clip: 1 where clipped, low or high, of all updates, per token (per
sequence for GSPO without a mask). reward: per sequence. prompt (tokens) and temperature: per request. latency: seconds
from arrival to end of a request, token_time: seconds from its first scheduling to its end over its tokens, of requests
that were not aborted. Requests count where they lie wholly in one flag epoch.
"""

CELL_BYTES = 700
"""What a cell holds, roughly, with its place."""

TOTAL_BYTES, STEPS, MOST_BYTES = 4 << 20, 200, 64 << 20
"""What is kept of past steps: of 8 engines the last 750; of 100 and more the last 200, which any question of an effect
looks at; of 1,000 the last 90."""

ROW = {name: number for number, name in enumerate(FIGURES)}

M, N, S, NN, SS, NS = range(6)
"""Columns of a cell: sequences, tokens (or what is counted), their sum, and the second moments of n and s."""

Cell = Floats
"""[len(FIGURES), 6] float64."""


class EpochKey(NamedTuple):
    """Where tokens were sampled. ``life`` is the engine process's (its flag epochs start at 0 again in the next)."""

    engine: str
    life: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StepCells:
    """The cells of one step, and when it closed (wall clock of the hub, seconds)."""

    step: int
    closed: float
    cells: dict[EpochKey, Cell]


class Cells:
    """The cells of the latest steps, bounded by bytes."""

    def __init__(self, total_bytes: int = TOTAL_BYTES, steps: int = STEPS) -> None:
        self._steps: ByteBoundedCache[StepCells] = ByteBoundedCache(total_bytes, steps=steps, most_bytes=MOST_BYTES)

    def add(self, step: int, closed: float, cells: dict[EpochKey, Cell]) -> None:
        """A step is done. One that comes again, from a restarted trainer, takes the place of its first telling."""
        self._steps.put(step, StepCells(step, closed, cells), CELL_BYTES * (1 + len(cells)))

    def of_step(self, step: int) -> dict[EpochKey, Cell]:
        """The cells of a step; none where none are kept."""
        found = self._steps.get(step)
        return found.cells if found else {}

    def steps(self) -> list[StepCells]:
        """In the order in which they closed."""
        return [cells for _, cells in self._steps.items()]


def empty() -> Cell:
    """A cell of nothing."""
    return np.zeros((len(FIGURES), 6))


def mean(cell: Cell, figure: str) -> float | None:
    """Mean of a figure over what it counts; None where there is nothing."""
    row = cell[ROW[figure]]
    return float(row[S] / row[N]) if row[N] else None


def variance(cell: Cell, figure: str) -> float | None:
    """Variance of ``mean``, with whole sequences as the independent units (ratio estimator); None below two of them."""
    m, n, s, nn, ss, ns = map(float, cell[ROW[figure]])
    if m < 2 or not n:
        return None
    r = s / n
    return max(ss - 2 * r * ns + r * r * nn, 0.0) / n**2 * m / (m - 1)


def measure_cells(batch: Batch) -> dict[EpochKey, Cell]:
    """The batch's cells. Tokens whose engine is not known are in none; a row of several places has no reward there."""
    places: dict[EpochKey, int] = {}
    token_places = _token_places(batch, places)
    cells = [empty() for _ in places]
    if not cells:
        return {}
    starts = _starts(batch.token_rows, token_places)
    group_places = token_places[starts]
    row_places = _row_places(batch, batch.token_rows[starts], group_places)
    clipped = np.fmax(*clips(batch))  # of the two sides; a side without a bound has only NaN
    if by_row(batch):
        _add(cells, "clip", row_places, clipped, np.arange(batch.rows))
    else:
        _add(cells, "clip", group_places, clipped, starts)
    if batch.body.update == 0:
        for name, values in _token_values(batch).items():
            _add(cells, name, group_places, values, starts)
        if (rewards := batch.arrays.get("rewards")) is not None:
            _add(cells, "reward", row_places, rewards.astype(np.float64), np.arange(batch.rows))
        _add_requests(batch, cells, places)
    return dict(zip(places, cells, strict=True))


def _token_places(batch: Batch, places: dict[EpochKey, int]) -> NDArray[np.int64]:
    """Number of each token's place [tokens], -1 where unknown; ``places`` is filled."""
    found = np.full(batch.tokens, -1, np.int64)
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is None:
            continue
        record = hit.record
        for run in record.rollout.runs:  # the later run overwrites the rest
            start = max(run.start - hit.offset, 0)
            if start >= span.end - span.start:
                break
            place = EpochKey(record.engine, record.life, run.flag_epoch)
            found[span.token + start : span.token + span.end - span.start] = places.setdefault(place, len(places))
    return found


def _row_places(batch: Batch, group_rows: NDArray[np.int64], group_places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The one place that a row's tokens are of [rows], -1 where there are several or none."""
    places = np.full(batch.rows, -1, np.int64)
    places[group_rows] = group_places
    places[np.bincount(group_rows, minlength=batch.rows) != 1] = -1
    return places


def _starts(rows: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of tokens of one row and one place start: the units that are taken as independent."""
    change = (rows[1:] != rows[:-1]) | (places[1:] != places[:-1])
    return np.concatenate([[0], np.flatnonzero(change) + 1])


def _token_values(batch: Batch) -> dict[str, Floats]:
    """Per-token values [tokens] of update 0, NaN where they do not count."""
    arrays = batch.arrays
    with np.errstate(invalid="ignore"):  # inf - inf: not counted
        d = arrays["trainer_logprobs"].astype(np.float64) - arrays["rollout_logprobs"]
    d[~np.isfinite(d)] = np.nan
    held = np.clip(d, -CLAMP, CLAMP)
    excess = np.expm1(held)
    values = {"gap": np.abs(d), "k3": excess - held, "ratio": excess + 1}
    if "entropy" in arrays:
        values["entropy"] = arrays["entropy"].astype(np.float64)
    if batch.body.policy_version is not None:
        versions = token_versions(batch)
        lag = (batch.body.policy_version - versions).astype(np.float64)
        values["lag"] = np.where(versions == wire.UNKNOWN_VERSION, np.nan, lag)
    return values


def _add(cells: list[Cell], figure: str, places: NDArray[np.int64], values: Floats, starts: NDArray[np.int64]) -> None:
    """Add values to the cells: each group from ``starts`` on is a sequence, ``places`` [groups] says of which cell."""
    n = np.diff(starts, append=values.size).astype(np.float64)
    s = np.add.reduceat(values, starts)
    if not np.isfinite(s).all():
        counted = np.isfinite(values)
        n = np.add.reduceat(counted, starts, dtype=np.float64)
        s = np.add.reduceat(np.where(counted, values, 0.0), starts)
    used = (n > 0) & (places >= 0)
    n, s, where = n[used], s[used], places[used]
    for column, moments in enumerate((np.ones_like(n), n, s, n * n, s * s, n * s)):
        sums = np.bincount(where, moments, minlength=len(cells))
        for cell, total in zip(cells, sums, strict=True):
            cell[ROW[figure], column] += total


def _add_requests(batch: Batch, cells: list[Cell], places: dict[EpochKey, int]) -> None:
    found: dict[str, tuple[list[int], list[float]]] = {figure: ([], []) for figure in REQUEST_FIGURES}

    def note(figure: str, place: int, value: float) -> None:
        found[figure][0].append(place)
        found[figure][1].append(value)

    for hit in batch.hits:
        if hit is None or hit.offset:  # the rest of a request that was counted at its start
            continue
        record, rollout = hit.record, hit.record.rollout
        epochs = {run.flag_epoch for run in rollout.runs}
        if len(epochs) != 1:
            continue
        place = places.get(EpochKey(record.engine, record.life, epochs.pop()))
        if place is None:
            continue
        note("prompt", place, rollout.prompt_size)
        if (temperature := rollout.sampling.get("temperature")) is not None:
            note("temperature", place, temperature)
        if rollout.finish_reason == "abort":
            continue
        if 0 < rollout.arrived <= rollout.finished:
            note("latency", place, rollout.finished - rollout.arrived)
        if 0 < rollout.scheduled <= rollout.finished:
            note("token_time", place, (rollout.finished - rollout.scheduled) / rollout.size)
    for figure, (where, values) in found.items():
        if where:
            _add(cells, figure, np.array(where, np.int64), np.array(values, np.float64), np.arange(len(where)))
