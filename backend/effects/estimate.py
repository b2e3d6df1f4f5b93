"""What a switch did: before, after, the difference with its interval, and against engines that were not switched. Pure.

A step is *before* if all its tokens of the switched engines are of the flag epoch that the switch ended, *after* if all
are of the one it began. A step with both is left out: on the one side it has the ends of sequences, on the other their
beginnings. So the window ends by itself at the next switch, revert or restart of any of these engines.

Speed comes from the engines' states, second by second, by the same rules with bins of ``BIN_S`` for steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rltop.backend import api
from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.effects.level_shift import Bools, Floats, LevelShift, fit, needed
from rltop.backend.effects.throughput import BIN_S, SpeedSample

WINDOW = 40
"""Steps, on either side, that are looked at: longer, and a learning run's trend is no longer a line."""

WINDOW_BINS = 40
"""Observations of speed, of ``BIN_S`` seconds each, that are looked at on either side."""

MIN_SIDE = 5
"""Observations a side must have before anything is said."""

OWN_TREND, AGAINST_TREND = True, False
"""Engines that share policy and prompts share their trend: it is not modelled again in the difference between them."""

SURE = 0.999
"""Level of the intervals by which a comparison is called confounded; of several checks none should cry wolf."""

LAG_MATTERS, PROMPT_MATTERS = 0.25, 0.05
"""A shift of the mean lag (versions) and of the mean prompt (share of its length) that confounds."""


@dataclass(frozen=True)
class EffectFigure:
    """One line of the answer.

    Attributes:
        name, unit: of the figure; a row of a cell, or ``speed``.
        title: in words.
        samples: what a mean of it runs over.
        floor, share: a difference below ``max(floor, share * level before)`` does not matter to anybody.
        by_lag: also depends on how stale the policy is.
    """

    name: str
    unit: str
    title: str
    samples: str
    floor: float
    share: float
    by_lag: bool = False

    def matters(self, before: float) -> float:
        """The smallest difference that matters, given the level before."""
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
    """A switch on one engine: from flag epoch ``epoch`` on its tokens are of after. ``life`` is of its process."""

    life: str
    epoch: int


