"""What tests are computed from: sums over the tokens of one engine in one step, that add up. Pure.

For each figure the six sums over sequences (1, n, s, n n, s s, n s) that give a mean with an interval that takes whole
sequences as the independent units. All are of tokens as they were sampled, before any filter: a filter by reward or
length would break what the tests rely on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltop.backend.evidence import kernel
from rltop.backend.join.batch import Batch
from rltop.backend.measure.measure import BatchRuns
from rltop.backend.summary.dimensions import LAG, OFFSET
from rltop.backend.summary.kernel import FIGURE
from rltop.backend.summary.strata import Strata
from rltop.backend.summary.token_runs import POSITION_EDGES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Figures beside those of the loop: d of matched tokens that stand in their context already, and of those that do not;
# seconds a token took, by request; the row's reward.
SEEN, UNSEEN, TOKEN_TIME, REWARD = range(kernel.FIGURES, kernel.FIGURES + 4)
FIGURES = kernel.FIGURES + 4

# Sums beside those of the loop: squares and degrees of freedom of logprobs of equal tokens after equal contexts, the
# trainer's and the engine's; pairs of different tokens after equal contexts, and those whose logprobs are apart by a
# multiple of GRID, as they are and times the temperature; requests, and how they ended; trained tokens that no
# rollout has.
(
    REPEAT, REPEAT_FREE, ENGINE_REPEAT, ENGINE_REPEAT_FREE, PAIRS, ON_GRID, ON_GRID_T, ENGINE_PAIRS, ENGINE_ON_GRID,
    ENGINE_ON_GRID_T, REQUESTS, ABORTED, FAILED, TRUNCATED, UNSAMPLED, ROWS,
) = range(kernel.SUMS, kernel.SUMS + 16)  # fmt: skip
SUMS = kernel.SUMS + 16

GRID, GRID_ERROR = 2.0**-8, 1e-5
"""Logits in bfloat16 from 0.5 on are multiples of this, so logprobs at one position differ by multiples; and how far
float32 may be off: of logprobs in float32 one pair in 200 is on the grid by chance."""

BINS = POSITION_EDGES.size
LAGS = len(LAG.strata)

_SHAPES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("moments", (FIGURES, kernel.MOMENTS)),
    ("sums", (SUMS,)),
    ("extremes", (3,)),
    ("aligned", (len(kernel.SHIFTS), 2)),
    ("profile", (BINS, 3)),
    ("lags", (LAGS, kernel.MOMENTS)),
)
SIZE = sum(math.prod(shape) for _, shape in _SHAPES)
"""Numbers in one ``Evidence``."""

CONTEXT_ROWS = 64
"""Rows of a batch of which contexts are looked through for repeated tokens: that costs some 20 us a row."""

REPEAT_ROWS, REPEAT_TOKENS = 1024, 8
"""Rows of a batch, and first tokens of each, that are looked through for equal contexts."""


class ClusteredMean(NamedTuple):
    """A mean over tokens and its variance, with sequences as the independent units."""

    mean: float
    variance: float
    sequences: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Of one engine's tokens in one step, or in several.

    Attributes:
        moments: [FIGURES, 6], as ``loop`` and this module name the figures.
        sums: [SUMS], likewise. extremes: least and greatest matched d, and the least seconds a token
            took, by request.
        aligned: [SHIFTS, 2], tokens and the sum of ``|trainer - record displaced|``.
        profile: [position bins, 3], of matched tokens: how many, the sums of d d (held to 1) and of 1 - p.
        lags: [lag strata, 6], moments of k3 by lag.
    """

    moments: Floats = field(default_factory=lambda: np.zeros((FIGURES, kernel.MOMENTS)))
    sums: Floats = field(default_factory=lambda: np.zeros(SUMS))
    extremes: Floats = field(default_factory=lambda: np.array([math.inf, -math.inf, math.inf]))
    aligned: Floats = field(default_factory=lambda: np.zeros((len(kernel.SHIFTS), 2)))
    profile: Floats = field(default_factory=lambda: np.zeros((BINS, 3)))
    lags: Floats = field(default_factory=lambda: np.zeros((LAGS, kernel.MOMENTS)))

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.moments + other.moments,
            self.sums + other.sums,
            np.array([
                min(self.extremes[0], other.extremes[0]), max(self.extremes[1], other.extremes[1]),
                min(self.extremes[2], other.extremes[2]),
            ]),
            self.aligned + other.aligned,
            self.profile + other.profile,
            self.lags + other.lags,
        )  # fmt: skip

    @property
    def told(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.sums.any())

    def mean(self, figure: int) -> ClusteredMean | None:
        """Mean of a figure (ratio estimator); None of nothing. With one sequence the variance is infinite."""
        m, n, s, nn, ss, ns = map(float, self.moments[figure])
        return mean_of(m, n, s, nn, ss, ns)

    def to_bytes(self) -> bytes:
        """As float32."""
        parts = [np.asarray(getattr(self, name)).ravel() for name, _ in _SHAPES]
        return bytes(np.concatenate(parts).astype("<f4").tobytes())

    @classmethod
    def from_bytes(cls, packed: bytes) -> Evidence:
        """Raises ``ValueError`` if it is of another version."""
        numbers = np.frombuffer(packed, "<f4").astype(np.float64)
        if numbers.size != SIZE:
            raise ValueError(f"evidence of {numbers.size} numbers; this version keeps {SIZE}")
        parts, at = {}, 0
        for name, shape in _SHAPES:
            size = math.prod(shape)
            parts[name] = numbers[at : at + size].reshape(shape)
            at += size
        return cls(**parts)


