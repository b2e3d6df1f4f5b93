"""Computes the summaries of a joined batch, one per engine. Pure, vectorised over tokens."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join import copies, violations
from rltop.backend.join.batch import Batch
from rltop.backend.join.records import prompt_key
from rltop.backend.join.versions import TokenVersions, token_versions
from rltop.backend.measure.repetition import ends_in_repetition
from rltop.backend.measure.sampling_runs import SampledRuns, mean_advantages, sampled_runs
from rltop.backend.summary import CLAMP, Bounds, Floats, Ints, Regression, Sizes, Spread, Strata, Summary
from rltop.backend.summary.engine_summary import ADVANTAGE
from rltop.backend.summary.environments import Environments
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.kernel import RUN
from rltop.backend.summary.sequences import SequenceSummary, by_sequence
from rltop.backend.summary.token_runs import Pieces, Reduced, cut, reduce
from rltop.collectors.contract import wire

__all__ = ["UNKNOWN_ENGINE", "BatchRuns", "by_row", "clips", "measure"]

UNKNOWN_ENGINE = ""
"""Key of tokens whose engine is not known, and of rows that several engines generated."""


class BatchRuns:
    """A batch split into runs of tokens that were sampled under the same conditions; costly parts are computed lazily.

    Attributes:
        names: engines by number; number 0 is ``UNKNOWN_ENGINE``.
        token_engines, row_engines: engine number of each token [tokens] and row [rows].
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.names = [UNKNOWN_ENGINE, *sorted({hit.record.engine for hit in batch.hits if hit is not None})]
        number = {name: i for i, name in enumerate(self.names)}
        self._span_engines = np.array([number[hit.record.engine] if hit else 0 for hit in batch.hits], np.int64)
        lengths = np.array([span.end - span.start for span in batch.spans], np.int64)
        self.token_engines = np.repeat(self._span_engines, lengths)
        self.row_engines = _row_engines(batch, self._span_engines)

    @functools.cached_property
    def versions(self) -> TokenVersions:
        """Policy version that sampled each token."""
        return token_versions(self._batch)

    @functools.cached_property
    def sampled(self) -> SampledRuns:
        """Runs of tokens that were sampled under the same conditions."""
        return sampled_runs(self._batch, self._span_engines, len(self.names), self.versions.version)

    @functools.cached_property
    def pieces(self) -> Pieces:
        """The runs, split at the edges of position bins."""
        return cut(self.sampled.runs)

    @functools.cached_property
    def copies(self) -> dict[int, str]:
        """Kind of the trainer's copy of each joined span's logprobs."""
        return copies.of_spans(self._batch)

    @functools.cached_property
    def prompts(self) -> dict[int, str]:
        """How the prompts of spans differ from their engine's, for those that do."""
        return violations.prompts(self._batch)

    @functools.cached_property
    def groups(self) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Key of each row's prompt group [rows], and whether it has one [rows]."""
        return _groups(self._batch)


def measure(batch: Batch, runs: BatchRuns | None = None, *, ids_known: bool = True) -> dict[str, Summary]:
    """Summaries of the batch by engine; their sum is that of the batch.

    Updates after the step's first give only clip rates.

    Args:
        batch: joined rows.
        runs: of the batch, if already computed.
        ids_known: false if the batch's token ids are placeholders.
    """
    runs = runs or BatchRuns(batch)
    parts = [Summary() for _ in runs.names]
    _add_clips(batch, parts, runs.token_engines, runs.row_engines)
    if batch.is_first:
        sampled, pieces = runs.sampled, runs.pieces
        reduced = reduce(batch.arrays["trainer_logprobs"], batch.arrays["rollout_logprobs"], pieces)
        for part, gap, strata in zip(parts, reduced.gaps, Strata.of(reduced, pieces, sampled.labels), strict=True):
            part.gap, part.strata, part.tokens = gap, strata, gap.tokens
        _add_matched(batch, parts, sampled, pieces)
        _add_lags(batch, parts, sampled, pieces, reduced)
        _add_inferred(batch, parts, runs)
        _add_means(batch, parts, runs.token_engines)
        _add_spans(batch, parts, runs.row_engines, runs.versions.version)
        sums, sizes = by_sequence(reduced, pieces, batch.rows)
        _add_rows(batch, parts, runs, sums, sizes)
        _add_weights(batch, parts, runs)
        if ids_known:
            _add_repetitions(batch, parts, runs.row_engines, sizes)
        _add_requests(batch, parts, {name: i for i, name in enumerate(runs.names)})
    return dict(zip(runs.names, parts, strict=True))


