"""Estimates the effect of a switch: the level shift of each figure, also against engines not switched. Pure.

A step is *before* if all its tokens of the switched engines belong to the flag epoch that the switch ended, *after* if
all belong to the epoch that it began. A step with both is left out: one side has the ends of sequences, the other their
beginnings. So the window ends at the next switch, revert or restart of any of these engines.

Speed comes from the engines' states every second, by the same rules with bins of ``BIN_S`` instead of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rltop.backend import api
from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.effects.level_shift import Bools, Floats, LevelShift, fit, observations_needed
from rltop.backend.effects.throughput import BIN_S, SpeedSample
from rltop.backend.summary.kernel import MOMENT

WINDOW = 40
"""Steps that are used on either side. Over longer windows the trend of a learning run is no longer linear."""

WINDOW_BINS = 40
"""Observations of speed, of ``BIN_S`` seconds each, that are used on either side."""

MIN_SIDE = 5
"""Fewest observations on a side for an estimate."""

OWN_TREND, AGAINST_TREND = True, False
"""Whether to model a trend. Engines with the same policy and prompts share it, so their difference needs none."""

CONFOUND_LEVEL = 0.999
"""Confidence level at which a comparison counts as confounded; high, since there are several checks."""

MIN_LAG_SHIFT, MIN_PROMPT_SHIFT = 0.25, 0.05
"""Least shift of the mean lag (versions) and of the mean prompt length (relative) that counts as a confounder."""


@dataclass(frozen=True)
class EffectFigure:
    """A figure of the estimate.

    Attributes:
        name, unit: of the figure; a row of a cell, or ``speed``.
        title: display name.
        samples: unit of the samples that its mean is taken over.
        floor, share: a difference below ``max(floor, share * level before)`` is negligible.
        by_lag: the figure also depends on the staleness of the policy.
    """

    name: str
    unit: str
    title: str
    samples: str
    floor: float
    share: float
    by_lag: bool = False

    def relevant(self, before: float) -> float:
        """The smallest relevant difference, given the level before."""
        return max(self.floor, self.share * abs(before))


SPEED = "speed"

FIGURES: tuple[EffectFigure, ...] = (
    EffectFigure("gap", "nats", "gap, mean |d|", "tokens", 0.005, 0.25, by_lag=True),
    EffectFigure("k3", "nats", "k3", "tokens", 0.001, 0.25, by_lag=True),
    EffectFigure("ratio", "", "mean ratio", "tokens", 0.01, 0.0),
    EffectFigure("clip", "share", "clip rate", "tokens", 0.01, 0.25, by_lag=True),
    EffectFigure("entropy", "nats", "entropy", "tokens", 0.01, 0.1),
    EffectFigure(SPEED, "tokens/s", "tokens/s, busy", "s", 0.0, 0.1),
    EffectFigure("latency", "s", "latency", "requests", 0.0, 0.1),
    EffectFigure("token_time", "s/token", "time per token", "requests", 0.0, 0.1),
)


@dataclass(frozen=True, slots=True)
class SwitchMark:
    """A switch on one engine: flag epoch ``epoch`` is the first after it. ``life``: epoch of the engine process."""

    life: str
    epoch: int


@dataclass(frozen=True, slots=True)
class FigureSeries:
    """One figure over a window: time ``x``, value ``y``, sample size ``n`` and side of each observation."""

    x: Floats
    y: Floats
    n: Floats
    after: Bools

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float, float, bool]], limit: int) -> FigureSeries:
        """From (x, y, n, after) in order of x; at most ``limit`` observations per side, the nearest to the switch."""
        every = list(rows)
        kept = [r for r in every if not r[3]][-limit:] + [r for r in every if r[3]][:limit]
        x, y, n, after = zip(*kept, strict=True) if kept else ((), (), (), ())
        return cls(np.array(x, float), np.array(y, float), np.array(n, float), np.array(after, bool))

    def sides(self) -> tuple[int, int]:
        """Number of observations before and after."""
        after = int(np.count_nonzero(self.after))
        return self.after.size - after, after

    def fit(self, *, trend: bool, level: float = 0.95) -> LevelShift | None:
        """The level shift; None if a side has fewer than ``MIN_SIDE`` observations."""
        if min(self.sides()) < MIN_SIDE:
            return None
        return fit(self.x, self.y, self.n, self.after, trend=trend, level=level)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of the window: index, side, and the summed cells of the switched engines and of the others."""

    number: int
    x: int
    after: bool
    switched: epoch_sums.Cell
    others: epoch_sums.Cell | None


