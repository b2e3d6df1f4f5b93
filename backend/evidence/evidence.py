"""The evidence that checks are computed from: additive sums over the tokens of one engine in one step. Pure.

Each figure has six sums over sequences (``kernel.EvidenceMoments``), which give a mean and an interval that takes whole
sequences as the independent units. All sampled tokens count, before any filter: a filter by reward or length would
break the assumptions of the checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.evidence import kernel
from rltop.backend.evidence.kernel import EXTREME, FIGURE, MOMENT, SUM
from rltop.backend.join import copies
from rltop.backend.join.batch import Batch
from rltop.backend.measure.measure import BatchRuns
from rltop.backend.summary import Summary
from rltop.backend.summary.dimensions import LAG, OFFSET, TURN
from rltop.backend.summary.kernel import FIGURE as SUMMARY_FIGURE
from rltop.backend.summary.token_runs import POSITION_EDGES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID, GRID_ERROR = 2.0**-8, 1e-5
"""bfloat16 logits of 0.5 and above are multiples of GRID, so logprobs at one position differ by multiples of it. The
second is float32's error: one pair of float32 logprobs in 200 is on the grid by chance."""

BINS = POSITION_EDGES.size
LAGS = len(LAG.strata)
TURNS = 2
"""The first turn of a sequence, and all later ones."""

_SHAPES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("moments", (len(FIGURE), len(MOMENT))),
    ("sums", (kernel.SUM_COLUMNS,)),
    ("extremes", (len(EXTREME),)),
    ("aligned", (len(kernel.SHIFTS), 2)),
    ("profile", (BINS, 3)),
    ("lags", (LAGS, len(MOMENT))),
    ("turns", (TURNS, len(MOMENT))),
)
SIZE = sum(math.prod(shape) for _, shape in _SHAPES)
"""Numbers in one ``Evidence``."""

SIZES = (SIZE - TURNS * len(MOMENT), SIZE)
"""Sizes that are read: later arrays are appended, and empty in what an older version packed."""

_NO_EXTREMES = (math.inf, -math.inf, math.inf)

CONTEXT_ROWS = 64
"""Rows of a batch whose contexts are searched for repeated tokens, at some 20 us a row."""

REPEAT_ROWS, REPEAT_TOKENS = 1024, 8
"""Rows of a batch, and first tokens of each, that are searched for equal contexts."""


