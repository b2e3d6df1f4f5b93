"""Where the gap comes from: the strata of the latest steps, each with its count and interval. Pure.

What is kept of a step is its moments, which add up; means and intervals are made when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from rltop.backend.effects import cells
from rltop.backend.effects.cells import Place, StepCells
from rltop.backend.gaps import attributed
from rltop.backend.gaps.attributed import Attribution, Interval, Stratum
from rltop.backend.gaps.intervals import estimate, interval
from rltop.backend.summary import Floats, Line, Strata, Summary
from rltop.backend.summary.dimensions import ALL, LAG, PROBABILITY
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.lagline import Estimate, lag_line
from rltop.backend.summary.strata import ABS, K3, D, X

MAX_PARTS = 1024
"""Steps times engines that are kept, at about 65 kB each: of 8 engines the last 110 steps."""

MAX_PROMPTS = 32
"""Prompt groups that are told, those with the largest k3."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of one engine's part of a step. ``old``: ``matched`` is by old logprobs, not by lag 0."""

    strata: Strata
    matched: Strata
    old: bool
    line: Line
    groups: Groups


class History:
    """The parts of the latest steps, bounded by their number; the oldest steps go first."""

    def __init__(self, max_parts: int = MAX_PARTS) -> None:
        self._max = max_parts
        self._held = 0
        self._steps: dict[int, dict[str, Part]] = {}

    def add(self, step: int, summaries: dict[str, Summary]) -> None:
        """A step is done. One that comes again, from a restarted trainer, takes the place of its first telling."""
        parts = {
            engine: Part(s.strata, s.matched, s.backend.n > 0, s.line, s.groups)
            for engine, s in summaries.items()
            if s.gap.n
        }
        self._held -= len(self._steps.pop(step, {}))
        self._steps[step] = parts
        self._held += len(parts)
        while self._held > self._max and len(self._steps) > 1:
            self._held -= len(self._steps.pop(next(iter(self._steps))))

    def attribution(self, steps: int, of_epochs: Sequence[StepCells] = ()) -> Attribution:
        """Over the last ``steps`` steps (at least one); ``of_epochs`` has the cells of their flag epochs."""
        window = list(self._steps.items())[-max(steps, 1) :]
        numbers = [number for number, _ in window]
        by_engine: dict[str, list[Part]] = {}
        for _, parts in window:
            for engine, part in parts.items():
                by_engine.setdefault(engine, []).append(part)
        every = [part for parts in by_engine.values() for part in parts]
        old = any(part.old for part in every)
        matched = {e: sum((p.matched for p in parts if p.old == old), Strata()) for e, parts in by_engine.items()}
        strata = {engine: sum((part.strata for part in parts), Strata()) for engine, parts in by_engine.items()}
        of_matched = list(_told(matched))
        return Attribution(
            numbers,
            [*_told(strata), *_epochs(of_epochs, set(numbers)), *_prompts(part.groups for part in every)],
            of_matched,
            ("old" if old else "lag0") if of_matched else None,
            list(_lines({e: sum((p.line for p in parts), Line()) for e, parts in by_engine.items()}, strata)),
        )


def _told(strata: dict[str, Strata]) -> Iterator[Stratum]:
    """The fleet's strata, then each engine's whole and its lags; tokens of no known engine are one of them."""
    fleet = sum(strata.values(), Strata())
    for dimension, label, moments in fleet:
        told = _stratum(dimension.name, label, moments)
        if dimension is PROBABILITY and (others := fleet.others[dimension.strata.index(label)]):
            told = msgspec.structs.replace(told, abs_diff_per_1_minus_p=float(moments[ABS, 2] / others))
        yield told
    named = {engine or "unknown": own for engine, own in sorted(strata.items())}
    for engine, own in named.items():
        yield from (_stratum("engine", engine, moments) for dimension, _, moments in own if dimension is ALL)
    for engine, own in named.items():
        yield from (_stratum(LAG.name, label, moments, engine) for dimension, label, moments in own if dimension is LAG)


def _stratum(dimension: str, label: str, moments: Floats, engine: str | None = None) -> Stratum:
    diff, abs_diff, k3, excess = (_estimate(moments[figure]) for figure in (D, ABS, K3, X))
    ratio = Interval(
        1 + excess.mean,
        None if excess.low is None else 1 + excess.low,
        None if excess.high is None else 1 + excess.high,
    )
    sequences, tokens = int(moments[K3, 0]), int(moments[K3, 1])
    return Stratum(dimension, label, tokens, sequences, abs_diff, k3, ratio, diff, engine)


def _estimate(moments: Floats) -> Interval:
    return estimate(tuple(map(float, moments)))


def _epochs(steps: Sequence[StepCells], numbers: set[int]) -> Iterator[Stratum]:
    """Each engine's flag epochs; lives are told apart by a ' per restart."""
    found: dict[Place, Floats] = {}
    for step in steps:
        if step.step in numbers:
            for place, cell in step.cells.items():
                found[place] = found[place] + cell if place in found else cell
    lives: dict[str, list[str]] = {}
    for place in found:
        if place.life not in lives.setdefault(place.engine, []):
            lives[place.engine].append(place.life)
    for place, cell in sorted(found.items()):
        rows = [cell[cells.ROW[figure]] for figure in ("gap", "k3", "ratio")]
        if not rows[0][cells.N]:
            continue
        label = f"{place.epoch}{chr(39) * lives[place.engine].index(place.life)}"
        abs_diff, k3, ratio = map(_estimate, rows)
        counts = int(rows[0][cells.N]), int(rows[0][cells.M])
        yield Stratum("flag_epoch", label, *counts, abs_diff, k3, ratio, engine=place.engine)


def _prompts(groups: Iterable[Groups]) -> Iterator[Stratum]:
    whole = sum(groups, Groups())
    tokens = whole.moments[:, K3, 1]
    means = np.divide(whole.moments[:, K3, 2], tokens, out=np.full(tokens.size, -np.inf), where=tokens > 0)
    for number in np.argsort(-means, kind="stable")[:MAX_PROMPTS]:
        if tokens[number]:
            yield _stratum("prompt", f"{int(whole.keys[number]):016x}", whole.moments[number])


def _lines(lines: dict[str, Line], strata: dict[str, Strata]) -> Iterator[attributed.Line]:
    named: list[tuple[str | None, Line, Strata]] = [(None, sum(lines.values(), Line()), sum(strata.values(), Strata()))]
    named += [(engine or "unknown", line, strata[engine]) for engine, line in sorted(lines.items())]
    for engine, line, own in named:
        if (found := lag_line(line, own)) is not None:
            foot, slope = (_told_end(end, line.sequences) for end in (found.at_lag0, found.per_lag))
            yield attributed.Line(foot, slope, line.sequences, engine, found.lags, found.why)


def _told_end(end: Estimate | None, sequences: int) -> Interval | None:
    if end is None:
        return None
    value, error = end
    return Interval(value) if error is None else interval(value, error, sequences)
