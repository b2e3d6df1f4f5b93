"""Deterministic checks: copies, fillers, joins, masks, facts, versions and lags. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.catalogue.all_checks import BY_NAME
from rltop.backend.diagnosis.checks.findings import CERTAIN_LOG_E, NO_LOGPROBS, run_and_engines, unknown
from rltop.backend.evidence.evidence_arrays import EvidenceArrays, EvidenceByEngine
from rltop.backend.evidence.kernel import FIGURE, SUM
from rltop.backend.evidence.sequential import RECOVERY_STEPS
from rltop.backend.fleet import facts
from rltop.backend.join import copies as kinds
from rltop.backend.join import reasons

Lags = np.ndarray[tuple[int], np.dtype[np.float64]]
"""Mean lag by step."""

WINDOW = RECOVERY_STEPS
"""Latest steps that the current state is read from."""

MANY = 0.1
"""Share of rows from which a kind of copy, or a reason of the join, is a fault and not an outlier."""


def copies(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``copies``: how the trainer's copies of rollout logprobs differ from the originals, by engine."""
    steps = evidence.input.steps
    late = steps[-WINDOW:]
    total: Counter[str] = Counter()
    by_kind: dict[tuple[str, str], int] = Counter()
    for step in late:
        for engine, found in step.copies.items():
            for kind, count in found.items():
                total[engine] += count
                by_kind[engine, kind] += count
    if not total:
        yield unknown("copies", "no rows were joined with rollouts in the latest steps")
        return
    odd = 0
    for (engine, kind), count in sorted(by_kind.items()):
        if kind in kinds.FINE or count < max(2, MANY * total[engine]):
            continue
        if kind in _WITHOUT_RULE and any(by_kind[e, k] > count for e, k in by_kind if e == engine and k not in _PLAIN):
            continue  # a rule that holds for most copies explains these: they were matched with another rollout
        odd += 1
        outcome = next((o for o in _COPY_OUTCOMES if kind.startswith(o)), "changed")
        since = _since(evidence, lambda step, e=engine, k=kind: step.copies.get(e, {}).get(k, 0) > 0)
        text = f"{count} of {total[engine]} copies of {engine}'s logprobs: {kinds.describe(kind)}"
        yield _certain("copies", outcome, since, engine, count, text, kind, value=count / total[engine])
    if not odd:
        yield _certain(
            "copies", "equal", None, None, sum(total.values()), "the trainer's copies equal the engines' logprobs", ""
        )


_WITHOUT_RULE = frozenset({kinds.RECOMPUTED, kinds.CHANGED})
_PLAIN = kinds.FINE | _WITHOUT_RULE
_COPY_OUTCOMES = ("shifted", "zero_filled", "padded", "clamped", "cast", "recomputed", "changed", "unrecorded")