@dataclass(frozen=True, slots=True)
class FigureSeries:
    """One figure over a window: place ``x``, value ``y``, sample size ``n`` and side of each observation."""

    x: Floats
    y: Floats
    n: Floats
    after: Bools

    @classmethod
    def of(cls, rows: Iterable[tuple[float, float, float, bool]], limit: int) -> FigureSeries:
        """From (x, y, n, after) in order of x, at most the nearest ``limit`` of a side."""
        found = list(rows)
        kept = [r for r in found if not r[3]][-limit:] + [r for r in found if r[3]][:limit]
        x, y, n, after = zip(*kept, strict=True) if kept else ((), (), (), ())
        return cls(np.array(x, float), np.array(y, float), np.array(n, float), np.array(after, bool))

    def sides(self) -> tuple[int, int]:
        """Observations before and after."""
        after = int(np.count_nonzero(self.after))
        return self.after.size - after, after

    def fit(self, *, trend: bool, level: float = 0.95) -> LevelShift | None:
        """None while a side has fewer than ``MIN_SIDE``."""
        if min(self.sides()) < MIN_SIDE:
            return None
        return fit(self.x, self.y, self.n, self.after, trend=trend, level=level)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of the window: its place, its side, its cells of the switched engines and of the others, each summed."""

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
    """What a command did.

    Args:
        changes: the command on each engine that it switched, at least one.
        marks: by engine, for each of these.
        steps: in the order in which they closed.
        samples: of the speed of all engines.
        present: life and flag epoch of every engine now.
    """
    rows, mixed, others = _window(steps, marks)
    ended = _ended(marks, present)
    confounds = _confounds(rows, bool(others))
    found = []
    for figure in FIGURES:
        if figure.name == SPEED:
            own, against = _speeds(samples, marks, others)
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


def _side(place: EpochKey, marks: Mapping[str, SwitchMark]) -> str:
    mark = marks[place.engine]
    if place.life != mark.life:
        return "other"
    return {mark.epoch - 1: "before", mark.epoch: "after"}.get(place.epoch, "other")


def _window(
    steps: Sequence[StepCells], marks: Mapping[str, SwitchMark]
) -> tuple[list[_Step], int, dict[str, EpochKey]]:
    """The steps of either side, how many were mixed, and the engines to compare with, each with its one place."""
    before: list[tuple[int, StepCells, bool]] = []
    after: list[tuple[int, StepCells, bool]] = []
    mixed = 0
    for x in reversed(range(len(steps))):
        sides = {_side(place, marks) for place in steps[x].cells if place.engine in marks}
        mixed += sides == {"before", "after"}
        if len(sides) == 1 and "other" not in sides:
            (after if "after" in sides else before).append((x, steps[x], "after" in sides))
        if len(before) == WINDOW:
            break
    kept = [*before, *after[-WINDOW:]]
    kept.sort(key=lambda found: found[0])
    others = _others([(step, side) for _, step, side in kept], marks)
    rows = []
    for x, step, is_after in kept:
        switched = [cell for place, cell in step.cells.items() if place.engine in marks]
        compared = {place: cell for place, cell in step.cells.items() if place.engine in others}
        if not compared.keys() <= set(others.values()):  # one of them was switched: another thing to compare with
            compared = {}
        rows.append(_Step(step.step, x, is_after, sum(switched, epoch_sums.empty()), _total(list(compared.values()))))
    return rows, mixed, others


def _total(found: Sequence[epoch_sums.Cell]) -> epoch_sums.Cell | None:
    return sum(found, epoch_sums.empty()) if found else None


def _others(kept: Sequence[tuple[StepCells, bool]], marks: Mapping[str, SwitchMark]) -> dict[str, EpochKey]:
    """Engines that were not switched, each with the one place whose tokens are on both sides of the switch."""
    before = {place for step, after in kept if not after for place in step.cells}
    later = {place for step, after in kept if after for place in step.cells}
    return {place.engine: place for place in sorted(before & later) if place.engine not in marks}


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
    at = epoch_sums.ROW[figure]
    found = [(row.x, row.switched[at], row.after) for row in rows]
    return FigureSeries.of(
        [(x, c[epoch_sums.S] / c[epoch_sums.N], c[epoch_sums.N], after) for x, c, after in found if c[epoch_sums.N]],
        WINDOW,
    )


def _against(rows: Sequence[_Step], figure: str) -> FigureSeries:
    """The differences, switched less not switched, of the steps that have both."""
    at = epoch_sums.ROW[figure]
    found = []
    for row in rows:
        if row.others is None or not row.switched[at, epoch_sums.N] or not row.others[at, epoch_sums.N]:
            continue
        (n, s), (m, t) = (cell[at, [epoch_sums.N, epoch_sums.S]] for cell in (row.switched, row.others))
        found.append((row.x, s / n - t / m, n * m / (n + m), row.after))
    return FigureSeries.of(found, WINDOW)


def _speeds(
    samples: Mapping[str, Sequence[SpeedSample]], marks: Mapping[str, SwitchMark], others: Mapping[str, EpochKey]
) -> tuple[FigureSeries, FigureSeries | None]:
    """Tokens per second of an engine while it works, in bins of time, and less that of the others."""
    own = _bins(
        (sample, side)
        for engine in marks
        for sample in samples.get(engine, ())
        if (side := _side(EpochKey(engine, sample.life, sample.epoch), marks)) != "other"
    )
    if not others:
        return _speed_series(own), None
    rest = _bins(
        (sample, "same" if (sample.life, sample.epoch) == (place.life, place.epoch) else "other")
        for engine, place in others.items()
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
    """Sides, seconds and tokens by number of the bin, in order."""
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
    """What else changed with the switch, and whether only figures that depend on lag are touched by it."""
    found: dict[str, bool] = {}
    for figure, words, unit, only_lag in (
        ("lag", "the policy lag", "versions", True),
        ("prompt", "the prompts' length", "tokens", False),
        ("temperature", "the sampling temperature", "", False),
    ):
        shift = (_against(rows, figure) if compared else _own(rows, figure)).fit(
            trend=AGAINST_TREND if compared else OWN_TREND, level=SURE
        )
        if shift is None or shift.low <= 0 <= shift.high:
            continue
        level = abs(_own(rows, figure).y.mean())
        least = {"lag": LAG_MATTERS, "prompt": PROMPT_MATTERS * level, "temperature": 1e-6}[figure]
        if abs(shift.shift) >= least:
            than = " against the other engines" if compared else ""
            found[f"{words} changed by {shift.shift:+.3g} {unit}".rstrip() + than] = only_lag
    return found


def _row(
    figure: EffectFigure, own: FigureSeries, against: FigureSeries | None, ended: str, confounds: Mapping[str, bool], limit: int,
    every: str,
) -> api.EffectRow:  # fmt: skip
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
        judged.pulled if judged else 0,
    )  # fmt: skip


def _estimate(shift: LevelShift | None) -> api.EffectEstimate | None:
    return api.EffectEstimate(shift.before, shift.after, shift.shift, shift.low, shift.high) if shift else None


def _verdict(
    figure: EffectFigure, own: LevelShift | None, judged: LevelShift | None, series: FigureSeries, trend: bool, ended: str,
    confounds: Sequence[str], limit: int,
) -> tuple[str, str, int | None]:  # fmt: skip
    """Verdict, reason, and how many more observations it takes."""
    before, after = series.sides()
    if not before or not after:
        side = "before" if not before else "after"
        if ended or not before:
            return "unknown", f"this hub measured nothing {side} the switch", None
        return "not_yet", "nothing was measured after the switch so far", MIN_SIDE
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
    least = figure.matters(own.before)
    if judged.half <= least:
        return "none", "", None
    noise = f"+-{judged.half:.3g}, {least:.2g} matters"
    if ended:
        return "unclear", noise, None
    # It takes until the interval shuts out either 0, if the difference is what it looks like, or all that matters.
    wanted = max(least, abs(judged.shift))
    more = needed(series.x, series.after, trend=trend, half=judged.half, wanted=wanted, limit=limit)
    if more is None:
        return "unclear", f"too noisy: {noise}", None
    return "not_yet", noise, more


def _observations(count: int) -> str:
    return f"{count} observation{'s' if count != 1 else ''}"