def mean_of(m: float, n: float, s: float, nn: float, ss: float, ns: float) -> ClusteredMean | None:
    """Of six sums over sequences."""
    if not n:
        return None
    mean = s / n
    if m < 2:
        return ClusteredMean(mean, math.inf, int(m), int(n))
    variance = max(ss - 2 * mean * ns + mean * mean * nn, 0.0) / n**2 * m / (m - 1)
    return ClusteredMean(mean, variance, int(m), int(n))


def of(batch: Batch, cut: BatchRuns) -> dict[str, Evidence]:
    """The batch's evidence by engine (empty: not known), without what ``with_lags`` adds."""
    if batch.body.update or not batch.tokens:
        return {}
    places = len(cut.names)
    found = [Evidence() for _ in range(places)]
    moments = np.zeros((places, FIGURES, kernel.MOMENTS))
    sums = np.zeros((places, SUMS))
    own_moments, own_sums = (
        np.zeros((places, kernel.FIGURES, kernel.MOMENTS)),
        np.zeros((places, kernel.SUMS)),
    )
    extremes = np.tile(np.array([math.inf, -math.inf, math.inf]), (places, 1))
    aligned = np.zeros((places, len(kernel.SHIFTS), 2))
    profile = np.zeros((places, BINS, 3))
    pieces = cut.pieces
    begins = np.array([span.token for span in batch.spans], np.int64)
    sizes = np.array([span.end - span.start for span in batch.spans], np.int64)
    span = np.searchsorted(begins, pieces.start, side="right") - 1
    kinds, lags = _kinds(batch, cut)
    labels = _labels(cut)
    kernel.compiled()(
        _plain(batch.arrays["trainer_logprobs"]), _plain(batch.arrays["rollout_logprobs"]),
        _column(batch, "old_logprobs"), _column(batch, "entropy"),
        pieces.start, pieces.end, begins[span], begins[span] + sizes[span], kinds[pieces.run], labels[pieces.run],
        lags[pieces.run], pieces.position, pieces.engine, pieces.group, own_moments, own_sums, extremes, aligned,
        profile,
    )  # fmt: skip
    moments[:, : kernel.FIGURES], sums[:, : kernel.SUMS] = own_moments, own_sums
    _add_contexts(batch, cut, kinds, moments)
    _add_repeats(batch, cut, sums)
    _add_requests(batch, cut, moments, sums, extremes)
    _add_rows(batch, cut, moments, sums)
    for place in range(places):
        found[place] = Evidence(moments[place], sums[place], extremes[place], aligned[place], profile[place])
    return dict(zip(cut.names, found, strict=True))


def with_lags(evidence: Evidence, strata: Strata) -> Evidence:
    """The same, with k3 by lag as the summaries have it."""
    first = OFFSET[LAG.name]
    lags = strata.moments[first : first + LAGS, FIGURE.k3]
    return Evidence(evidence.moments, evidence.sums, evidence.extremes, evidence.aligned, evidence.profile, lags)


