"""Verdicts on logprobs that engines computed for a probe. Pure.

``prefill-rescore`` compares prefill with the rollout logprobs, ``cache-salt`` a cached prefix with a recomputed one,
and ``cross-replica`` engines with each other. One sequence is one observation, since its tokens are not independent.
Tolerances are mean |differences| of two logprobs of one token, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.probe_result import ProbeEvidence, ProbeFinding, mean
from rltop.backend.fleet.facts import same_text, some
from rltop.backend.probes.inputs import ScoringInput
from rltop.backend.probes.reports import Report, Scored
from rltop.collectors.contract.probes import COLD, HOT, MIN_SEQUENCES, WARM

Floats = NDArray[np.float64]

TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Upper ends of healthy engines, by compute dtype. float32: the demo's engines stay below 1e-5 between prefill and
decode (tests/live/test_probes_live.py). bfloat16: 0.008 to 0.02 for dense and MoE models on Qwen3, as vime, miles and
NeMo publish; float16 has three bits more, of which the softmax keeps two."""

UNKNOWN_DTYPE = TOLERANCES["bfloat16"]

OUTLIER = 10.0
"""One sequence this many tolerances away is enough for a difference: a fault may affect only some sequences."""

PATH = 3.0
"""How far a cached prefix may differ, in multiples of the difference between the two compute paths."""

DIFFERENT, SAME, UNCLEAR = "different", "same", "unclear"


def tolerance(dtype: str) -> float:
    """For a compute dtype, by any of its names."""
    return next((limit for name, limit in TOLERANCES.items() if same_text(name, dtype)), UNKNOWN_DTYPE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences of logprobs, compared with a limit.

    Attributes:
        subject: an engine, or a pair of engines.
        outcome: ``DIFFERENT``, ``SAME`` or ``UNCLEAR``.
        mean: of the sequences' mean |difference|, nats.
        largest: the largest |difference| of a token; empty without tokens.
        bias: mean over sequences of the mean signed difference, nats.
    """

    subject: str
    outcome: str
    mean: ProbeEvidence
    largest: list[ProbeEvidence]
    bias: float


def compare(name: str, differences: Sequence[Floats], limit: float, subject: str) -> Comparison:
    """Compare the mean over sequences of the mean |difference| with ``limit``."""
    differences = [one for one in differences if one.size]
    sizes = [_mean_abs(one) for one in differences]
    average = mean(name, sizes, "nats", "sequences", subject)
    bias = float(np.mean([one.mean() for one in differences])) if differences else math.nan
    return Comparison(subject, _outcome(average, sizes, limit), average, _largest(differences, subject), bias)


def _outcome(average: ProbeEvidence, sizes: Sequence[float], limit: float) -> str:
    if average.value is None or not all(map(math.isfinite, sizes)):
        return UNCLEAR
    if any(size > OUTLIER * limit for size in sizes):
        return DIFFERENT
    if len(sizes) < MIN_SEQUENCES:
        return UNCLEAR
    if average.low is not None and average.low > limit:
        return DIFFERENT
    return SAME if average.value <= limit else UNCLEAR


# --- prefill-rescore ----------------------------------------------------------------------------------------------


def judge_rescore(
    reports: Mapping[str, Report], chosen: Mapping[str, Sequence[ScoringInput]], dtypes: Mapping[str, str]
) -> ProbeFinding:
    """Compare prefill with the rollout logprobs, per engine."""
    results = [
        compare(
            "|prefill - rollout|, mean",
            [_rescore_difference(score, chosen[engine][i]) for i, score in sorted(report.by_passage(COLD).items())],
            tolerance(dtypes.get(engine, "")),
            engine,
        )
        for engine, report in sorted(reports.items())
    ]
    evidence = [entry for one in results for entry in (one.mean, *one.largest)]
    version, notes = _version(reports), _notes(reports)
    if different := [one for one in results if one.outcome == DIFFERENT]:
        details = "; ".join(
            f"{one.subject}: mean |difference| {_nats(one.mean.value)}, mean difference {one.bias:+.2g} nats"
            for one in different
        )
        text = f"Prefill does not reproduce the rollout logprobs. {details}."
        return ProbeFinding("differ", text, [one.subject for one in different], evidence, version, notes)
    if results and all(one.outcome == SAME for one in results):
        count = sum(one.mean.n for one in results)
        text = f"Prefill reproduces the rollout logprobs on {count} sequences of {some(sorted(reports))}."
        return ProbeFinding("match", text, [], evidence, version, notes)
    return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)


def _rescore_difference(score: Scored, scored: ScoringInput) -> Floats:
    """Prefill minus rollout logprob of the completion tokens that have both, finite."""
    values = _completion(score, scored)
    difference: Floats = values - scored.recorded[: values.size].astype(np.float64)
    finite: Floats = difference[np.isfinite(difference)]
    return finite


# --- cache-salt ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """One engine's cached prefixes, compared with recomputed ones. ``comparison`` is None if no sequence hit."""

    engine: str
    hits: int
    comparison: Comparison | None
    evidence: list[ProbeEvidence]


def judge_cache_salt(reports: Mapping[str, Report], dtypes: Mapping[str, str]) -> ProbeFinding:
    """Compare a cached prefix with the same prefix recomputed, per engine."""
    checks = [_check_cache(engine, report, dtypes.get(engine, "")) for engine, report in sorted(reports.items())]
    evidence = [entry for check in checks for entry in check.evidence]
    version, notes = _version(reports), _notes(reports)
    notes += [f"{one.engine}: no sequence hit the cache, so nothing was compared." for one in checks if not one.hits]
    by_outcome: dict[str, list[CacheCheck]] = {DIFFERENT: [], SAME: [], UNCLEAR: []}
    for check in checks:
        if check.comparison is not None:
            by_outcome[check.comparison.outcome].append(check)
    if stale := by_outcome[DIFFERENT]:
        details = "; ".join(
            f"{one.engine}: mean |difference| {_nats(one.comparison.mean.value if one.comparison else None)} "
            f"on {one.hits} sequences that hit"
            for one in stale
        )
        text = f"Cached keys and values are not those of the current weights. {details}."
        return ProbeFinding("stale", text, [one.engine for one in stale], evidence, version, notes)
    if by_outcome[UNCLEAR]:
        return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)
    if not by_outcome[SAME]:
        text = "No sequence hit the cache, so nothing was compared."
        return ProbeFinding("not_cached", text, [], evidence, version)
    count = sum(one.hits for one in by_outcome[SAME])
    text = f"On {count} sequences that hit, a cached prefix gives the same logprobs as a recomputed one."
    return ProbeFinding("fresh", text, [], evidence, version, notes)