def _row_engines(batch: Batch, span_engines: NDArray[np.int64]) -> NDArray[np.int64]:
    """The engine that generated each row [rows]; 0 (unknown) if there is none or more than one."""
    engines = np.zeros(batch.rows, np.int64)
    seen: set[int] = set()
    for span, engine in zip(batch.spans, span_engines, strict=True):
        if span.row in seen and engines[span.row] != engine:
            engine = 0
        seen.add(span.row)
        engines[span.row] = engine
    return engines


def _minus(left: NDArray[np.float32], right: NDArray[np.float32]) -> Floats:
    with np.errstate(invalid="ignore"):  # inf - inf gives NaN, which is counted as invalid later
        return left.astype(np.float64) - right


def _add_matched(batch: Batch, parts: list[Summary], sampled: SampledRuns, pieces: Pieces) -> None:
    """The version-matched gap, and the other parts of the three-way split."""
    trainer, rollout = batch.arrays["trainer_logprobs"], batch.arrays["rollout_logprobs"]
    old, now = batch.arrays.get("old_logprobs"), batch.body.policy_version
    if batch.body.update:  # the weights have changed since the rollouts, even if their version has not
        now = None
    matched: tuple[Reduced, Pieces] | None = None
    if now is not None:
        lag0 = pieces.select((sampled.known & (sampled.version == now))[pieces.run])
        matched = reduce(trainer, rollout, lag0), lag0
        for part, gap in zip(parts, matched[0].gaps, strict=True):
            part.lag0 = gap
    if old is not None:
        chosen = sampled.matched[pieces.run]
        backend = pieces.select(chosen)
        of_backend, of_stale = reduce(old, rollout, backend), reduce(old, rollout, pieces.select(~chosen))
        of_update = reduce(trainer, old, pieces)
        for part, *gaps in zip(parts, of_backend.gaps, of_stale.gaps, of_update.gaps, strict=True):
            part.backend, part.stale, part.update = gaps
        if any(gap.n for gap in of_backend.gaps):
            matched = of_backend, backend
    if matched is not None:
        for part, strata in zip(parts, Strata.of(*matched, sampled.labels), strict=True):
            part.matched = strata


def _add_lags(batch: Batch, parts: list[Summary], sampled: SampledRuns, pieces: Pieces, reduced: Reduced) -> None:
    if batch.body.policy_version is None:
        return
    lags = batch.lags(sampled.version)
    sizes = sampled.runs.end - sampled.runs.start
    known = sampled.known[pieces.run]
    lag, n, k3 = lags[pieces.run] * 1.0, reduced.sums[:, RUN.n] * known, reduced.sums[:, RUN.k3] * known
    groups = pieces.group_engine.size
    columns = [np.bincount(pieces.group, x, groups) for x in (n, n * lag, n * lag * lag, k3, k3 * lag)]
    sums = np.stack(columns, axis=1)
    for engine, part in enumerate(parts):
        here = sampled.known & (sampled.runs.engine == engine)
        part.lag_expected = part.tokens
        part.lag = Spread.of(lags[here], sizes[here])
        part.lags = Sizes.of(lags[here], sizes[here])
        part.lag_regression = Regression.of(sums[pieces.group_engine == engine])


def _add_inferred(batch: Batch, parts: list[Summary], runs: BatchRuns) -> None:
    if batch.body.policy_version is None:
        return
    counts = np.bincount(runs.token_engines[runs.versions.inferred], minlength=len(parts))
    for part, count in zip(parts, counts, strict=True):
        part.lag_inferred = int(count)