def _kinds(batch: Batch, cut: BatchRuns) -> tuple[Ints, Floats]:
    """Of each run: by what it is matched, and its lag."""
    runs, now = cut.sampled, batch.body.policy_version
    kinds = np.where(runs.matched, kernel.OLD, 0)
    lags = np.full(runs.version.size, np.nan)
    if now is not None:
        kinds = np.where((kinds == 0) & runs.known & (runs.version == now), kernel.FRESH, kinds)
        lags = np.where(runs.known, now - runs.version, np.nan)
    return kinds.astype(np.int64), lags.astype(np.float64)


def _labels(cut: BatchRuns) -> Ints:
    prefix, update = cut.sampled.labels["prefix"], cut.sampled.labels["update"]
    cache = np.where(prefix == 0, kernel.HIT, np.where(prefix == 1, kernel.MISS, 0))
    flight = np.where(update == 1, kernel.BEFORE, np.where(update == 2, kernel.AFTER, 0))
    labels: Ints = (cache + flight).astype(np.int64)
    return labels


def _plain(logprobs: NDArray[np.generic]) -> NDArray[np.float32]:
    """float32, in one stretch and read-only: for each type of array the loop is compiled anew."""
    plain = np.ascontiguousarray(logprobs, np.float32).view()
    plain.flags.writeable = False
    return plain


def _column(batch: Batch, name: str) -> NDArray[np.float32]:
    return _plain(batch.arrays.get(name, np.zeros(0, np.float32)))


def _add(moments: Floats, place: int, figure: int, n: Iterable[float], s: Iterable[float]) -> None:
    """Add sequences with ``n`` tokens and a sum ``s`` each to a figure's six sums."""
    n_, s_ = np.asarray(n, np.float64), np.asarray(s, np.float64)
    moments[place, figure] += [n_.size, n_.sum(), s_.sum(), n_ @ n_, s_ @ s_, n_ @ s_]


def _add_contexts(batch: Batch, cut: BatchRuns, kinds: Ints, moments: Floats) -> None:
    """D of matched tokens that stand in their prompt or answer already, against that of the others."""
    runs = cut.sampled.runs
    left, right, old = (
        batch.arrays["trainer_logprobs"],
        batch.arrays["rollout_logprobs"],
        batch.arrays.get("old_logprobs"),
    )
    rows: dict[int, list[int]] = {}
    for number in np.flatnonzero(kinds):
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
            upper = left if kinds[number] == kernel.FRESH or old is None else old
            with np.errstate(invalid="ignore"):
                d = upper[start:end].astype(np.float64) - right[start:end]
            at = prompt.size + span.start + start - span.token
            seen = again[at : at + end - start]
            for side, mask in enumerate((seen & np.isfinite(d), ~seen & np.isfinite(d))):
                sums[side] += (
                    np.count_nonzero(mask),
                    np.clip(d[mask], -kernel.CLAMP, kernel.CLAMP).sum(),
                )
        for side, figure in enumerate((SEEN, UNSEEN)):
            if sums[side, 0]:
                _add(moments, int(runs.engine[numbers[0]]), figure, [sums[side, 0]], [sums[side, 1]])


def _add_repeats(batch: Batch, cut: BatchRuns, sums: Floats) -> None:
    """How far logprobs of equal tokens after equal contexts are apart: rows of one prompt begin alike."""
    keys, grouped = cut.groups
    first = np.searchsorted(batch.token_rows, np.arange(batch.rows))
    sizes = np.bincount(batch.token_rows, minlength=batch.rows)
    rows = np.flatnonzero(grouped & (sizes > 0))[:REPEAT_ROWS]
    if rows.size < 2:
        return
    place = np.zeros(batch.rows, np.int64)
    place[cut.sampled.runs.row] = cut.sampled.runs.engine
    ids = _trained_ids(batch)
    left, right = (batch.arrays[name].astype(np.float64) for name in ("trainer_logprobs", "rollout_logprobs"))
    _, same = np.unique(keys[rows], return_inverse=True)
    apart = same * len(sums) + place[rows]
    heat = batch.body.temperature or _temperature(batch)
    for at in range(REPEAT_TOKENS):
        going = (sizes[rows] > at) & (np.bincount(same)[same] > 1)
        rows, same, apart = rows[going], same[going], apart[going]
        if rows.size < 2:
            return
        token = first[rows] + at
        _, version = np.unique(cut.versions[token], return_inverse=True)
        apart = _renumbered(apart, version)
        here = np.zeros(rows.size, np.int64)
        _add_pairs(sums, PAIRS, here, same, ids[token], left[token], heat)
        _add_pairs(sums, ENGINE_PAIRS, place[rows], apart, ids[token], right[token], heat)
        same, apart = _renumbered(same, ids[token]), _renumbered(apart, ids[token])
        _add_spread(sums, REPEAT, here, same, left[token])
        _add_spread(sums, ENGINE_REPEAT, place[rows], apart, right[token])


