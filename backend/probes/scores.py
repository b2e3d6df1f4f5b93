"""What scores say: against the record, hot against cold, engine against engine. Pure.

A sequence is one observation; its tokens are not independent. Floors are of the mean |difference| of two logprobs of
one token, in nats, by the dtype that the engine computes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.probe_result import ProbeEvidence, ProbeFinding, mean
from rltop.backend.fleet.facts import same_text, some
from rltop.backend.probes.inputs import ScoringInput
from rltop.backend.probes.reports import Report, Scored
from rltop.collectors.contract.probes import COLD, HOT, MIN_SEQUENCES, WARM

Floats = NDArray[np.float64]
Said = tuple[str, ProbeEvidence, int]
"""An engine, its number, and of how many sequences."""

FLOORS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Upper ends of what healthy engines show. float32: the demo's engines stay below 1e-5 between prefill and decode
(tests/test_probes_live.py). bfloat16: 0.008 to 0.02 for dense models and those of experts on Qwen3, as vime, miles and
NeMo publish; float16 has three bits more, of which the softmax keeps two."""

UNKNOWN_FLOOR = FLOORS["bfloat16"]

OUTLIER = 10.0
"""A single sequence so many floors away counts, whatever the mean: a fault may hit some alone."""

PATH = 3.0
"""What a cached prefix may differ by, in multiples of what the path alone differs by."""


def floor_of(dtype: str) -> float:
    """Of an engine's dtype, by any of its names."""
    return next((floor for name, floor in FLOORS.items() if same_text(name, dtype)), UNKNOWN_FLOOR)


def rescored(
    reports: Mapping[str, Report], chosen: Mapping[str, Sequence[ScoringInput]], dtypes: Mapping[str, str]
) -> ProbeFinding:
    """Prefill against the record, per engine."""
    evidence, odd, said, words = [], [], [], set()
    for engine, report in sorted(reports.items()):
        gaps = []
        for number, score in sorted(report.by_passage(COLD).items()):
            material = chosen[engine][number]
            values, recorded = _overlap(score, material)
            if values.size:
                gaps.append(values - recorded)
        word, entry = _apart("|rescore - record|, mean", gaps, floor_of(dtypes.get(engine, "")), engine)
        evidence += [entry, *_largest(gaps, engine)]
        words.add(word)
        if word == "apart":
            odd.append(engine)
            bias = float(np.mean([gap.mean() for gap in gaps]))
            said.append(f"{engine}: {_nats(entry.value)} apart on average, {bias:+.2g} nats with its sign")
    sequences = sum(entry.n for entry in evidence if entry.of == "sequences")
    version = _version(reports)
    notes = _notes(reports)
    if odd:
        text = f"Prefill does not give what was recorded. {'; '.join(said)}."
        return ProbeFinding("differ", text, odd, evidence, version, notes)
    if words == {"same"}:
        text = f"Prefill gives what was recorded, on {sequences} sequences of {some(sorted(reports))}."
        return ProbeFinding("match", text, [], evidence, version, notes)
    return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)


def salted(reports: Mapping[str, Report], dtypes: Mapping[str, str]) -> ProbeFinding:
    """A cached prefix against the same computed now, per engine."""
    evidence: list[ProbeEvidence] = []
    missed: list[str] = []
    stale: list[Said] = []
    unclear: list[Said] = []
    fresh: list[Said] = []
    for engine, report in sorted(reports.items()):
        hot, cold, warm = (report.by_passage(way) for way in (HOT, COLD, WARM))
        hits = [n for n, one in sorted(hot.items()) if one.cached and n in warm and warm[n].cached == one.cached]
        evidence.append(_hits(engine, hot, cold))
        if not hits:
            missed.append(engine)
            continue
        aged = [_difference(hot[n], warm[n]) for n in hits]
        path = [_difference(cold[n], warm[n]) for n in hits if n in cold]
        noise = mean("|cold - warm|, mean: what the path alone does", [_size(gap) for gap in path], "nats", "sequences",
                     engine)  # fmt: skip
        limit = max(PATH * (noise.value or 0.0), floor_of(dtypes.get(engine, "")) / OUTLIER)
        word, entry = _apart("|hot - warm|, mean: what the age of the prefix does", aged, limit, engine)
        evidence += [entry, noise, *_largest(aged, engine)]
        {"apart": stale, "same": fresh}.get(word, unclear).append((engine, entry, len(hits)))
    version, notes = _version(reports), _notes(reports)
    notes += [f"{engine}: no sequence hit the cache; there was nothing to compare." for engine in missed]
    if stale:
        said = "; ".join(
            f"{engine}: {_nats(entry.value)} on {count} sequences that hit" for engine, entry, count in stale
        )
        text = f"Cached keys and values are not those of the present weights. {said}."
        return ProbeFinding("stale", text, [engine for engine, *_ in stale], evidence, version, notes)
    if unclear:
        return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)
    if not fresh:
        return ProbeFinding(
            "not_cached", "No sequence hit the cache, so there was nothing to compare.", [], evidence, version
        )
    count = sum(count for *_, count in fresh)
    text = f"On {count} sequences that hit, a cached prefix gives what one computed now gives."
    return ProbeFinding("fresh", text, [], evidence, version, notes)