def effect(
    changes: Sequence[api.Change],
    marks: Mapping[str, SwitchMark],
    steps: Sequence[StepCells],
    samples: Mapping[str, Sequence[SpeedSample]],
    present: Mapping[str, tuple[str, int]],
) -> api.Effect:
    """Estimate the effect of a command.

    Args:
        changes: the command on each engine that it switched, at least one.
        marks: of these engines.
        steps: in the order in which they closed.
        samples: speed of all engines.
        present: current process epoch and flag epoch of every engine.
    """
    rows, mixed, others = _window(steps, marks)
    ended = _ended(marks, present)
    confounds = _confounds(rows, bool(others))
    found = []
    for figure in FIGURES:
        if figure.name == SPEED:
            own, against = _speed_both(samples, marks, others)
            found.append(_row(figure, own, against, ended, confounds, WINDOW_BINS, f"{BIN_S:g} s"))
        else:
            own, against = _own(rows, figure.name), _against(rows, figure.name) if others else None
            found.append(_row(figure, own, against, ended, confounds, WINDOW, "step"))
    numbers = [row.number for row in rows]
    first = changes[0]
    return api.Effect(
        first.command, first.flag, first.old, first.new or first.wanted, sorted(marks), sorted(others),
        min(numbers, default=None), max(numbers, default=None), mixed, ended, list(confounds), found, first.reverts,
    )  # fmt: skip


# --- the window -----------------------------------------------------------------------------------------------------


def _side(key: EpochKey, marks: Mapping[str, SwitchMark]) -> str:
    mark = marks[key.engine]
    if key.life != mark.life:
        return "other"
    return {mark.epoch - 1: "before", mark.epoch: "after"}.get(key.epoch, "other")


def _window(
    steps: Sequence[StepCells], marks: Mapping[str, SwitchMark]
) -> tuple[list[_Step], int, dict[str, EpochKey]]:
    """The steps of either side, the number of mixed steps, and the control engines, each with its flag epoch."""
    before: list[tuple[int, StepCells, bool]] = []
    after: list[tuple[int, StepCells, bool]] = []
    mixed = 0
    for x in reversed(range(len(steps))):
        sides = {_side(key, marks) for key in steps[x].cells if key.engine in marks}
        mixed += sides == {"before", "after"}
        if len(sides) == 1 and "other" not in sides:
            (after if "after" in sides else before).append((x, steps[x], "after" in sides))
        if len(before) == WINDOW:
            break
    kept = [*before, *after[-WINDOW:]]
    kept.sort(key=lambda entry: entry[0])
    others = _others([(step, side) for _, step, side in kept], marks)
    rows = []
    for x, step, is_after in kept:
        switched = [cell for key, cell in step.cells.items() if key.engine in marks]
        control = {key: cell for key, cell in step.cells.items() if key.engine in others}
        if not control.keys() <= set(others.values()):  # a control engine was switched itself
            control = {}
        rows.append(_Step(step.step, x, is_after, sum(switched, epoch_sums.empty()), _total(list(control.values()))))
    return rows, mixed, others


def _total(found: Sequence[epoch_sums.Cell]) -> epoch_sums.Cell | None:
    return sum(found, epoch_sums.empty()) if found else None