def _add_means(batch: Batch, parts: list[Summary], engines: Ints) -> None:
    arrays = batch.arrays
    if (entropy := arrays.get("entropy")) is not None:
        for engine, part in enumerate(parts):
            part.entropy = Spread.of(entropy[engines == engine])
    if (advantages := arrays.get("advantages")) is not None:
        d = _minus(arrays["trainer_logprobs"], arrays["rollout_logprobs"])
        valid = np.isfinite(d) & np.isfinite(advantages)
        d, advantage, engine_of = d[valid], advantages[valid].astype(np.float64), engines[valid]
        size = np.abs(advantage)
        columns = {
            ADVANTAGE.n: np.ones_like(d), ADVANTAGE.d: advantage * d, ADVANTAGE.abs_d: size * np.abs(d),
            ADVANTAGE.size: size, ADVANTAGE.negative: advantage < 0, ADVANTAGE.positive: advantage > 0,
        }  # fmt: skip
        for column, values in columns.items():
            for part, total in zip(parts, np.bincount(engine_of, values, len(parts)), strict=True):
                part.advantage[column] = total


def _add_spans(batch: Batch, parts: list[Summary], engines: NDArray[np.int64], versions: NDArray[np.int64]) -> None:
    known = versions != wire.UNKNOWN_VERSION
    rows, labels = batch.token_rows[known], versions[known]
    changes = (labels[1:] != labels[:-1]) & (rows[1:] == rows[:-1])
    versioned = np.bincount(rows, minlength=batch.rows) > 0
    spans = 1 + np.bincount(rows[1:][changes], minlength=batch.rows)
    for engine, part in enumerate(parts):
        own = spans[(engines == engine) & versioned]
        part.versions = Spread.of(own)
        part.spanning = int(np.count_nonzero(own > 1))


def _add_rows(batch: Batch, parts: list[Summary], runs: BatchRuns, sums: Floats, lengths: Ints) -> None:
    engines, (keys, grouped) = runs.row_engines, runs.groups
    rewards = batch.arrays.get("rewards")
    reward = np.full(batch.rows, np.nan) if rewards is None else rewards.astype(np.float64)
    joined = np.array([batch.is_joined(row) for row in range(batch.rows)], bool)
    advantage = mean_advantages(batch)
    for engine, part in enumerate(parts):
        here = engines == engine
        part.sequences = int(np.count_nonzero(here))
        part.joined = int(np.count_nonzero(here & joined))
        part.reward = Spread.of(reward[here])
        trained = here & (lengths > 0)
        part.per_sequence = SequenceSummary.of(sums[trained], lengths[trained], advantage[trained], reward[trained])
        of_group = here & grouped
        part.groups = Groups.of(keys[of_group], sums[of_group], reward[of_group])
        if names := batch.body.environments:
            part.environments = Environments.of([names[row] for row in np.flatnonzero(here)], sums[here])
    parts[0].joinable = batch.joinable - sum(part.joined for part in parts)
    for part in parts:
        part.joinable += part.joined


def _add_repetitions(batch: Batch, parts: list[Summary], engines: Ints, lengths: Ints) -> None:
    repetitive = ends_in_repetition(batch.arrays["row_ids"][batch.arrays["row_mask"] != 0], lengths)
    for engine, part in enumerate(parts):
        here = (engines == engine) & (lengths > 0)
        part.repetition_checked = int(np.count_nonzero(here))
        part.repetitive = int(np.count_nonzero(here & repetitive))


def _add_weights(batch: Batch, parts: list[Summary], runs: BatchRuns) -> None:
    """The factors of the loss, and the tokens and sequences that they leave out."""
    if (weights := batch.arrays.get("weights")) is None:
        return
    cut = np.where(np.isnan(weights), np.nan, weights == 0)
    outside = np.where(np.bincount(batch.token_rows, minlength=batch.rows) > 0, 1.0 - rows_in_loss(batch), np.nan)
    for engine, part in enumerate(parts):
        here = runs.token_engines == engine
        part.weights, part.cut = Spread.of(weights[here]), Spread.of(cut[here])
        part.cut_sequences = Spread.of(outside[runs.row_engines == engine])