class ClusteredMean(NamedTuple):
    """A mean over tokens and its variance, with sequences as the independent units."""

    mean: float
    variance: float
    sequences: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The evidence of one engine in one step, or in several.

    Attributes:
        moments: [FIGURE, MOMENT].
        sums: [SUM_COLUMNS], by ``SUM``.
        extremes: [EXTREME].
        aligned: [SHIFTS, 2], tokens and the sum of |trainer - displaced rollout|.
        profile: [position bins, 3], of matched tokens: number, sum of d^2 (at most 1 each), sum of 1 - p.
        lags: [lag strata, MOMENT], moments of k3 by lag.
        turns: [TURNS, MOMENT], moments of matched |d| in first and in later turns; each turn counts as a sequence.
    """

    moments: Floats = field(default_factory=lambda: np.zeros((len(FIGURE), len(MOMENT))))
    sums: Floats = field(default_factory=lambda: np.zeros(kernel.SUM_COLUMNS))
    extremes: Floats = field(default_factory=lambda: np.array(_NO_EXTREMES))
    aligned: Floats = field(default_factory=lambda: np.zeros((len(kernel.SHIFTS), 2)))
    profile: Floats = field(default_factory=lambda: np.zeros((BINS, 3)))
    lags: Floats = field(default_factory=lambda: np.zeros((LAGS, len(MOMENT))))
    turns: Floats = field(default_factory=lambda: np.zeros((TURNS, len(MOMENT))))

    def __add__(self, other: Evidence) -> Evidence:
        high = EXTREME.high
        extremes = np.minimum(self.extremes, other.extremes)
        extremes[high] = max(self.extremes[high], other.extremes[high])
        return Evidence(
            self.moments + other.moments,
            self.sums + other.sums,
            extremes,
            self.aligned + other.aligned,
            self.profile + other.profile,
            self.lags + other.lags,
            self.turns + other.turns,
        )

    @property
    def is_empty(self) -> bool:
        """Whether it has no tokens, requests or rows."""
        return not self.sums.any()

    def mean(self, figure: int) -> ClusteredMean | None:
        """Mean of a figure (ratio estimator), or None without tokens. With one sequence the variance is infinite."""
        return mean_of(*map(float, self.moments[figure]))

    def to_bytes(self) -> bytes:
        """Pack as float32."""
        parts = [np.asarray(getattr(self, name)).ravel() for name, _ in _SHAPES]
        return bytes(np.concatenate(parts).astype("<f4").tobytes())

    @classmethod
    def from_bytes(cls, packed: bytes) -> Evidence:
        """Unpack; raises ``ValueError`` if another version packed it."""
        numbers = np.frombuffer(packed, "<f4").astype(np.float64)
        if numbers.size not in SIZES:
            raise ValueError(f"evidence of {numbers.size} numbers; this version has {SIZE}")
        numbers = np.pad(numbers, (0, SIZE - numbers.size))
        parts, at = {}, 0
        for name, shape in _SHAPES:
            size = math.prod(shape)
            parts[name] = numbers[at : at + size].reshape(shape)
            at += size
        return cls(**parts)


def mean_of(m: float, n: float, s: float, nn: float, ss: float, ns: float) -> ClusteredMean | None:
    """The mean from six sums over sequences (``kernel.EvidenceMoments``)."""
    if not n:
        return None
    mean = s / n
    if m < 2:
        return ClusteredMean(mean, math.inf, int(m), int(n))
    variance = max(ss - 2 * mean * ns + mean * mean * nn, 0.0) / n**2 * m / (m - 1)
    return ClusteredMean(mean, variance, int(m), int(n))


def of(batch: Batch, cut: BatchRuns) -> dict[str, Evidence]:
    """The batch's evidence by engine (empty name: unknown engine), without what ``with_strata`` adds.

    Later updates on the same rollouts give none: their gap contains the updates.
    """
    if batch.body.update or not batch.tokens:
        return {}
    places = len(cut.names)
    out = kernel.EvidenceColumns(
        np.zeros((places, len(FIGURE), len(MOMENT))),
        np.zeros((places, kernel.SUM_COLUMNS)),
        np.tile(np.array(_NO_EXTREMES), (places, 1)),
        np.zeros((places, len(kernel.SHIFTS), 2)),
        np.zeros((places, BINS, 3)),
    )
    matched, lags = _matched(batch, cut)
    kept = ~_left_out(batch, cut)
    matched = np.where(kept, matched, 0)
    rollout = _originals(batch, cut)
    columns = kernel.TokenColumns(
        _plain(batch.arrays["trainer_logprobs"]),
        rollout,
        _column(batch, "old_logprobs"),
        _column(batch, "entropy"),
    )
    kernel.compiled()(columns, _runs(batch, cut, kept, matched, lags), out)
    _add_contexts(batch, cut, matched, rollout, out.moments)
    _add_repeats(batch, cut, kept, rollout, out.sums)
    _add_requests(batch, cut, out.moments, out.sums, out.extremes)
    _add_rows(batch, cut, out.moments, out.sums)
    return {name: Evidence(*(array[place] for array in out)) for place, name in enumerate(cut.names)}


def with_strata(evidence: Evidence, summary: Summary) -> Evidence:
    """The evidence with k3 by lag, and the matched gap by turn, from a summary."""
    lag, turn = OFFSET[LAG.name], OFFSET[TURN.name]
    of_turns = summary.matched.moments[turn : turn + len(TURN.strata), SUMMARY_FIGURE.abs_d]
    lags = summary.strata.moments[lag : lag + LAGS, SUMMARY_FIGURE.k3]
    return replace(evidence, lags=lags, turns=np.stack([of_turns[0], of_turns[1:].sum(axis=0)]))


def _originals(batch: Batch, cut: BatchRuns) -> NDArray[np.float32]:
    """Rollout logprobs [tokens]; where the trainer's copy is wrong, the engine's own."""
    whole = batch.arrays["rollout_logprobs"]
    wrong = [number for number, kind in cut.copies.items() if kind not in (*copies.FINE, copies.UNRECORDED)]
    if wrong:
        whole = whole.copy()
    for number in wrong:
        span, hit = batch.spans[number], batch.hits[number]
        assert hit is not None
        size = span.end - span.start
        whole[span.token : span.token + size] = hit.record.logprobs[hit.offset : hit.offset + size]
    return _plain(whole)


def _left_out(batch: Batch, cut: BatchRuns) -> NDArray[np.bool_]:
    """Runs that no statistic is computed from [runs]: the engine's record is broken, or its prompt was another one."""
    broken = {number for number, kind in cut.copies.items() if kind in copies.OF_ENGINE}
    spans = np.zeros(len(batch.spans), bool)
    spans[sorted({*broken, *cut.prompts})] = True
    begins = np.array([span.token for span in batch.spans], np.int64)
    return spans[np.searchsorted(begins, cut.sampled.runs.start, side="right") - 1]