def _others(kept: Sequence[tuple[StepCells, bool]], marks: Mapping[str, SwitchMark]) -> dict[str, EpochKey]:
    """Engines that were not switched, each with its flag epoch that has tokens on both sides of the switch."""
    before = {key for step, after in kept if not after for key in step.cells}
    later = {key for step, after in kept if after for key in step.cells}
    return {key.engine: key for key in sorted(before & later) if key.engine not in marks}


def _ended(marks: Mapping[str, SwitchMark], present: Mapping[str, tuple[str, int]]) -> str:
    for engine, mark in sorted(marks.items()):
        life, epoch = present.get(engine, (mark.life, mark.epoch))
        if life != mark.life:
            return f"engine {engine} restarted"
        if epoch > mark.epoch:
            return f"engine {engine} was switched again"
    return ""


# --- series ---------------------------------------------------------------------------------------------------------


def _own(rows: Sequence[_Step], figure: str) -> FigureSeries:
    number = epoch_sums.ROW[figure]
    sums = [(row.x, row.switched[number, MOMENT.s], row.switched[number, MOMENT.n], row.after) for row in rows]
    return FigureSeries.of([(x, s / n, n, after) for x, s, n, after in sums if n], WINDOW)


def _against(rows: Sequence[_Step], figure: str) -> FigureSeries:
    """The difference, switched minus control engines, of the steps that have both."""
    number = epoch_sums.ROW[figure]
    found = []
    for row in rows:
        if row.others is None:
            continue
        (n, s), (m, t) = (cell[number, [MOMENT.n, MOMENT.s]] for cell in (row.switched, row.others))
        if n and m:
            found.append((row.x, s / n - t / m, n * m / (n + m), row.after))
    return FigureSeries.of(found, WINDOW)


def _speed_both(
    samples: Mapping[str, Sequence[SpeedSample]], marks: Mapping[str, SwitchMark], others: Mapping[str, EpochKey]
) -> tuple[FigureSeries, FigureSeries | None]:
    """Tokens per second of a working engine in bins of time, and its difference to the control engines."""
    own = _bins(
        (sample, side)
        for engine in marks
        for sample in samples.get(engine, ())
        if (side := _side(EpochKey(engine, sample.life, sample.epoch), marks)) != "other"
    )
    if not others:
        return _speed_series(own), None
    rest = _bins(
        (sample, "same" if (sample.life, sample.epoch) == (key.life, key.epoch) else "other")
        for engine, key in others.items()
        for sample in samples.get(engine, ())
    )
    both = []
    for x, (sides, seconds, tokens) in own.items():
        if len(sides) == 1 and x in rest and rest[x][0] == {"same"}:
            _, time, count = rest[x]
            weight = seconds * time / (seconds + time)
            both.append((x, tokens / seconds - count / time, weight, sides == {"after"}))
    return _speed_series(own), FigureSeries.of(both, WINDOW_BINS)


def _bins(found: Iterable[tuple[SpeedSample, str]]) -> dict[float, tuple[set[str], float, float]]:
    """Sides, seconds and tokens by bin number, in order."""
    bins: dict[float, tuple[set[str], float, float]] = {}
    for sample, side in found:
        x = sample.bin
        sides, seconds, tokens = bins.get(x, (set(), 0.0, 0.0))
        bins[x] = sides | {side}, seconds + sample.seconds, tokens + sample.tokens
    return dict(sorted(bins.items()))


def _speed_series(bins: Mapping[float, tuple[set[str], float, float]]) -> FigureSeries:
    pure = [(x, b) for x, b in bins.items() if len(b[0]) == 1]
    return FigureSeries.of([(x, tokens / s, s, sides == {"after"}) for x, (sides, s, tokens) in pure], WINDOW_BINS)


# --- verdicts -------------------------------------------------------------------------------------------------------