def in_loss(batch: Batch) -> NDArray[np.bool_]:
    """Whether each token is in the loss [tokens]: its weight is not 0."""
    weights = batch.arrays.get("weights")
    return np.ones(batch.tokens, bool) if weights is None else weights != 0


def rows_in_loss(batch: Batch) -> NDArray[np.bool_]:
    """Whether any token of each row is in the loss [rows]."""
    return np.bincount(batch.token_rows[in_loss(batch)], minlength=batch.rows) > 0


def _groups(batch: Batch) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Key of each row's prompt group [rows], and whether it has one: a hash of its prompt."""
    keys = np.zeros(batch.rows, np.uint64)
    known = np.zeros(batch.rows, bool)
    arrays = batch.arrays
    edges = np.concatenate([[0], np.cumsum(arrays["row_sizes"], dtype=np.int64)])
    prompt_edges = np.concatenate([[0], np.cumsum(arrays.get("prompt_sizes", np.zeros(0)), dtype=np.int64)])
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if known[span.row]:
            continue
        known[span.row] = True
        if hit is not None:
            key = hit.record.prompt
        else:
            before = arrays["row_ids"][edges[span.row] : edges[span.row] + span.start]
            if "prompt_ids" in arrays:
                prompt = arrays["prompt_ids"][prompt_edges[span.row] : prompt_edges[span.row + 1]]
                before = np.concatenate([prompt, before])
            known[span.row] = before.size > 0
            key = prompt_key(before)
        keys[span.row] = int.from_bytes(key[:8], "little")
    return keys, known


def _add_requests(batch: Batch, parts: list[Summary], number: dict[str, int]) -> None:
    for hit in batch.hits:
        if hit is None or hit.offset:  # a later part of a request that was counted at its start
            continue
        part, rollout = parts[number[hit.record.engine]], hit.record.rollout
        part.requests += 1
        part.aborted += rollout.finish_reason == "abort"
        part.failed += rollout.finish_reason == "error"
        part.truncated += rollout.finish_reason == "length"
        cached = 0 if rollout.lookup_off else rollout.cached_tokens
        if cached is not None:
            part.cached += Spread(rollout.prompt_size, float(cached))


def _add_clips(
    batch: Batch, parts: list[Summary], token_engines: NDArray[np.int64], row_engines: NDArray[np.int64]
) -> None:
    low, high = _clips_of_all(batch)
    bounds = Bounds(batch.body.clip_low, batch.body.clip_high, by_row(batch))
    if _ratio_base(batch) is batch.arrays["trainer_logprobs"]:
        bounds = Bounds()  # no noise is clipped
    engines = row_engines if by_row(batch) else token_engines
    unclipped, sizes = _unclipped(batch, low, high)
    counted = rows_in_loss(batch) if by_row(batch) else in_loss(batch)
    for engine, part in enumerate(parts):
        here = engines == engine
        used = here & counted
        part.clip_low, part.clip_high, part.bounds = Spread.of(low[used]), Spread.of(high[used]), bounds
        part.unclipped = Spread.of(unclipped[here], sizes[here])


def _unclipped(batch: Batch, low: Floats, high: Floats) -> tuple[Floats, Ints]:
    """Share of tokens that are in the loss and clipped on neither side, NaN if unknown, and of how many tokens.

    Per token, or per row.
    """
    kept = in_loss(batch)
    unclipped = 1.0 - np.fmax(low, high)  # on either side; a side without a bound has only NaN
    if not by_row(batch):
        return kept * unclipped, np.ones(batch.tokens, np.int64)
    counts = np.bincount(batch.token_rows, minlength=batch.rows)
    return np.bincount(batch.token_rows, kept, batch.rows) / np.maximum(counts, 1) * unclipped, counts


