"""From a joined batch to runs of tokens that were sampled alike, and what is known of each. Pure."""

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
    """Runs, and what is known of them.

    Attributes:
        runs: of one span, one version and one answer to ``matched`` each.
        version: that sampled the run [runs]. known: whether that is known. matched: whether the old logprobs were
            computed under it. labels: stratum by dimension [runs].
    """

    runs: TokenRuns
    version: Ints
    known: NDArray[np.bool_]
    matched: NDArray[np.bool_]
    labels: dict[str, Ints]


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


def sampled(batch: Batch, span_places: Ints, places: int, versions: Ints) -> SampledRuns:
    """The runs of a batch; ``span_places`` [spans] of ``places``, ``versions`` [tokens]."""
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
    row, place = rows[span], span_places[span]
    if np.any((row[1:] == row[:-1]) & (place[1:] != place[:-1])):
        order = np.lexsort((place, row))  # stable: a row's tokens of one place follow each other
        start, end, span, row, place = start[order], end[order], span[order], row[order], place[order]
    flow = (start > begins[span]) + 2 * (end < begins[span] + sizes[span])
    row_starts = np.searchsorted(batch.token_rows, np.arange(batch.rows))
    runs = TokenRuns(start, end, row, place, start - row_starts[row], flow.astype(np.int64), places)
    version = versions[start]
    known = version != wire.UNKNOWN_VERSION
    row_sizes = np.bincount(batch.token_rows, minlength=batch.rows)
    facts = _span_facts(batch)
    labels = {name: facts[name][span] for name in ("prefix", "since_update", "since_start", "turn", "finish")}
    labels["length"] = dimensions.length_strata(row_sizes[row])
    labels["update"] = _updates(batch, versions, start, span, known)
    if batch.body.policy_version is not None:
        labels["lag"] = dimensions.lag_strata(batch.body.policy_version - version, known)
    return SampledRuns(runs, version, known, matched[start], labels)


def _span_facts(batch: Batch) -> dict[str, Ints]:
    """Strata of each span [spans]."""
    nothing = _PREFIX["unknown"], np.nan, np.nan, _FINISH["unknown"]
    rows = [nothing if hit is None else _facts(hit) for hit in batch.hits]
    prefix, updated, started, finish = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "prefix": np.array(prefix, np.int64),
        "since_update": dimensions.second_strata(np.array(updated, np.float64)),
        "since_start": dimensions.second_strata(np.array(started, np.float64)),
        "turn": _turns(batch),
        "finish": np.array(finish, np.int64),
    }


def _facts(hit: Hit) -> tuple[int, float, float, int]:
    rollout = hit.record.rollout
    cached = rollout.cached_tokens
    prefix = "off" if rollout.lookup_off else "unknown" if cached is None else "hit" if cached else "miss"
    since_update = rollout.scheduled - rollout.updated if rollout.scheduled and rollout.updated else np.nan
    since_start = rollout.scheduled - rollout.started if rollout.scheduled and rollout.started else np.nan
    finish = rollout.finish_reason if rollout.finish_reason in _FINISH else "other"
    return _PREFIX[prefix], since_update, since_start, _FINISH[finish]


def _turns(batch: Batch) -> Ints:
    """Which of its row's stretches each span is: a token masked out within one request starts no new one."""
    turns = np.zeros(len(batch.spans), np.int64)
    for number, (span, hit) in enumerate(zip(batch.spans, batch.hits, strict=True)):
        if not number or batch.spans[number - 1].row != span.row:
            continue
        before = batch.hits[number - 1]
        goes_on = hit is not None and before is not None and hit.record is before.record
        turns[number] = turns[number - 1] + (not goes_on)
    return np.minimum(turns, MAX_TURN - 1)


def _updates(batch: Batch, versions: Ints, start: Ints, span: Ints, known: NDArray[np.bool_]) -> Ints:
    """Whether each run was sampled before or after the first change of weights in its request [runs].

    Without a rollout the span stands for the request.
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
    told = np.where(at == _NEVER, _UPDATE["whole"], np.where(start < at, _UPDATE["before"], _UPDATE["after"]))
    return np.where(known, told, _UPDATE["unknown"])


def gains(batch: Batch) -> Floats:
    """Mean known advantage of each row [rows], NaN where there is none."""
    gain = batch.arrays.get("advantages")
    if gain is None:
        return np.full(batch.rows, np.nan)
    valid = np.isfinite(gain)
    rows = batch.token_rows[valid]
    n = np.bincount(rows, minlength=batch.rows).astype(np.float64)
    n[n == 0] = np.nan
    return np.bincount(rows, gain[valid].astype(np.float64), minlength=batch.rows) / n