def crossed(
    reports: Mapping[str, Report],
    chosen: Mapping[str, Sequence[ScoringInput]],
    dtypes: Mapping[str, str],
    neutral: bool,
) -> ProbeFinding:
    """Engine against engine, sequence by sequence; ``neutral``: the trainer's logprobs are of temperature 1."""
    versions = {engine: report.body.policy_version for engine, report in sorted(reports.items())}
    if len(set(versions.values())) > 1:
        each = ", ".join(f"{engine} {version}" for engine, version in versions.items())
        return ProbeFinding("unclear", f"Engines had different versions ({each}): they should differ. Ask again.")
    floor = max(floor_of(dtypes.get(engine, "")) for engine in reports)
    evidence, apart, words = [], [], set()
    for one, other in combinations(sorted(reports), 2):
        here, there = (reports[engine].by_passage(COLD) for engine in (one, other))
        gaps = [_completion(here[n], chosen[one][n]) - _completion(there[n], chosen[one][n])
                for n in sorted(here.keys() & there.keys())]  # fmt: skip
        word, entry = _apart("|difference|, mean", gaps, floor, f"{one} - {other}")
        evidence += [entry, *_largest(gaps, f"{one} - {other}")]
        words.add(word)
        if word == "apart":
            apart.append((one, other))
    version, notes = _version(reports), _notes(reports)
    if apart:
        odd, why, more = _odd(sorted(reports), apart, reports, chosen, neutral)
        pairs = ", ".join(f"{one} and {other}" for one, other in apart)
        return ProbeFinding(
            "differ", f"Of the same tokens {pairs} give other logprobs. {why}", odd, evidence + more, version, notes
        )
    if words == {"same"}:
        text = f"{some(sorted(reports))} give the same logprobs of the same tokens."
        return ProbeFinding("agree", text, [], evidence, version, notes)
    return ProbeFinding("unclear", _too_few(evidence), [], evidence, version, notes)


def _odd(
    engines: list[str],
    apart: list[tuple[str, str]],
    reports: Mapping[str, Report],
    chosen: Mapping[str, Sequence[ScoringInput]],
    neutral: bool,
) -> tuple[list[str], str, list[ProbeEvidence]]:
    """Who stands apart: from all others that agree; or, of two, who is farther from the trainer."""
    lonely = [engine for engine in engines if sum(engine in pair for pair in apart) == len(engines) - 1]
    if len(engines) > 2 and len(lonely) == 1:
        return lonely, f"{lonely[0]} stands apart from all others.", []
    ask = "weight-digest, before and after an update, tells which"
    if len(engines) > 2:
        return [], f"No engine alone stands apart; {ask}.", []
    one, other = engines
    far = [_farther(reports[one], reports[other], number, material) for number, material in enumerate(chosen[one])]
    entry = mean(
        f"how much farther {one} is from the trainer, of d squared", [x for x in far if x is not None], "", "sequences"
    )
    if not neutral or entry.low is None or entry.high is None or entry.n < MIN_SEQUENCES:
        return [], f"Of two engines without the trainer's logprobs of these tokens it can't be told which; {ask}.", []
    if entry.low > 0 or entry.high < 0:
        name = one if entry.low > 0 else other
        return [name], f"{name} is the one that is farther from the trainer.", [entry]
    return [], f"Both are as far from the trainer; {ask}.", [entry]