def _renumbered(group: Ints, label: Ints) -> Ints:
    """Numbers of the groups that are left when each is told apart by a label, too."""
    _, label = np.unique(label, return_inverse=True)
    _, number = np.unique(group * (label.max() + 1) + label, return_inverse=True)
    return number


def _add_spread(sums: Floats, figure: int, place: Ints, group: Ints, values: Floats) -> None:
    """Squares about the group's mean, and their degrees of freedom; ``group`` lies within one place."""
    fine = np.isfinite(values)
    place, group, values = place[fine], group[fine], np.clip(values[fine], -100.0, 0.0)
    n = np.bincount(group)
    mean = np.bincount(group, values) / np.maximum(n, 1)
    more = n[group] > 1
    weights = (values - mean[group]) ** 2, 1 - 1 / n[group]
    for offset, weight in enumerate(weights):
        sums[:, figure + offset] += np.bincount(place[more], weight[more], len(sums))


def _add_pairs(sums: Floats, figure: int, place: Ints, group: Ints, ids: Ints, values: Floats, heat: float) -> None:
    """Of each context with different tokens: how many neighbours, by id, there are, and how many differ by the grid."""
    order = np.lexsort((ids, group))
    place, group, ids, values = place[order], group[order], ids[order], values[order]
    fine = np.isfinite(values)
    pair = (group[1:] == group[:-1]) & (ids[1:] != ids[:-1]) & fine[1:] & fine[:-1]
    apart, where = values[1:][pair] - values[:-1][pair], place[1:][pair]
    apart, where = apart[apart != 0], where[apart != 0]  # a filler, not two logits
    sums[:, figure] += np.bincount(where, minlength=len(sums))
    for offset, factor in ((1, 1.0), (2, heat)):
        steps = apart * factor / GRID
        on = np.abs(steps - np.round(steps)) * GRID < GRID_ERROR
        sums[:, figure + offset] += np.bincount(where[on], minlength=len(sums))


def _temperature(batch: Batch) -> float:
    found = (hit.record.rollout.sampling.get("temperature") for hit in batch.hits if hit is not None)
    return next((heat for heat in found if heat), 1.0)


def _trained_ids(batch: Batch) -> Ints:
    mask = batch.arrays["row_mask"] != 0
    ids: Ints = batch.arrays["row_ids"][mask].astype(np.int64)
    return ids


def _add_requests(batch: Batch, cut: BatchRuns, moments: Floats, sums: Floats, extremes: Floats) -> None:
    times: dict[int, list[tuple[float, float]]] = {}
    number = {name: place for place, name in enumerate(cut.names)}
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is None:
            sums[0, UNSAMPLED] += span.end - span.start
            continue
        if hit.offset:
            continue
        rollout, place = hit.record.rollout, number[hit.record.engine]
        sums[place, REQUESTS] += 1
        sums[place, ABORTED] += rollout.finish_reason == "abort"
        sums[place, FAILED] += rollout.finish_reason == "error"
        sums[place, TRUNCATED] += rollout.finish_reason == "length"
        if rollout.finish_reason != "abort" and 0 < rollout.scheduled <= rollout.finished and rollout.size:
            times.setdefault(place, []).append((rollout.size, rollout.finished - rollout.scheduled))
    for place, of_place in times.items():
        n, s = zip(*of_place, strict=True)
        _add(moments, place, TOKEN_TIME, n, s)
        extremes[place, 2] = min(seconds / size for size, seconds in of_place)


def _add_rows(batch: Batch, cut: BatchRuns, moments: Floats, sums: Floats) -> None:
    sums[:, ROWS] += np.bincount(cut.row_engines, minlength=len(sums))
    rewards = batch.arrays.get("rewards")
    if rewards is None:
        return
    fine = np.isfinite(rewards)
    for place in range(len(sums)):
        reward = rewards[fine & (cut.row_engines == place)].astype(np.float64)
        if reward.size:
            _add(moments, place, REWARD, np.ones(reward.size), reward)