def _runs(batch: Batch, cut: BatchRuns, kept: NDArray[np.bool_], matched: Ints, lags: Floats) -> kernel.RunColumns:
    pieces = cut.pieces if kept.all() else cut.pieces.select(kept[cut.pieces.run])
    begins = np.array([span.token for span in batch.spans], np.int64)
    sizes = np.array([span.end - span.start for span in batch.spans], np.int64)
    span = np.searchsorted(begins, pieces.start, side="right") - 1
    return kernel.RunColumns(
        pieces.start, pieces.end, begins[span], begins[span] + sizes[span], matched[pieces.run],
        _labels(cut)[pieces.run], lags[pieces.run], pieces.position, pieces.engine, pieces.group,
    )  # fmt: skip


def _matched(batch: Batch, cut: BatchRuns) -> tuple[Ints, Floats]:
    """By what each run is version-matched (0: not at all), and its lag (NaN: unknown)."""
    runs, now = cut.sampled, batch.body.policy_version
    matched = np.where(runs.matched, kernel.BY_OLD, 0)
    lags = np.full(runs.version.size, np.nan)
    if now is not None:
        matched = np.where((matched == 0) & runs.known & (runs.version == now), kernel.BY_LAG_0, matched)
        lags = np.where(runs.known, batch.lags(runs.version), np.nan)
    return matched.astype(np.int64), lags.astype(np.float64)


def _labels(cut: BatchRuns) -> Ints:
    prefix, update = cut.sampled.labels["prefix"], cut.sampled.labels["update"]
    cache = np.where(prefix == 0, kernel.HIT, np.where(prefix == 1, kernel.MISS, 0))
    flight = np.where(update == 1, kernel.BEFORE, np.where(update == 2, kernel.AFTER, 0))
    labels: Ints = (cache + flight).astype(np.int64)
    return labels


def _plain(logprobs: NDArray[np.generic]) -> NDArray[np.float32]:
    """The logprobs as contiguous read-only float32: the loop is compiled for each type of array."""
    plain = np.ascontiguousarray(logprobs, np.float32).view()
    plain.flags.writeable = False
    return plain


def _column(batch: Batch, name: str) -> NDArray[np.float32]:
    return _plain(batch.arrays.get(name, np.zeros(0, np.float32)))


def _add(moments: Floats, place: int, figure: int, n: Iterable[float], s: Iterable[float]) -> None:
    """Add sequences with ``n`` tokens and a sum ``s`` each to a figure's six sums."""
    n_, s_ = np.asarray(n, np.float64), np.asarray(s, np.float64)
    moments[place, figure] += [n_.size, n_.sum(), s_.sum(), n_ @ n_, s_ @ s_, n_ @ s_]