def _farther(one: Report, other: Report, number: int, material: ScoringInput) -> float | None:
    """How much more the first engine's mean squared difference to the trainer is than the other's."""
    scores = [report.by_passage(COLD).get(number) for report in (one, other)]
    if material.trainer is None or any(score is None for score in scores):
        return None
    here, there = (_completion(score, material) for score in scores if score is not None)
    size = min(here.size, there.size)
    if not size:
        return None
    trainer = material.trainer[:size].astype(np.float64)
    return float(np.mean((here[:size] - trainer) ** 2) - np.mean((there[:size] - trainer) ** 2))


def _apart(name: str, gaps: Sequence[Floats], limit: float, engine: str) -> tuple[str, ProbeEvidence]:
    """``apart``, ``same`` or ``unclear``: the mean over sequences of the mean |gap|, held against ``limit``."""
    sizes = [_size(gap) for gap in gaps if gap.size]
    entry = mean(name, sizes, "nats", "sequences", engine)
    if entry.value is None or not all(map(math.isfinite, sizes)):
        return "unclear", entry
    if any(size > OUTLIER * limit for size in sizes):
        return "apart", entry
    if len(sizes) < MIN_SEQUENCES:
        return "unclear", entry
    if entry.low is not None and entry.low > limit:
        return "apart", entry
    return ("same" if entry.value <= limit else "unclear"), entry


def _overlap(score: Scored, material: ScoringInput) -> tuple[Floats, Floats]:
    """Scored and recorded logprobs of the completion's tokens that have both, finite."""
    values = _completion(score, material)
    recorded = material.recorded[: values.size].astype(np.float64)
    both = np.isfinite(values) & np.isfinite(recorded)
    return values[both], recorded[both]


def _completion(score: Scored, material: ScoringInput) -> Floats:
    """The scores of the completion's tokens, as far as they were scored."""
    begin = material.prompt.size - score.first
    return score.logprobs[max(begin, 0) :].astype(np.float64) if begin >= 0 else np.empty(0)


def _difference(one: Scored, other: Scored) -> Floats:
    """Of the tokens that both have."""
    first = max(one.first, other.first)
    end = min(one.first + one.logprobs.size, other.first + other.logprobs.size)
    a, b = (score.logprobs[first - score.first : max(end - score.first, 0)] for score in (one, other))
    return a.astype(np.float64) - b


def _size(gap: Floats) -> float:
    return float(np.abs(gap).mean()) if gap.size else math.nan


def _largest(gaps: Sequence[Floats], engine: str) -> list[ProbeEvidence]:
    sizes = np.concatenate([np.empty(0), *(np.abs(gap) for gap in gaps)])
    return (
        [ProbeEvidence("the largest", float(sizes.max()), "nats", n=sizes.size, of="tokens", engine=engine)]
        if sizes.size
        else []
    )


def _hits(engine: str, hot: Mapping[int, Scored], cold: Mapping[int, Scored]) -> ProbeEvidence:
    cached = [one.cached or 0 for one in hot.values()]
    read = sum(one.cached or 0 for one in cold.values())
    name = f"cached tokens a hot request (cold: {read})"
    return ProbeEvidence(
        name, float(np.mean(cached)) if cached else None, "tokens", n=len(cached), of="requests", engine=engine
    )


def _too_few(evidence: Sequence[ProbeEvidence]) -> str:
    counts = ", ".join(f"{entry.n} of {entry.engine}" for entry in evidence if entry.of == "sequences") or "none"
    return f"Neither can be told from the sequences that came back ({counts}); {MIN_SEQUENCES} are the least."


def _nats(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g} nats"


def _version(reports: Mapping[str, Report]) -> int | None:
    versions = {report.body.policy_version for report in reports.values()}
    return versions.pop() if len(versions) == 1 else None


def _notes(reports: Mapping[str, Report]) -> list[str]:
    notes = [f"{engine}: {note}" for engine, report in sorted(reports.items()) for note in report.body.notes]
    sent = ", ".join(
        f"{engine} {report.body.requests} requests of {report.body.tokens} tokens in {report.body.seconds:.1f} s, "
        f"its thread busy with them for {1e3 * report.body.stall_s:.0f} ms"
        for engine, report in sorted(reports.items())
    )
    return [*notes, f"Sent: {sent}."]
