"""Checks of the objective and of engine health: entropy, reward, gradient, clips, speed, aborts. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from rltop.backend.api.verdict import Finding
from rltop.backend.diagnosis.checks.findings import CERTAIN_LOG_E, finding, run_and_engines, unknown
from rltop.backend.evidence import sequential
from rltop.backend.evidence.evidence_arrays import EvidenceByEngine
from rltop.backend.evidence.kernel import EXTREME, FIGURE, SUM
from rltop.backend.evidence.sequential import Floats, MeanShift

FIRST_STEPS = 5
"""The run's first steps, its baseline."""

LATE_STEPS = 3

COLLAPSED = 0.05
"""Share of the initial entropy below which a policy has collapsed."""


def _levels(moments: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = moments[:, 2] / moments[:, 1]
    return found


FALL, FALL_ERRORS = 0.062, 3.75
"""The entropy collapses if its log falls by FALL per step, and by FALL_ERRORS standard errors of the slope. Calibrated
on recorded runs of the demo: at most 0.052 in healthy runs, from any first step, and 0.12 where the objective punishes
entropy. Of simulated runs of 60 steps that fall by 0.04 a step, as healthy ones do, one in 1,500 counts as a collapse
if prompts vary the entropy by 20 %, one in 10,000 at 10 %; at 0.05 a step one in 400 and 1,500."""

FALL_STEPS = range(6, 17)
"""Lengths of the windows in steps: a fast fall shows in few steps, a slow one in many."""

FALL_REACH = 400
"""Steps that are searched for a fall. It counts until the entropy is back at its level in the middle of the fall."""

GROUPED = math.sqrt(8)
"""Factor on the error of a step's entropy for groups of eight similar sequences to a prompt. In runs of the demo the
choice of prompts varies the entropy by 2.8 of the errors of independent sequences."""


def entropy(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``entropy``: the trainer's mean entropy, against the run's first steps and over windows of steps."""
    arrays = evidence.run
    moments = arrays.moments[:, FIGURE.entropy]
    series = _levels(moments)
    there = np.flatnonzero(np.isfinite(series))
    if there.size < FALL_STEPS[0]:
        yield unknown("entropy", f"the trainer passes no entropy, or fewer than {FALL_STEPS[0]} steps have one")
        return
    first, now = float(series[there[:FIRST_STEPS]].mean()), float(series[there[-LATE_STEPS:]].mean())
    rate, at = _worst_fall(series[there], _errors(moments[there]))
    apart = there.size >= FIRST_STEPS + LATE_STEPS
    outcome, start = "steady", 0
    if (apart and now < COLLAPSED * first) or rate > FALL:
        outcome, start = "collapsed", int(there[at])
    elif apart and now < first / 2:
        outcome = "falling"
    elif apart and now > 1.5 * first:
        outcome = "rising"
    if outcome in ("collapsed", "falling") and rate <= FALL:
        start = int(np.flatnonzero(series < first / 2)[0])
    shift = MeanShift(0.0 if outcome == "steady" else CERTAIN_LOG_E, start, now, math.nan, math.nan, 0, 0)
    text = f"entropy {now:.3g} nats, {first:.3g} in the first steps"
    text += f"; it falls by {100 * rate:.0f} % a step or more" if rate > FALL else ""
    yield finding("entropy", outcome, shift, arrays, text=text, unit="nats")


def _errors(moments: Floats) -> Floats:
    """Errors of the logarithm of each step's mean [steps], for similar sequences of a prompt."""
    m, n, s, nn, ss, ns = moments.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = s / n
        found: Floats = GROUPED * np.sqrt(np.maximum(ss - 2 * mean * ns + mean * mean * nn, 0.0)) / np.maximum(s, 1e-9)
    return np.where(m > 1, found, np.inf)


def _worst_fall(levels: Floats, errors: Floats) -> tuple[float, int]:
    """The rate of the first significant fall that has not recovered, and the index of its first step.

    Args:
        levels: by step [steps].
        errors: errors of their logarithms [steps].
    """
    skipped = max(levels.size - FALL_REACH, 0)
    logs = np.log(np.maximum(levels[skipped:], 1e-9))
    wobble = float(np.mean(np.diff(logs, 2) ** 2)) / 6  # of independent errors a second difference has six variances
    squares = errors[skipped:] ** 2
    now = float(np.log(max(levels[-LATE_STEPS:].mean(), 1e-9)))
    best: tuple[int, float, int] | None = None
    for steps in FALL_STEPS:
        if steps > logs.size:
            break
        x = np.arange(steps) - (steps - 1) / 2
        parts = sliding_window_view(logs, steps)
        error = np.sqrt(np.maximum(wobble, sliding_window_view(squares, steps).mean(axis=1)) / (x @ x))
        rates = -(parts @ x) / (x @ x) - FALL_ERRORS * error
        for at in np.flatnonzero((rates > FALL) & (now < parts[:, steps // 2]))[:1]:
            found = int(at) + steps, float(rates[at]), skipped + int(at)
            best = found if best is None or found < best else best
    return (best[1], best[2]) if best else (0.0, 0)


def reward(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``reward``: mean reward of the latest steps against the best and the first."""
    arrays = evidence.run
    moments = arrays.moments[:, FIGURE.reward]
    there = np.flatnonzero(moments[:, 1] > 0)
    if there.size < FIRST_STEPS + LATE_STEPS:
        yield unknown("reward", "no rewards, or fewer than 8 steps with rewards")
        return
    late = there[-FIRST_STEPS:]
    now = sequential.stretches(moments[late].sum(axis=0)[None])
    series = _levels(moments)
    smooth = np.array([series[there[max(0, i - 4) : i + 1]].mean() for i in range(there.size)])
    best = int(np.argmax(smooth[:-LATE_STEPS])) if there.size > LATE_STEPS else 0
    peak = there[max(0, best - 4) : best + 1]
    top = sequential.stretches(moments[peak].sum(axis=0)[None])
    first = sequential.stretches(moments[there[:FIRST_STEPS]].sum(axis=0)[None])
    fall, error = float(top.mean[0] - now.mean[0]), math.sqrt(float(top.variance[0] + now.variance[0]))
    rise, rise_error = float(now.mean[0] - first.mean[0]), math.sqrt(float(first.variance[0] + now.variance[0]))
    outcome, start = "steady", 0
    if (onset := _collapse(series[there], moments[there])) is not None:
        outcome, start = "collapsed", int(there[onset])
    elif fall > 6 * error:
        outcome, start = "falling", int(there[best])
    elif rise > 5 * rise_error:
        outcome = "rising"
    shift = MeanShift(CERTAIN_LOG_E, start, float(now.mean[0]), math.nan, math.nan, int(now.sequences[0]), 0)
    text = f"reward {now.mean[0]:.3g}, {first.mean[0]:.3g} in the first steps, {top.mean[0]:.3g} at best"
    yield finding("reward", outcome, shift, arrays, text=text)


COLLAPSE_REACH = 20
"""Steps before the latest within which the reward has collapsed: slower falls come with the data, too."""

COLLAPSE_ERRORS, COLLAPSE_SPREAD = 6.0, 0.5
"""The fall of the latest steps from the best ones, in errors by the scatter of steps, and in standard deviations of the
rewards of sequences: half of one is 0.25 for rewards of 0 and 1."""


def _collapse(levels: Floats, moments: Floats) -> int | None:
    """The index of the first step of the latest collapse that has not recovered; None without one.

    Args:
        levels: mean reward by step [steps].
        moments: sums of the rewards [steps, MOMENT].
    """
    now = levels[-LATE_STEPS:].mean()
    for end in range(levels.size, max(levels.size - FALL_REACH, 2 * FIRST_STEPS), -1):
        found = _collapse_at_end(levels[:end], moments[:end])
        if found is not None:
            return found[0] if now < found[1] else None
    return None


def _collapse_at_end(levels: Floats, moments: Floats) -> tuple[int, float] | None:
    """The first step of a collapse that the latest steps end, and the reward half-way down; None without one."""
    recent = levels[-COLLAPSE_REACH - LATE_STEPS :]
    before, now = recent[:-LATE_STEPS], recent[-LATE_STEPS:]
    if before.size < 2 * FIRST_STEPS:
        return None
    best = sliding_window_view(before, FIRST_STEPS).mean(axis=1)
    at = int(np.argmax(best))
    _, n, s, _, ss, _ = moments[levels.size - recent.size + at :][:FIRST_STEPS].sum(axis=0)
    spread = math.sqrt(max(ss / n - (s / n) ** 2, 0.0))
    jumps = np.sort(np.diff(levels[:-LATE_STEPS]) ** 2)[:-1]  # the largest may be the collapse
    scatter = math.sqrt(float(jumps.mean()) / 2)
    error = scatter * math.sqrt(1 / LATE_STEPS + 1 / FIRST_STEPS)
    if best[at] - now.mean() <= max(COLLAPSE_ERRORS * error, COLLAPSE_SPREAD * spread):
        return None
    half = float(best[at] + now.mean()) / 2
    low = np.flatnonzero(before[at:] < half)
    first = at + int(low[0]) if low.size else before.size
    return levels.size - recent.size + first, half


SPIKE = 10.0
"""Multiple of the median: gradient norms are heavy-tailed, and clipped for that reason."""

GRADIENTS = ("grad_norm", "actor/grad_norm", "train/grad_norm", "optim/grad_norm", "policy/grad_norm")


def gradient(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``gradient``: the gradient norm that the trainer passes, against the run's median."""
    steps = evidence.input.steps
    name = next((name for name in GRADIENTS if any(name in step.trainer for step in steps[-3:])), None)
    values = [(step.step, step.trainer[name]) for step in steps if name and name in step.trainer]
    if name is None or len(values) < FIRST_STEPS + LATE_STEPS:
        yield unknown("gradient", "the trainer passes no grad_norm in step(metrics=...)")
        return
    numbers = np.array([value for _, value in values])
    median = float(np.median(numbers[:-LATE_STEPS]))
    late = numbers[-LATE_STEPS:]
    outcome = "steady"
    if not late.any():
        outcome = "vanished"
    elif np.median(late) > SPIKE * median > 0:
        outcome = "rising"
    elif not np.isfinite(late).all() or late.max() > SPIKE * median > 0:
        outcome = "spike"
    shift = MeanShift(0.0 if outcome == "steady" else CERTAIN_LOG_E, 0, float(late[-1]), math.nan, math.nan, 0, 0)
    arrays = evidence.run
    text = f"{name} {late[-1]:.3g}, median so far {median:.3g}"
    found = finding("gradient", outcome, shift, arrays, text=text)
    yield found


MORE_CLIPS = 0.1
"""Rise of the share of clipped tokens that is high: GSPO clips 15 % of tokens by design."""


def clip(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``clip``: the share of clipped tokens against the run's first steps."""
    steps = evidence.input.steps
    shares = [
        (low or 0.0) + (high or 0.0)
        for step in steps
        for low, high in [(step.values.get("clip_frac_low"), step.values.get("clip_frac_high"))]
        if low is not None or high is not None
    ]
    if len(shares) < FIRST_STEPS + LATE_STEPS:
        yield unknown("clip", "no clip bounds, or fewer than 8 steps with them")
        return
    first, now = float(np.mean(shares[:FIRST_STEPS])), float(np.mean(shares[-LATE_STEPS:]))
    high = now > 3 * first + MORE_CLIPS
    shift = MeanShift(CERTAIN_LOG_E if high else 0.0, 0, now, math.nan, math.nan, 0, 0)
    text = f"{100 * now:.2g} % of tokens clipped, {100 * first:.2g} % in the first steps"
    yield finding("clip", "high" if high else "as_noise", shift, evidence.run, text=text)


SLOW = 3.0
"""Factor in seconds per token by which healthy engines may differ: up to 2.5 over four steps in runs of the demo on two
shared cores."""

SPEED_STEPS = 4

SLOW_MEAN, SLOW_ERRORS = 2.0, 6.0
"""An engine is slow, too, if its mean ratio to the others is above the first by this many errors of its scatter over
steps: if steps vary by more than the ratio exceeds SLOW, no streak of them is slow."""

SPEED_WINDOWS = (8, 16, 32)
"""Steps over which the mean ratio is taken."""

SPEED_CHANCE, SPEED_REACH = 1e-5, 64
"""An engine is slow if its streak of slow steps has a lower probability than this, given how often the others were slow
in the last SPEED_REACH steps: up to a third of them on a busy machine."""


def _is_unlikely(others: list[Floats], steps: int) -> bool:
    """Whether ``steps`` slow steps in a row are unlikely, by how often the others exceed their own minimum."""
    values = [own[np.isfinite(own)][-SPEED_REACH:] for own in others]
    slow = sum(int((own > SLOW * own.min()).sum()) for own in values if own.size)
    return bool(((slow + 0.5) / (sum(own.size for own in values) + 1.0)) ** steps < SPEED_CHANCE)


def _slow_on_average(own: Floats, others: Floats) -> int | None:
    """The first step of the shortest window in which the mean ratio is high beyond its scatter; None without one."""
    there = np.flatnonzero(np.isfinite(own) & np.isfinite(others))
    for steps in SPEED_WINDOWS:
        if there.size >= steps:
            ratios = np.log(own[there[-steps:]] / others[there[-steps:]])
            error = float(ratios.std(ddof=1)) / math.sqrt(steps)
            if float(ratios.mean()) - SLOW_ERRORS * error > math.log(SLOW_MEAN):
                return int(there[-steps])
    return None


def speed(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``speed``: the least seconds per token of recent requests, against the other engines'.

    The least and not the mean: other work on the machine makes some requests slower, and none faster.
    """
    if len(evidence.engines) < 2:
        yield unknown("speed", "the run has one engine")
        return
    for engine in evidence.engines:
        own = evidence.engine(engine)
        rest = [evidence.engine(other).extremes[:, EXTREME.token_time] for other in evidence.engines if other != engine]
        a, b = own.extremes[:, EXTREME.token_time], np.median(rest, axis=0)
        there = np.flatnonzero(np.isfinite(a) & np.isfinite(b))[-SPEED_STEPS:]
        if there.size < SPEED_STEPS:
            yield unknown("speed", f"fewer than {SPEED_STEPS} steps with requests of this engine and another", engine)
            continue
        least = float(a[there].min())
        other = float(np.median([seconds[there].min() for seconds in rest]))
        slow = least > SLOW * other
        start = int(there[0])
        while slow and start and a[start - 1] > SLOW * other and np.isfinite(a[start - 1]):
            start -= 1
        slow = slow and _is_unlikely(rest, int(np.isfinite(a[start:] + b[start:]).sum()))
        if not slow and (onset := _slow_on_average(a, b)) is not None:
            slow, start = True, onset
        shift = MeanShift(CERTAIN_LOG_E if slow else 0.0, start, least / other, math.nan, math.nan, 0, 0)
        text = f"least time per token {1e3 * least:.2g} ms, {1e3 * other:.2g} ms on the other engines"
        yield finding("speed", "slow" if slow else "alike", shift, own, engine, text=text, unit="times")


MANY_ABORTS = 0.1
MANY_TRUNCATED = 0.5


def aborts(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``aborts``: the share of recent requests that were aborted or failed."""
    for engine, arrays in run_and_engines(evidence):
        late = arrays.sums[-LATE_STEPS:].sum(axis=0)
        n = float(late[SUM.requests])
        if not n:
            yield unknown("aborts", "no requests joined recently", engine)
            continue
        share = float(late[SUM.aborted] + late[SUM.failed]) / n
        shift = MeanShift(CERTAIN_LOG_E, max(arrays.steps - LATE_STEPS, 0), share, math.nan, math.nan, int(n), 0)
        text = f"{int(late[SUM.aborted])} of {int(n)} requests were aborted and {int(late[SUM.failed])} failed"
        yield finding("aborts", "many" if share > MANY_ABORTS else "few", shift, arrays, engine, text=text)


def truncation(evidence: EvidenceByEngine) -> Iterator[Finding]:
    """``truncation``: the share of recent answers that reached the token limit."""
    arrays = evidence.run
    late = arrays.sums[-LATE_STEPS:].sum(axis=0) if arrays.steps else np.zeros(1)
    n = float(late[SUM.requests]) if arrays.steps else 0.0
    if not n:
        yield unknown("truncation", "no requests joined recently")
        return
    share = float(late[SUM.truncated]) / n
    shift = MeanShift(CERTAIN_LOG_E, max(arrays.steps - LATE_STEPS, 0), share, math.nan, math.nan, int(n), 0)
    text = f"{int(late[SUM.truncated])} of {int(n)} answers reached the token limit"
    yield finding("truncation", "many" if share > MANY_TRUNCATED else "few", shift, arrays, text=text)