def _confounds(rows: Sequence[_Step], compared: bool) -> dict[str, bool]:
    """Other changes at the switch, each with whether it affects only figures that depend on lag."""
    found: dict[str, bool] = {}
    for figure, words, unit, only_lag in (
        ("lag", "policy lag", "versions", True),
        ("prompt", "prompt length", "tokens", False),
        ("temperature", "sampling temperature", "", False),
    ):
        shift = (_against(rows, figure) if compared else _own(rows, figure)).fit(
            trend=AGAINST_TREND if compared else OWN_TREND, level=CONFOUND_LEVEL
        )
        if shift is None or shift.low <= 0 <= shift.high:
            continue
        level = abs(_own(rows, figure).y.mean())
        least = {"lag": MIN_LAG_SHIFT, "prompt": MIN_PROMPT_SHIFT * level, "temperature": 1e-6}[figure]
        if abs(shift.shift) >= least:
            relative = " relative to the other engines" if compared else ""
            found[f"{words} changed by {shift.shift:+.3g} {unit}".rstrip() + relative] = only_lag
    return found


def _row(
    figure: EffectFigure,
    own: FigureSeries,
    against: FigureSeries | None,
    ended: str,
    confounds: Mapping[str, bool],
    limit: int,
    every: str,
) -> api.EffectRow:
    shift = own.fit(trend=OWN_TREND)
    compared = against.fit(trend=AGAINST_TREND) if against is not None else None
    judged, series, trend = (shift, own, OWN_TREND)
    if against is not None:
        judged, series, trend = compared, against, AGAINST_TREND
    reasons = [words for words, only_lag in confounds.items() if figure.by_lag or not only_lag]
    verdict, reason, more = _verdict(figure, shift, judged, series, trend, ended, reasons, limit)
    before, after = own.sides()
    return api.EffectRow(
        figure.name, figure.unit, _estimate(shift), _estimate(compared), verdict, reason, more, every, before, after,
        figure.samples, round(float(own.n[~own.after].sum())), round(float(own.n[own.after].sum())),
        judged.winsorised if judged else 0,
    )  # fmt: skip


def _estimate(shift: LevelShift | None) -> api.EffectEstimate | None:
    return api.EffectEstimate(shift.before, shift.after, shift.shift, shift.low, shift.high) if shift else None


def _verdict(
    figure: EffectFigure,
    own: LevelShift | None,
    judged: LevelShift | None,
    series: FigureSeries,
    trend: bool,
    ended: str,
    confounds: Sequence[str],
    limit: int,
) -> tuple[str, str, int | None]:
    """Verdict, reason, and the number of further observations that it takes."""
    before, after = series.sides()
    if not before or not after:
        side = "before" if not before else "after"
        if ended or not before:
            return "unknown", f"no observations {side} the switch", None
        return "not_yet", "no observations after the switch yet", MIN_SIDE
    if judged is None or own is None:
        if before < MIN_SIDE:
            return "unclear", f"only {_observations(before)} before the switch", None
        if ended:
            return "unclear", f"only {_observations(after)} after the switch", None
        return "not_yet", f"{_observations(after)} after the switch", max(MIN_SIDE - after, 1)
    if confounds:
        return "confounded", "; ".join(confounds), None
    if not judged.low <= 0 <= judged.high:
        return ("up" if judged.shift > 0 else "down"), "", None
    least = figure.relevant(own.before)
    if judged.half <= least:
        return "none", "", None
    noise = f"+-{judged.half:.3g}; {least:.2g} is relevant"
    if ended:
        return "unclear", noise, None
    # Enough observations exclude either 0, if the estimate is right, or every relevant difference.
    wanted = max(least, abs(judged.shift))
    more = observations_needed(series.x, series.after, trend=trend, half=judged.half, wanted=wanted, limit=limit)
    if more is None:
        return "unclear", f"too noisy: {noise}", None
    return "not_yet", noise, more


def _observations(count: int) -> str:
    return f"{count} observation{'s' if count != 1 else ''}"
