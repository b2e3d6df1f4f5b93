"""Splits a joined batch into runs of tokens that were sampled under the same conditions. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltop.backend.join.batch import Batch
from rltop.backend.join.records import Hit
from rltop.backend.summary import dimensions
from rltop.backend.summary.dimensions import CACHE, FINISH, MAX_TURN, UPDATE
from rltop.backend.summary.kernel import Floats, Ints
from rltop.backend.summary.token_runs import TokenRuns
from rltop.collectors.contract import wire

_NEVER = np.iinfo(np.int64).max

_PREFIX = {name: number for number, name in enumerate(CACHE.strata)}
_UPDATE = {name: number for number, name in enumerate(UPDATE.strata)}
_FINISH = {name: number for number, name in enumerate(FINISH.strata)}


@dataclass(frozen=True, slots=True)
class SampledRuns:
    """Runs with the facts about each.

    Attributes:
        runs: each within one span, with one version and one value of ``matched``.
        version: policy version that sampled the run [runs]. known: whether it is known [runs]. matched: whether the old
            logprobs were computed under that version [runs]. labels: stratum of each run by dimension [runs].
    """

    runs: TokenRuns
    version: Ints
    known: NDArray[np.bool_]
    matched: NDArray[np.bool_]
    labels: dict[str, Ints]


def sampled_runs(batch: Batch, span_engines: Ints, engines: int, versions: Ints) -> SampledRuns:
    """The runs of a batch, given the engine of each span [spans] and the version of each token [tokens]."""
    begins = np.array([span.token for span in batch.spans], np.int64)
    sizes = np.array([span.end - span.start for span in batch.spans], np.int64)
    rows = np.array([span.row for span in batch.spans], np.int64)
    matched = np.zeros(batch.tokens, bool)
    if "old_logprobs" in batch.arrays and "old_versions" in batch.arrays:
        matched = (versions != wire.UNKNOWN_VERSION) & (batch.arrays["old_versions"] == versions)
    change = np.zeros(batch.tokens, bool)
    change[begins[sizes > 0]] = True
    change[1:] |= (versions[1:] != versions[:-1]) | (matched[1:] != matched[:-1])
    start = np.flatnonzero(change)
    end = np.append(start[1:], batch.tokens)[: start.size]
    span = np.searchsorted(begins, start, side="right") - 1
    row, engine = rows[span], span_engines[span]
    if np.any((row[1:] == row[:-1]) & (engine[1:] != engine[:-1])):
        order = np.lexsort((engine, row))  # stable: a row's tokens of one engine stay in order
        start, end, span, row, engine = start[order], end[order], span[order], row[order], engine[order]
    adjacent = (start > begins[span]) + 2 * (end < begins[span] + sizes[span])
    row_starts = np.searchsorted(batch.token_rows, np.arange(batch.rows))
    runs = TokenRuns(start, end, row, engine, start - row_starts[row], adjacent.astype(np.int64), engines)
    version = versions[start]
    known = version != wire.UNKNOWN_VERSION
    row_sizes = np.bincount(batch.token_rows, minlength=batch.rows)
    of_span = _span_strata(batch)
    labels = {name: of_span[name][span] for name in ("prefix", "since_update", "since_start", "turn", "finish")}
    labels["length"] = dimensions.length_strata(row_sizes[row])
    labels["update"] = _update_strata(batch, versions, start, span, known)
    if batch.body.policy_version is not None:
        labels["lag"] = dimensions.lag_strata(batch.lags(version), known)
    return SampledRuns(runs, version, known, matched[start], labels)


def _span_strata(batch: Batch) -> dict[str, Ints]:
    """Stratum of each span [spans] by dimension."""
    unknown = _PREFIX["unknown"], np.nan, np.nan, _FINISH["unknown"]
    rows = [unknown if hit is None else _request_facts(hit) for hit in batch.hits]
    prefix, updated, started, finish = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "prefix": np.array(prefix, np.int64),
        "since_update": dimensions.second_strata(np.array(updated, np.float64)),
        "since_start": dimensions.second_strata(np.array(started, np.float64)),
        "turn": _turns(batch),
        "finish": np.array(finish, np.int64),
    }


def _request_facts(hit: Hit) -> tuple[int, float, float, int]:
    """Prefix stratum, seconds since the last update and since the start (NaN if not known), finish stratum."""
    rollout = hit.record.rollout
    cached = rollout.cached_tokens
    prefix = "off" if rollout.lookup_off else "unknown" if cached is None else "hit" if cached else "miss"
    since_update = rollout.scheduled - rollout.updated if rollout.scheduled and rollout.updated else np.nan
    since_start = rollout.scheduled - rollout.started if rollout.scheduled and rollout.started else np.nan
    finish = rollout.finish_reason if rollout.finish_reason in _FINISH else "other"
    return _PREFIX[prefix], since_update, since_start, _FINISH[finish]


def _turns(batch: Batch) -> Ints:
    """Turn of each span [spans] in its row; a token masked out within one request starts no new turn."""
    turns = np.zeros(len(batch.spans), np.int64)
    for number, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)):
        if not number or batch.spans[number - 1].row != span.row:
            continue
        previous = batch.hits[number - 1]
        same_request = hit is not None and previous is not None and hit.record is previous.record
        turns[number] = turns[number - 1] + (not same_request)
    return np.minimum(turns, MAX_TURN - 1)


def _update_strata(batch: Batch, versions: Ints, start: Ints, span: Ints, known: NDArray[np.bool_]) -> Ints:
    """Whether each run was sampled before or after the first weight update within its request [runs].

    Without a rollout the span counts as the request.
    """
    changed = np.full(len(batch.spans), _NEVER)
    for number, (here, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)):
        if hit is not None:
            runs = hit.record.rollout.runs
            after = next((run.start for run in runs if run.version != runs[0].version), None)
            if after is not None:
                changed[number] = here.token + after - hit.offset
        elif "rollout_versions" in batch.arrays:
            own = versions[here.token : here.token + here.end - here.start]
            (others,) = np.nonzero(own != own[0])
            if others.size:
                changed[number] = here.token + others[0]
    at = changed[span]
    strata = np.where(at == _NEVER, _UPDATE["whole"], np.where(start < at, _UPDATE["before"], _UPDATE["after"]))
    return np.where(known, strata, _UPDATE["unknown"])


def mean_advantages(batch: Batch) -> Floats:
    """Mean known advantage of each row [rows]; NaN if none is known."""
    advantages = batch.arrays.get("advantages")
    if advantages is None:
        return np.full(batch.rows, np.nan)
    valid = np.isfinite(advantages)
    rows = batch.token_rows[valid]
    n = np.bincount(rows, minlength=batch.rows).astype(np.float64)
    n[n == 0] = np.nan
    return np.bincount(rows, advantages[valid].astype(np.float64), minlength=batch.rows) / n