def _check_cache(engine: str, report: Report, dtype: str) -> CacheCheck:
    """Hot: the cache as it is. Cold: no cache, another compute path. Warm: the hot path on blocks computed just now."""
    hot, cold, warm = (report.by_passage(way) for way in (HOT, COLD, WARM))
    hits = [i for i, one in sorted(hot.items()) if one.cached and i in warm and warm[i].cached == one.cached]
    evidence = [_cached_tokens(engine, hot.values(), cold.values())]
    if not hits:
        return CacheCheck(engine, 0, None, evidence)
    path = [_mean_abs(_difference(cold[i], warm[i])) for i in hits if i in cold]
    noise = mean("|cold - warm|, mean: effect of the compute path", path, "nats", "sequences", engine)
    limit = max(PATH * (noise.value or 0.0), tolerance(dtype) / OUTLIER)
    aged = [_difference(hot[i], warm[i]) for i in hits]
    comparison = compare("|hot - warm|, mean: effect of the prefix's age", aged, limit, engine)
    return CacheCheck(engine, len(hits), comparison, [*evidence, comparison.mean, noise, *comparison.largest])


def _cached_tokens(engine: str, hot: Iterable[Scored], cold: Iterable[Scored]) -> ProbeEvidence:
    cached = [one.cached or 0 for one in hot]
    name = f"cached tokens per hot request (cold: {sum(one.cached or 0 for one in cold)})"
    average = float(np.mean(cached)) if cached else None
    return ProbeEvidence(name, average, "tokens", n=len(cached), of="requests", engine=engine)


# --- cross-replica ------------------------------------------------------------------------------------------------


def judge_cross_replica(
    reports: Mapping[str, Report],
    chosen: Mapping[str, Sequence[ScoringInput]],
    dtypes: Mapping[str, str],
    neutral: bool,
) -> ProbeFinding:
    """Compare engines with each other on the same sequences; ``neutral``: trainer logprobs are at temperature 1."""
    versions = {engine: report.body.policy_version for engine, report in sorted(reports.items())}
    if len(set(versions.values())) > 1:
        each = ", ".join(f"{engine} {version}" for engine, version in versions.items())
        text = f"Engines had different versions ({each}), so they are expected to differ. Run it again."
        return ProbeFinding("unclear", text)
    limit = max(tolerance(dtypes.get(engine, "")) for engine in reports)
    results = {
        (one, other): compare(
            "|difference|, mean", _pair_differences(one, other, reports, chosen), limit, f"{one} - {other}"
        )
        for one, other in combinations(sorted(reports), 2)
    }
    evidence = [entry for result in results.values() for entry in (result.mean, *result.largest)]
    version, notes = _version(reports), _notes(reports)
    if different := [pair for pair, result in results.items() if result.outcome == DIFFERENT]:
        odd, why, more = _outlier(sorted(reports), different, reports, chosen, neutral)
        pairs = ", ".join(f"{one} and {other}" for one, other in different)
        text = f"{pairs} give different logprobs for the same tokens. {why}"
        return ProbeFinding("differ", text, odd, evidence + more, version, notes)
    if results and all(result.outcome == SAME for result in results.values()):
        text = f"{some(sorted(reports))} give the same logprobs for the same tokens."
        return ProbeFinding("agree", text, [], evidence, version, notes)
    return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)