def by_row(batch: Batch) -> bool:
    """Whether clips are counted per sequence rather than per token."""
    return batch.body.objective == "gspo" and "clipped" not in batch.arrays


def clips(batch: Batch) -> tuple[Floats, Floats]:
    """Low and high clips: 1 clipped, 0 not, NaN not counted. [tokens], for GSPO without an explicit mask [rows].

    Tokens that are not in the loss are not counted, nor for GSPO sequences without a token in the loss.
    """
    low, high = _clips_of_all(batch)
    outside = ~(rows_in_loss(batch) if by_row(batch) else in_loss(batch))
    low[outside] = high[outside] = np.nan
    return low, high


def _clips_of_all(batch: Batch) -> tuple[Floats, Floats]:
    """``clips``, whether in the loss or not.

    GSPO compares exp(mean d) over a sequence's valid tokens with the bounds, and uses the sign of their mean advantage.
    """
    arrays, body = batch.arrays, batch.body
    base, advantages = _ratio_base(batch), arrays.get("advantages")
    if base is None and "clipped" in arrays:
        base = arrays["rollout_logprobs"]  # used only for validity, and for the side if there are no advantages
    if base is arrays["trainer_logprobs"] and advantages is None:
        advantages = np.zeros(batch.tokens, np.float32)  # a ratio of 1 is clipped on neither side
    size = batch.rows if by_row(batch) else batch.tokens
    not_counted = np.full(size, np.nan)
    if base is None or (advantages is None and "clipped" not in arrays):
        return not_counted, not_counted.copy()
    d = _minus(arrays["trainer_logprobs"], base)
    d[~np.isfinite(d)] = np.nan
    if "clipped" in arrays:
        return _clips_of_mask(arrays["clipped"] != 0, d, advantages)
    advantage = np.asarray(advantages, np.float64)
    if by_row(batch):
        d, advantage = _row_means(batch, d, advantage)
    counted = np.isfinite(d) & np.isfinite(advantage)
    ratio = np.exp(np.clip(d, -CLAMP, CLAMP))
    low, high = not_counted.copy(), not_counted.copy()
    if body.clip_low is not None:
        low[counted] = ((advantage < 0) & (ratio < body.clip_low))[counted]
    if body.clip_high is not None:
        high[counted] = ((advantage > 0) & (ratio > body.clip_high))[counted]
    return low, high


def _ratio_base(batch: Batch) -> NDArray[np.float32] | None:
    """The logprobs in the denominator of the ratio [tokens]; None if they are not known."""
    base, arrays = batch.body.ratio_base, batch.arrays
    if base == "old" and "old_logprobs" not in arrays and batch.body.update == 0:
        base = "current"  # the trainer uses its own logprobs of the first update as the old ones
    name = {"old": "old_logprobs", "current": "trainer_logprobs"}.get(base, "rollout_logprobs")
    return arrays.get(name)


def _clips_of_mask(mask: NDArray[np.bool_], d: Floats, advantages: NDArray[np.float32] | None) -> tuple[Floats, Floats]:
    """Clips of an explicit mask, which has no sides: the side is the sign of the advantage, else of d."""
    side = np.where(d < 0, -1.0, 1.0)
    if advantages is not None:
        nonzero = np.isfinite(advantages) & (advantages != 0)
        side[nonzero] = np.sign(advantages[nonzero])
    low, high = (mask & (side < 0)).astype(np.float64), (mask & (side > 0)).astype(np.float64)
    low[np.isnan(d)] = high[np.isnan(d)] = np.nan
    return low, high


def _row_means(batch: Batch, d: Floats, advantage: Floats) -> tuple[Floats, Floats]:
    """Means over the tokens of each row that have a finite d; NaN for a row without any."""
    valid = np.isfinite(d)
    rows = batch.token_rows[valid]
    n = np.bincount(rows, minlength=batch.rows).astype(np.float64)
    n[n == 0] = np.nan
    return (np.bincount(rows, x[valid], minlength=batch.rows) / n for x in (d, advantage))  # type: ignore[return-value]
