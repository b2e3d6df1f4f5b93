"""From a joined batch to summaries, one per engine. Pure, vectorised over tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rltop.backend.batch import Batch
from rltop.backend.summary import CLAMP, Floats, Gap, Mean, Summary
from rltop.collectors import wire

UNKNOWN_ENGINE = ""
"""Key of the tokens whose engine is not known, and of rows that several engines wrote."""


def measure(batch: Batch) -> dict[str, Summary]:
    """The batch's summaries by engine; their sum is the batch's. Updates after the first give only clip rates."""
    engines = sorted({hit.record.engine for hit in batch.hits if hit is not None})
    names = [UNKNOWN_ENGINE, *engines]
    number = {name: i for i, name in enumerate(names)}
    span_engines = np.array([number[hit.record.engine] if hit else 0 for hit in batch.hits], np.int64)
    lengths = np.array([span.end - span.start for span in batch.spans], np.int64)
    token_engines = np.repeat(span_engines, lengths)
    row_engines = _row_engines(batch, span_engines)
    parts = [Summary() for _ in names]
    _add_clips(batch, parts, token_engines, row_engines)
    if batch.body.update == 0:
        versions = token_versions(batch)
        _add_tokens(batch, parts, token_engines, versions)
        _add_spans(batch, parts, row_engines, versions)
        _add_rows(batch, parts, row_engines)
        _add_requests(batch, parts, number)
    return dict(zip(names, parts, strict=True))


def _row_engines(batch: Batch, span_engines: NDArray[np.int64]) -> NDArray[np.int64]:
    """The one engine that wrote the row; 0 (unknown) where there is none or more than one."""
    engines = np.zeros(batch.rows, np.int64)
    seen: set[int] = set()
    for span, engine in zip(batch.spans, span_engines, strict=True):
        if span.row in seen and engines[span.row] != engine:
            engine = 0
        seen.add(span.row)
        engines[span.row] = engine
    return engines


def token_versions(batch: Batch) -> NDArray[np.int64]:
    """Policy version that sampled each token [tokens]: the engine's label, else the trainer's ``rollout_versions``."""
    given = batch.arrays.get("rollout_versions")
    versions = np.full(batch.tokens, wire.UNKNOWN_VERSION, np.int64) if given is None else given.astype(np.int64)
    for span, hit in zip(batch.spans, batch.hits, strict=True):
        if hit is None:
            continue
        size = span.end - span.start
        labels = hit.record.versions[hit.offset : hit.offset + size]
        here = versions[span.token : span.token + size]
        np.copyto(here, labels, where=labels != wire.UNKNOWN_VERSION)
    return versions


def _minus(left: NDArray[np.float32], right: NDArray[np.float32]) -> Floats:
    with np.errstate(invalid="ignore"):  # inf - inf: counted as invalid later
        return left.astype(np.float64) - right


def _add_tokens(batch: Batch, parts: list[Summary], engines: NDArray[np.int64], versions: NDArray[np.int64]) -> None:
    arrays = batch.arrays
    known = versions != wire.UNKNOWN_VERSION
    gap = _minus(arrays["trainer_logprobs"], arrays["rollout_logprobs"])
    old = arrays.get("old_logprobs")
    matched = np.zeros(batch.tokens, bool)
    if old is not None and "old_versions" in arrays:
        matched = known & (arrays["old_versions"] == versions)
    for engine, part in enumerate(parts):
        here = engines == engine
        part.tokens = int(np.count_nonzero(here))
        part.gap = Gap.of(gap[here])
        if "entropy" in arrays:
            part.entropy = Mean.of(arrays["entropy"][here])
        if batch.body.policy_version is not None:
            part.lag = Mean.of(batch.body.policy_version - versions[here & known])
        if old is not None:
            part.backend = Gap.of(_minus(old, arrays["rollout_logprobs"])[here & matched])
            part.update = Gap.of(_minus(arrays["trainer_logprobs"], old)[here & np.isfinite(old)])


def _add_spans(batch: Batch, parts: list[Summary], engines: NDArray[np.int64], versions: NDArray[np.int64]) -> None:
    known = versions != wire.UNKNOWN_VERSION
    rows, labels = batch.token_rows[known], versions[known]
    changes = (labels[1:] != labels[:-1]) & (rows[1:] == rows[:-1])
    versioned = np.bincount(rows, minlength=batch.rows) > 0
    spanning = np.bincount(rows[1:][changes], minlength=batch.rows) > 0
    for engine, part in enumerate(parts):
        here = engines == engine
        part.versioned = int(np.count_nonzero(here & versioned))
        part.spanning = int(np.count_nonzero(here & spanning))


def _add_rows(batch: Batch, parts: list[Summary], engines: NDArray[np.int64]) -> None:
    rewards = batch.arrays.get("rewards")
    joined = np.array([batch.is_joined(row) for row in range(batch.rows)], bool)
    for engine, part in enumerate(parts):
        here = engines == engine
        part.sequences = int(np.count_nonzero(here))
        part.joined = int(np.count_nonzero(here & joined))
        if rewards is not None:
            part.reward = Mean.of(rewards[here])
    parts[0].joinable = batch.joinable - sum(part.joined for part in parts)
    for part in parts:
        part.joinable += part.joined


def _add_requests(batch: Batch, parts: list[Summary], number: dict[str, int]) -> None:
    for hit in batch.hits:
        if hit is None or hit.offset:  # the rest of a request that was counted at its start
            continue
        part, rollout = parts[number[hit.record.engine]], hit.record.rollout
        part.aborted += rollout.finish_reason == "abort"
        cached = 0 if rollout.lookup_off else rollout.cached_tokens
        if cached is not None:
            part.cached += Mean(rollout.prompt_size, float(cached))


def _add_clips(
    batch: Batch, parts: list[Summary], token_engines: NDArray[np.int64], row_engines: NDArray[np.int64]
) -> None:
    low, high = clips(batch)
    engines = row_engines if by_row(batch) else token_engines
    for engine, part in enumerate(parts):
        here = engines == engine
        part.clip_low, part.clip_high = Mean.of(low[here]), Mean.of(high[here])


def by_row(batch: Batch) -> bool:
    """Whether clips are counted by sequence rather than by token."""
    return batch.body.objective == "gspo" and "clipped" not in batch.arrays


def clips(batch: Batch) -> tuple[Floats, Floats]:
    """Low and high clips: 1 clipped, 0 not, NaN not counted. [tokens], for GSPO without an explicit mask [rows].

    GSPO compares exp(mean d) of a sequence's valid tokens, and takes the sign of their mean advantage.
    """
    arrays, body = batch.arrays, batch.body
    base = arrays.get("old_logprobs" if body.ratio_base == "old" else "rollout_logprobs")
    advantages = arrays.get("advantages")
    if base is None and "clipped" in arrays:  # the ratio only tells valid tokens, and a side where nothing else does
        base = arrays["rollout_logprobs"]
    size = batch.rows if by_row(batch) else batch.tokens
    nothing = np.full(size, np.nan)
    if base is None or (advantages is None and "clipped" not in arrays):
        return nothing, nothing
    d = _minus(arrays["trainer_logprobs"], base)
    d[~np.isfinite(d)] = np.nan
    if "clipped" in arrays:
        return _clips_of_mask(arrays["clipped"] != 0, d, advantages)
    gain = np.asarray(advantages, np.float64)
    if by_row(batch):
        d, gain = _row_means(batch, d, gain)
    counted = np.isfinite(d) & np.isfinite(gain)
    ratio = np.exp(np.clip(d, -CLAMP, CLAMP))
    low, high = nothing.copy(), nothing.copy()
    if body.clip_low is not None:
        low[counted] = ((gain < 0) & (ratio < body.clip_low))[counted]
    if body.clip_high is not None:
        high[counted] = ((gain > 0) & (ratio > body.clip_high))[counted]
    return low, high


def _clips_of_mask(mask: NDArray[np.bool_], d: Floats, advantages: NDArray[np.float32] | None) -> tuple[Floats, Floats]:
    """An explicit mask has no sides: the sign of the advantage tells them, and the ratio's where there is none."""
    side = np.where(d < 0, -1.0, 1.0)
    if advantages is not None:
        gain = advantages.astype(np.float64)
        told = np.isfinite(gain) & (gain != 0)
        side[told] = np.sign(gain[told])
    low, high = (mask & (side < 0)).astype(np.float64), (mask & (side > 0)).astype(np.float64)
    low[np.isnan(d)] = high[np.isnan(d)] = np.nan
    return low, high


def _row_means(batch: Batch, d: Floats, gain: Floats) -> tuple[Floats, Floats]:
    """Means over each row's tokens with finite d; NaN for a row without any."""
    valid = np.isfinite(d)
    rows = batch.token_rows[valid]
    n = np.bincount(rows, minlength=batch.rows).astype(np.float64)
    n[n == 0] = np.nan
    return (np.bincount(rows, x[valid], minlength=batch.rows) / n for x in (d, gain))  # type: ignore[return-value]