def _pair_differences(
    one: str, other: str, reports: Mapping[str, Report], chosen: Mapping[str, Sequence[ScoringInput]]
) -> list[Floats]:
    here, there = (reports[engine].by_passage(COLD) for engine in (one, other))
    return [
        _completion(here[i], chosen[one][i]) - _completion(there[i], chosen[one][i])
        for i in sorted(here.keys() & there.keys())
    ]


def _outlier(
    engines: list[str],
    different: list[tuple[str, str]],
    reports: Mapping[str, Report],
    chosen: Mapping[str, Sequence[ScoringInput]],
    neutral: bool,
) -> tuple[list[str], str, list[ProbeEvidence]]:
    """The engine that differs from all others; of two, the one that is farther from the trainer."""
    next_probe = "weight-digest before and after an update tells which engine is wrong"
    if len(engines) > 2:
        alone = [engine for engine in engines if sum(engine in pair for pair in different) == len(engines) - 1]
        if len(alone) == 1:
            return alone, f"{alone[0]} differs from all others.", []
        return [], f"No single engine differs from all others; {next_probe}.", []
    one, other = engines
    excess = [_excess_distance(reports[one], reports[other], i, scored) for i, scored in enumerate(chosen[one])]
    name = f"{one}'s mean squared distance from the trainer minus {other}'s"
    entry = mean(name, [value for value in excess if value is not None], "", "sequences")
    if not neutral or entry.low is None or entry.high is None or entry.n < MIN_SEQUENCES:
        return [], f"Two engines, and no trainer logprobs of these tokens to decide; {next_probe}.", []
    if entry.low > 0 or entry.high < 0:
        farther = one if entry.low > 0 else other
        return [farther], f"{farther} is farther from the trainer.", [entry]
    return [], f"Both are equally far from the trainer; {next_probe}.", [entry]


def _excess_distance(one: Report, other: Report, passage: int, scored: ScoringInput) -> float | None:
    """Mean squared distance of one engine from the trainer minus that of the other, nats squared."""
    here, there = (report.by_passage(COLD).get(passage) for report in (one, other))
    if scored.trainer is None or here is None or there is None:
        return None
    ours, theirs = _completion(here, scored), _completion(there, scored)
    size = min(ours.size, theirs.size)
    if not size:
        return None
    trainer = scored.trainer[:size].astype(np.float64)
    return float(np.mean((ours[:size] - trainer) ** 2) - np.mean((theirs[:size] - trainer) ** 2))


# --- shared -------------------------------------------------------------------------------------------------------


def _completion(score: Scored, scored: ScoringInput) -> Floats:
    """The logprobs of the completion's tokens, as far as they were scored."""
    begin = scored.prompt.size - score.first
    return score.logprobs[begin:].astype(np.float64) if begin >= 0 else np.empty(0)


def _difference(one: Scored, other: Scored) -> Floats:
    """Over the tokens that both have."""
    first = max(one.first, other.first)
    end = min(one.first + one.logprobs.size, other.first + other.logprobs.size)
    a, b = (score.logprobs[first - score.first : max(end - score.first, 0)] for score in (one, other))
    return a.astype(np.float64) - b


def _mean_abs(difference: Floats) -> float:
    return float(np.abs(difference).mean()) if difference.size else math.nan


def _largest(differences: Sequence[Floats], subject: str) -> list[ProbeEvidence]:
    if not differences:
        return []
    sizes = np.abs(np.concatenate(differences))
    return [ProbeEvidence("largest token |difference|", float(sizes.max()), "nats", n=sizes.size, of="tokens",
                          engine=subject)]  # fmt: skip


def _too_few(evidence: Sequence[ProbeEvidence]) -> str:
    counts = ", ".join(f"{entry.n} of {entry.engine}" for entry in evidence if entry.of == "sequences") or "none"
    return f"The returned sequences ({counts}) do not decide; at least {MIN_SEQUENCES} are needed."


def _nats(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g} nats"


def _version(reports: Mapping[str, Report]) -> int | None:
    versions = {report.body.policy_version for report in reports.values()}
    return versions.pop() if len(versions) == 1 else None


def _notes(reports: Mapping[str, Report]) -> list[str]:
    notes = [f"{engine}: {note}" for engine, report in sorted(reports.items()) for note in report.body.notes]
    sent = ", ".join(
        f"{engine} {report.body.requests} requests of {report.body.tokens} tokens in {report.body.seconds:.1f} s, "
        f"engine thread busy for {1e3 * report.body.stall_s:.0f} ms"
        for engine, report in sorted(reports.items())
    )
    return [*notes, f"Sent: {sent}."]