def _add_contexts(batch: Batch, cut: BatchRuns, matched: Ints, right: NDArray[np.float32], moments: Floats) -> None:
    """Add d of matched tokens that occur earlier in their prompt or answer, and of the others."""
    runs = cut.sampled.runs
    left, old = batch.arrays["trainer_logprobs"], batch.arrays.get("old_logprobs")
    rows: dict[int, list[int]] = {}
    for number in np.flatnonzero(matched):
        rows.setdefault(int(runs.row[number]), []).append(int(number))
        if len(rows) > CONTEXT_ROWS:
            break
    spans = {span.token: span for span in batch.spans}
    begins = np.array(list(spans), np.int64)
    for row, numbers in list(rows.items())[:CONTEXT_ROWS]:
        ids, _, prompt = batch.row_of(row)
        whole = np.concatenate([prompt, ids]) if prompt.size else ids
        _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
        again = first[inverse] < np.arange(whole.size)
        sums = np.zeros((2, 2))
        for number in numbers:
            start, end = int(runs.start[number]), int(runs.end[number])
            span = spans[int(begins[np.searchsorted(begins, start, side="right") - 1])]
            upper = left if matched[number] == kernel.BY_LAG_0 or old is None else old
            with np.errstate(invalid="ignore"):
                d = upper[start:end].astype(np.float64) - right[start:end]
            at = prompt.size + span.start + start - span.token
            seen = again[at : at + end - start]
            for side, mask in enumerate((seen & np.isfinite(d), ~seen & np.isfinite(d))):
                sums[side] += (
                    np.count_nonzero(mask),
                    np.clip(d[mask], -kernel.CLAMP, kernel.CLAMP).sum(),
                )
        for side, figure in enumerate((FIGURE.repeated_d, FIGURE.new_d)):
            if sums[side, 0]:
                _add(moments, int(runs.engine[numbers[0]]), figure, [sums[side, 0]], [sums[side, 1]])


def _add_repeats(
    batch: Batch, cut: BatchRuns, kept: NDArray[np.bool_], rollout: NDArray[np.float32], sums: Floats
) -> None:
    """Compare logprobs after equal contexts, in the first tokens of rows of one prompt.

    Only those before a row's first masked token: what follows a tool's output depends on that output.
    """
    keys, grouped = cut.groups
    first = np.searchsorted(batch.token_rows, np.arange(batch.rows))
    sizes = _first_spans(batch)
    sizes[cut.sampled.runs.row[~kept]] = 0
    rows = np.flatnonzero(grouped & (sizes > 0))[:REPEAT_ROWS]
    if rows.size < 2:
        return
    place = np.zeros(batch.rows, np.int64)
    place[cut.sampled.runs.row] = cut.sampled.runs.engine
    ids = _trained_ids(batch)
    left, right = batch.arrays["trainer_logprobs"].astype(np.float64), rollout.astype(np.float64)
    _, same = np.unique(keys[rows], return_inverse=True)
    apart = same * len(sums) + place[rows]
    heats = _temperatures(batch)
    for at in range(REPEAT_TOKENS):
        going = (sizes[rows] > at) & (np.bincount(same)[same] > 1)
        rows, same, apart = rows[going], same[going], apart[going]
        if rows.size < 2:
            return
        token = first[rows] + at
        _, version = np.unique(cut.versions.version[token], return_inverse=True)
        apart = _renumbered(apart, version)
        here = np.zeros(rows.size, np.int64)
        _add_pairs(sums, SUM.pairs, here, same, ids[token], left[token], heats[token])
        _add_pairs(sums, SUM.engine_pairs, place[rows], apart, ids[token], right[token], heats[token])
        same, apart = _renumbered(same, ids[token]), _renumbered(apart, ids[token])
        _add_spread(sums, SUM.repeat, here, same, left[token])
        _add_spread(sums, SUM.engine_repeat, place[rows], apart, right[token])


def _first_spans(batch: Batch) -> Ints:
    """Tokens of each row's first span [rows]."""
    sizes = np.zeros(batch.rows, np.int64)
    for span in reversed(batch.spans):
        sizes[span.row] = span.end - span.start
    return sizes


def _renumbered(group: Ints, label: Ints) -> Ints:
    """Group numbers after splitting each group by a label."""
    _, label = np.unique(label, return_inverse=True)
    _, number = np.unique(group * (label.max() + 1) + label, return_inverse=True)
    return number