def record(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``record``: 0.0 and other fillers among rollout logprobs."""
    for engine, arrays in run_and_engines(evidence):
        late = arrays.sums[-WINDOW:].sum(axis=0)
        n, zero, filled = (float(late[x]) for x in (SUM.valid, SUM.suspect_zero, SUM.filler))
        if not n + filled:
            yield unknown("record", NO_LOGPROBS, engine)
            continue
        outcome, count = ("fillers", filled) if filled > zero else ("zeros", zero)
        if count < max(3, MIN_FILLERS * (n + filled)):
            text = f"{int(zero)} suspect zeros and {int(filled)} fillers in {int(n + filled)} tokens"
            yield _certain("record", "clean", None, engine, int(n), text, "")
            continue
        column = SUM.filler if outcome == "fillers" else SUM.suspect_zero
        since = _first_step(arrays, arrays.sums[:, column] > 0)
        kind = "are no logprobs" if outcome == "fillers" else "are 0.0 where the trainer logprob is far below"
        text = f"{int(count)} of {int(n + filled)} rollout logprobs {kind}"
        yield _certain("record", outcome, since, engine, int(n), text, "", value=count / (n + filled))


MIN_FILLERS = 1e-2
"""Share of tokens below which fillers are no fault: rounding turns a p near 1 into 0.0."""


def join(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``join``: rows without a rollout, by reason, and rows that were joined in an unusual way."""
    late = evidence.input.steps[-WINDOW:]
    unjoined, ways = Counter[str](), Counter[str]()
    for step in late:
        unjoined.update(step.unjoined)
        ways.update(step.joins)
    rows = sum(unjoined.values()) + sum(ways.values())
    if not rows:
        yield unknown("join", "no rows in the latest steps")
        return
    unusual = False
    for counts, outcome_of in ((unjoined, _UNJOINED), (ways, _WAYS)):
        for name, count in counts.items():
            outcome = outcome_of.get(name, "unjoined" if counts is unjoined else "")
            if not outcome or count < max(2, MANY * rows):
                continue
            unusual = True
            since = _since(evidence, lambda s, n=name: s.unjoined.get(n, 0) + s.joins.get(n, 0) > 0)
            # A stored run may have names of another version.
            text = f"{count} of {rows} rows: {_SENTENCES.get(name, name)}"
            yield _certain("join", outcome, since, None, rows, text, name, value=count / rows)
    if not unusual:
        text = f"{sum(ways.values())} of {rows} rows were joined with rollouts"
        yield _certain("join", "joined", None, None, rows, text, "")


_UNJOINED = {reasons.RETOKENISED: "retokenised"}
_WAYS = {reasons.OTHER_PROMPT: "other_prompt", reasons.TRUNCATED: "cut"}
_SENTENCES = {named.name: named.sentence for named in (*reasons.REASONS, *reasons.WAYS)}


def mask(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``mask``: trained tokens that are in no rollout."""
    arrays = evidence.run
    overlong = sum(step.unjoined.get(reasons.OVERLONG, 0) for step in evidence.input.steps[-WINDOW:])
    if not arrays.steps or not (evidence.engines or overlong):
        yield unknown("mask", "no rollouts joined yet")
        return
    late = arrays.sums[-WINDOW:]
    lone, n = (
        float(late[:, SUM.unsampled].sum()),
        float(late[:, SUM.valid].sum() + late[:, SUM.filler].sum()),
    )
    share = lone / max(n, 1)
    if lone >= 3 and share > MANY:
        since = _first_step(arrays, arrays.sums[:, SUM.unsampled] > 0)
        text = f"{int(lone)} of {int(n)} tokens in the loss are in no rollout"
        text += f"; {overlong} rows continue after the end of their rollout" if overlong else ""
        yield _certain("mask", "unsampled", since, None, int(n), text, "", value=share)
    else:
        text = f"{int(n - lone)} of {int(n)} tokens in the loss were sampled"
        yield _certain("mask", "sampled", None, None, int(n), text, "")


def facts_agree(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``facts``: mismatches of engines and trainer, and sampling parameters that the trainer does not state."""
    counted = [engine for engine in evidence.input.engines.values() if engine.health != "gone"] or list(
        evidence.input.engines.values()
    )
    live = {engine.id: facts.of_engine(engine) for engine in counted}
    if not live:
        yield unknown("facts", "no engine has reported")
        return
    trainer = evidence.input.trainer.facts
    mismatches = 0
    for one in facts.compare(live, trainer):
        mismatches += 1
        text = f"{one.fact} of {one.engine} is {one.value}: {one.explanation}{facts.because(one.fact)}"
        detail = f"{one.fact}" + ("" if one.against == facts.TRAINER else "/fleet")
        yield _certain("facts", "differs", _fact_since(evidence, one.fact, one.engine), one.engine, 0, text, detail)
    for engine, own in live.items():
        for name, idle in facts.NEUTRAL.items():
            value = own.get(name)
            if value is None or name in trainer or all(facts.same_text(x, idle) for x in value.split(facts.MIXED)):
                continue
            mismatches += 1
            text = f"{name} of {engine}'s requests is {value}; the trainer states none"
            yield _certain("facts", "shaped", _fact_since(evidence, name, engine), engine, 0, text, name)
        if filled := [
            f"{name} {value}" for name, value in facts.defaults(own).items() if _unstated(name, value, own, trainer)
        ]:
            mismatches += 1
            text = f"requests of {engine} without their own value get {facts.some(filled)}; the trainer states none"
            since = _fact_since(evidence, "default_sampling", engine)
            yield _certain("facts", "shaped", since, engine, 0, text, "default_sampling")
    if not mismatches:
        yield _certain("facts", "agree", None, None, 0, f"{len(live)} engines and the trainer state matching facts", "")


def _unstated(name: str, value: str, own: facts.Facts, trainer: facts.Facts) -> bool:
    """Whether a default changes the sampling of an engine's requests, and the trainer does not state it."""
    idle = facts.NEUTRAL.get(name)
    shapes = idle is not None and not facts.same_text(value, idle)
    return shapes and name not in trainer and value in own.get(name, value).split(facts.MIXED)


def _fact_since(evidence: EvidenceByEngine, fact: str, engine: str) -> int | None:
    """The step after which a fact changed, by commands and events; the run's first if neither shows a change."""
    for change in reversed(evidence.input.changes):
        if change.flag == fact and change.engine == engine and change.state == "applied" and change.step is not None:
            return change.step + 1
    for event in reversed(evidence.input.events):
        if event.kind == "facts" and event.text.startswith(fact) and "no longer" not in event.text:
            return 0 if event.step is None or event.step <= 1 else event.step
    return evidence.input.steps[0].step if evidence.input.steps else None


MAX_SKEW = 2
"""Versions that an engine may be behind the others: a rolling update passes through 1."""

MAX_STREAK = 5
"""Steps in a row that a whole fleet may sample from one version, or twice the longest earlier streak: some runs update
weights every few steps only."""


def versions(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``versions``: engines whose version stays while the trainer's advances: one of them, or all for too long."""
    live = [engine for engine in evidence.input.engines.values() if engine.health == "live"]
    lags = {engine.id: engine.lag for engine in live if engine.lag is not None}
    if not lags:
        yield unknown("versions", "engines or trainer report no policy version")
        return
    streak = min((_streak(evidence, engine, lag) for engine, lag in lags.items()), default=0)
    odd = 0
    for engine, lag in lags.items():
        others = [other for name, other in lags.items() if name != engine]
        nearest = max(min(others, default=lag), 0)
        if lag <= MAX_SKEW + nearest and not streak:
            continue
        odd += 1
        series = mean_lags(evidence.engine(engine)) if engine in evidence.engines else np.zeros(0)
        grown = np.flatnonzero(np.nan_to_num(series) > MAX_SKEW)
        since = int(evidence.engine(engine).first[grown[0]]) - MAX_SKEW if grown.size else None
        text = f"{engine} is {lag} versions behind the trainer"
        text += f", the next engine {nearest}" if others else ""
        text += f"; all tokens of the last {streak} steps were sampled from one version" if streak else ""
        yield _certain("versions", "stuck", since if since is None else max(since, 0), engine, 0, text, "", value=lag)
    if not odd:
        text = f"engines are at most {max(lags.values())} versions behind the trainer"
        yield _certain("versions", "advance", None, None, 0, text, "", value=max(lags.values()))


def _streak(evidence: EvidenceByEngine, engine: str, lag: float) -> int:
    """Number of latest steps whose tokens all come from the engine's current version; 0 if unremarkable."""
    if engine not in evidence.engines:
        return 0
    arrays = evidence.engine(engine)
    series = mean_lags(arrays)
    there = np.flatnonzero(np.isfinite(series))
    if there.size < MAX_STREAK or lag < series[there[-1]]:
        return 0
    version = (arrays.last - series)[there]
    moved = np.flatnonzero(np.abs(np.diff(version)) > SAME)
    ends = np.diff(np.concatenate([[-1], moved, [version.size - 1]]))
    latest, earlier = int(ends[-1]), int(ends[:-1].max(initial=0))
    return latest if latest > max(MAX_STREAK, 2 * earlier) else 0


SAME = 0.1
"""Versions that the mean of a step's tokens may move and still count as one version: a few tokens arrive late."""

LAG_STEPS, FIRST_STEPS, MORE_LAG = 2, 8, 1.5
"""The lag is high if that of the last LAG_STEPS steps exceeds by MORE_LAG that of the first FIRST_STEPS steps in which
it had settled. In healthy runs of the demo it is 0.6 to 1.7."""

SETTLED = 2.0
"""Range of the lag over FIRST_STEPS steps in which it has settled: a queue of fixed length."""

HIGH_LAG, HIGH_K3, CLIMBING_K3, SETTLED_K3 = 3.0, 0.01, 0.03, 0.1
"""Mean lag and k3 from which the lag is high even if it always was. One-step-off-policy training has a lag of 1, a
bounded queue of one step 2; many runs are designed for more and do well. A k3 of 0.01 lowers the effective sample size
by 2 %. While the queue of a new run fills up, k3 must be what PPO stops an update for (1.5 times a target of 0.01 to
0.02: Spinning Up, Stable-Baselines3); once the lag has settled, one that lowers the effective sample size by 20 %."""


def lag(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``lag``: the age of trained tokens in versions."""
    run = mean_lags(evidence.run)
    known = run[np.isfinite(run)]
    late = known[-LAG_STEPS:]
    if not late.size:
        yield unknown("lag", "trainer or engines report no policy version")
        return
    of_engines = {name: mean_lags(evidence.engine(name)) for name in evidence.engines}
    latest = {name: _late_mean(series) for name, series in of_engines.items()}
    behind = 0
    for name, own in latest.items():
        others = [other for other_name, other in latest.items() if other_name != name and other is not None]
        if own is None or not others or own <= min(others) + MAX_SKEW:
            continue
        behind += 1
        base = np.nanmin([_padded(of_engines[other], len(run)) for other in latest if other != name], axis=0)
        with np.errstate(invalid="ignore"):
            older = of_engines[name] > base + 1
        since = _first_step(evidence.engine(name), older)
        text = f"tokens of {name} are {own:.1f} versions old, those of another engine {min(others):.1f}"
        yield _certain("lag", "behind", since, name, 0, text, "", value=own)
    mean = max(float(late.mean()), float(known[-FIRST_STEPS:].mean()) if known.size >= FIRST_STEPS else 0.0)
    settled = _settled_lag(known)
    hurts = _lag_k3(evidence.run) > _tolerated_k3(known)
    if (mean > settled + MORE_LAG or (mean > HIGH_LAG and hurts)) and not behind:
        rose = mean > settled + MORE_LAG
        since = _first_wave(evidence.run, run > (settled + 1 if rose else HIGH_LAG))
        detail = "rose" if rose else "hurts"
        yield _certain("lag", "high", since, None, 0, f"trained tokens are {mean:.1f} versions old", detail, value=mean)
    elif not behind:
        yield _certain("lag", "steady", None, None, 0, f"trained tokens are {mean:.1f} versions old", "", value=mean)


def _settled_lag(known: Lags) -> float:
    """The lag that the run first settled in; infinite if it has not settled."""
    for at in range(1, known.size - FIRST_STEPS + 1):
        part = known[at : at + FIRST_STEPS]
        if np.ptp(part) <= SETTLED:
            return float(np.median(part))
    return math.inf


def _lag_k3(arrays: EvidenceArrays) -> float:
    """Recent mean k3 that is due to lag: that of all tokens minus that of matched tokens."""
    recent = arrays.moments[-FIRST_STEPS:]
    means = [
        recent[:, figure, 2].sum() / max(float(recent[:, count, 1].sum()), 1.0)
        for figure, count in ((FIGURE.k3, FIGURE.k3), (FIGURE.matched_k3, FIGURE.matched_d))
    ]
    return float(means[0] - means[1])


def _tolerated_k3(known: Lags) -> float:
    """The k3 that a large lag may cause without being high, by how the lag develops."""
    if known.size > FIRST_STEPS and np.ptp(known[-FIRST_STEPS:]) <= SETTLED:
        return SETTLED_K3
    climbs = bool((np.maximum.accumulate(known) - known < 1).all())
    return CLIMBING_K3 if climbs else HIGH_K3


def mean_lags(arrays: EvidenceArrays) -> Lags:
    """Mean lag of the tokens of each step [steps]; NaN if unknown."""
    n = arrays.lags[:, :-1, 1]
    values = np.arange(-1.0, n.shape[1] - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Lags = (n @ values) / n.sum(axis=1)
    return found


def _late_mean(series: Lags) -> float | None:
    late = series[-WINDOW:]
    late = late[np.isfinite(late)]
    return float(late.mean()) if late.size else None


def _padded(series: Lags, size: int) -> Lags:
    return np.concatenate([series, np.full(size - series.size, np.nan)])


def _since(evidence: EvidenceByEngine, holds: object) -> int | None:
    """The first of the latest consecutive steps for which the predicate holds."""
    assert callable(holds)
    since = None
    for step in reversed(evidence.input.steps):
        if not holds(step):
            if step.joins or step.unjoined:
                break
            continue
        since = step.step
    return since


def _first_step(arrays: EvidenceArrays, holds: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    at = holds.size - 1
    while at > 0 and (holds[at - 1] or not arrays.sums[at - 1, SUM.valid]):
        at -= 1
    return int(arrays.first[at]) if arrays.steps else 0


def _first_wave(arrays: EvidenceArrays, holds: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
    """The first step from which it holds at least every ``FIRST_STEPS`` steps to the end."""
    there = np.flatnonzero(holds)
    if not there.size:
        return int(arrays.first[-1])
    gaps = np.flatnonzero(np.diff(there) > FIRST_STEPS)
    return int(arrays.first[there[gaps[-1] + 1 if gaps.size else 0]])


def _certain(
    check: str, outcome: str, since: int | None, engine: str | None, n: int, text: str, detail: str, value: float = 0.0
) -> Finding:
    """The finding of a deterministic check over ``n`` sequences or tokens."""
    healthy = since is None and outcome == BY_NAME[check].healthy
    p = 1.0 if healthy else math.exp(-CERTAIN_LOG_E)
    return Finding(check, outcome, float(value), "", None, None, p, since, engine, 0, n, text, detail=detail)