def _add_spread(sums: Floats, figure: int, place: Ints, group: Ints, values: Floats) -> None:
    """Add squared deviations from the group's mean, and their degrees of freedom; a group is within one place."""
    fine = np.isfinite(values)
    place, group, values = place[fine], group[fine], np.clip(values[fine], -100.0, 0.0)
    n = np.bincount(group)
    mean = np.bincount(group, values) / np.maximum(n, 1)
    more = n[group] > 1
    weights = (values - mean[group]) ** 2, 1 - 1 / n[group]
    for offset, weight in enumerate(weights):
        sums[:, figure + offset] += np.bincount(place[more], weight[more], len(sums))


def _add_pairs(sums: Floats, figure: int, place: Ints, group: Ints, ids: Ints, values: Floats, heats: Floats) -> None:
    """Add pairs of different tokens of each group (neighbours by id), and those whose logprobs differ by the grid."""
    order = np.lexsort((ids, group))
    place, group, ids, values, heats = place[order], group[order], ids[order], values[order], heats[order]
    fine = np.isfinite(values)
    pair = (group[1:] == group[:-1]) & (ids[1:] != ids[:-1]) & fine[1:] & fine[:-1]
    apart, where, heats = values[1:][pair] - values[:-1][pair], place[1:][pair], heats[1:][pair]
    logits = apart != 0  # else a filler, not two logits
    apart, where, heats = apart[logits], where[logits], heats[logits]
    sums[:, figure] += np.bincount(where, minlength=len(sums))
    for offset, factor in ((1, np.ones_like(apart)), (2, heats)):
        steps = apart * factor / GRID
        on = np.abs(steps - np.round(steps)) * GRID < GRID_ERROR
        sums[:, figure + offset] += np.bincount(where[on], minlength=len(sums))


def _temperatures(batch: Batch) -> Floats:
    """The temperature of each token [tokens]: the trainer's, or else the first one that an engine sampled at."""
    if (stated := batch.arrays.get("temperatures")) is not None:
        return stated.astype(np.float64)
    found = (hit.record.rollout.sampling.get("temperature") for hit in batch.hits if hit is not None)
    return np.full(batch.tokens, batch.body.temperature or next((heat for heat in found if heat), 1.0))


def _trained_ids(batch: Batch) -> Ints:
    mask = batch.arrays["row_mask"] != 0
    ids: Ints = batch.arrays["row_ids"][mask].astype(np.int64)
    return ids


def _add_requests(batch: Batch, cut: BatchRuns, moments: Floats, sums: Floats, extremes: Floats) -> None:
    times: dict[int, list[tuple[float, float]]] = {}
    number = {name: place for place, name in enumerate(cut.names)}
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is None:
            sums[0, SUM.unsampled] += span.end - span.start
            continue
        if hit.offset:
            continue
        rollout, place = hit.record.rollout, number[hit.record.engine]
        sums[place, SUM.requests] += 1
        sums[place, SUM.aborted] += rollout.finish_reason == "abort"
        sums[place, SUM.failed] += rollout.finish_reason == "error"
        sums[place, SUM.truncated] += rollout.finish_reason == "length"
        if rollout.finish_reason != "abort" and 0 < rollout.scheduled <= rollout.finished and rollout.size:
            times.setdefault(place, []).append((rollout.size, rollout.finished - rollout.scheduled))
    for place, of_place in times.items():
        n, s = zip(*of_place, strict=True)
        _add(moments, place, FIGURE.token_time, n, s)
        extremes[place, EXTREME.token_time] = min(seconds / size for size, seconds in of_place)


def _add_rows(batch: Batch, cut: BatchRuns, moments: Floats, sums: Floats) -> None:
    sums[:, SUM.rows] += np.bincount(cut.row_engines, minlength=len(sums))
    rewards = batch.arrays.get("rewards")
    if rewards is None:
        return
    fine = np.isfinite(rewards)
    for place in range(len(sums)):
        reward = rewards[fine & (cut.row_engines == place)].astype(np.float64)
        if reward.size:
            _add(moments, place, FIGURE.reward, np.ones(reward.size), reward)
