"""Breaks the gap of the latest steps down by stratum, each with count and interval. Pure.

Only moments are kept per step, which add up; means and intervals are computed on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from rltop.backend.api.attribution import Attribution, Interval, LagRegression, Stratum
from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.measure.intervals import estimate, interval
from rltop.backend.summary import Floats, Regression, Strata, Summary
from rltop.backend.summary.dimensions import ALL, LAG, PROBABILITY
from rltop.backend.summary.environments import NAME as ENVIRONMENT
from rltop.backend.summary.environments import Environments
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.kernel import FIGURE, MOMENT
from rltop.backend.summary.lagline import Estimate, lag_line
from rltop.backend.summary.strata import Packed
from rltop.backend.util.bounded import ByteBoundedCache

TOTAL_BYTES = 32 << 20
"""Bound on the moments of past steps, 10 to 40 kB per engine and step: with 8 engines the last 100 to 400 steps."""

MAX_PROMPTS = 32
"""Prompt groups that are reported, those with the largest k3."""


@dataclass(frozen=True, slots=True)
class EngineSums:
    """Sums of one engine's part of a step. ``old``: ``matched`` is by old logprobs, not by lag 0."""

    strata: Packed
    matched: Packed
    old: bool
    lag_regression: Regression
    groups: Groups
    environments: Environments = field(default_factory=Environments)

    @property
    def nbytes(self) -> int:
        """Approximate memory use."""
        return 1000 + self.strata.nbytes + self.matched.nbytes + self.groups.nbytes + self.environments.nbytes


class StepParts:
    """The sums of the latest steps by engine, bounded by bytes."""

    def __init__(self, total_bytes: int = TOTAL_BYTES) -> None:
        self._steps: ByteBoundedCache[dict[str, EngineSums]] = ByteBoundedCache(total_bytes)

    def put(self, step: int, summaries: dict[str, Summary]) -> None:
        """Store a finished step, replacing an earlier one of that number (of a restarted trainer)."""
        parts = {
            engine: EngineSums(
                s.strata.packed(), s.matched.packed(), s.backend.n > 0, s.lag_regression, s.groups, s.environments
            )
            for engine, s in summaries.items()
            if s.gap.n
        }
        self.put_parts(step, parts)

    def put_parts(self, step: int, parts: dict[str, EngineSums]) -> None:
        """Store the parts of a finished step."""
        self._steps.put(step, parts, sum(part.nbytes for part in parts.values()))

    def of_step(self, step: int) -> dict[str, EngineSums]:
        """The parts of a step by engine; empty if none are kept."""
        return self._steps.get(step) or {}

    def attribution(self, steps: int, of_epochs: Sequence[StepCells] = ()) -> Attribution:
        """Attribution over the last ``steps`` steps (at least one); ``of_epochs``: cells of their flag epochs."""
        return attribution(list(self._steps.items())[-max(steps, 1) :], of_epochs)


def attribution(
    window: Sequence[tuple[int, dict[str, EngineSums]]], of_epochs: Sequence[StepCells] = ()
) -> Attribution:
    """Attribution over the steps of ``window`` with their parts; ``of_epochs``: cells of their flag epochs."""
    numbers = [number for number, _ in window]
    by_engine: dict[str, list[EngineSums]] = {}
    for _, parts in window:
        for engine, part in parts.items():
            by_engine.setdefault(engine, []).append(part)
    every = [part for parts in by_engine.values() for part in parts]
    old = any(part.old for part in every)
    matched = {e: Packed.total(p.matched for p in parts if p.old == old) for e, parts in by_engine.items()}
    strata = {engine: Packed.total(part.strata for part in parts) for engine, parts in by_engine.items()}
    of_matched = list(_strata(matched))
    return Attribution(
        numbers,
        [
            *_strata(strata),
            *of_environments(part.environments for part in every),
            *_epochs(of_epochs, set(numbers)),
            *_prompts(part.groups for part in every),
        ],
        of_matched,
        ("old" if old else "lag0") if of_matched else None,
        list(
            _lines({e: sum((p.lag_regression for p in parts), Regression()) for e, parts in by_engine.items()}, strata)
        ),
    )


def _strata(strata: dict[str, Strata]) -> Iterator[Stratum]:
    """Strata of the fleet, then each engine in total and by lag; tokens of unknown engines count as one engine."""
    fleet = sum(strata.values(), Strata())
    for dimension, label, moments in fleet:
        stratum = _stratum(dimension.name, label, moments)
        if dimension is PROBABILITY and (others := fleet.others[dimension.strata.index(label)]):
            per_others = float(moments[FIGURE.abs_d, MOMENT.s] / others)
            stratum = msgspec.structs.replace(stratum, abs_diff_per_1_minus_p=per_others)
        yield stratum
    named = {engine or "unknown": own for engine, own in sorted(strata.items())}
    for engine, own in named.items():
        yield from (_stratum("engine", engine, moments) for dimension, _, moments in own if dimension is ALL)
    for engine, own in named.items():
        yield from (_stratum(LAG.name, label, moments, engine) for dimension, label, moments in own if dimension is LAG)


def _stratum(dimension: str, label: str, moments: Floats, engine: str | None = None) -> Stratum:
    diff, abs_diff, k3, excess = map(_estimate, moments)
    ratio = Interval(
        1 + excess.mean,
        None if excess.low is None else 1 + excess.low,
        None if excess.high is None else 1 + excess.high,
    )
    sequences, tokens = int(moments[FIGURE.k3, MOMENT.sequences]), int(moments[FIGURE.k3, MOMENT.n])
    return Stratum(dimension, label, tokens, sequences, abs_diff, k3, ratio, diff, engine)


def _estimate(moments: Floats) -> Interval:
    return estimate(tuple(map(float, moments)))


def _epochs(steps: Sequence[StepCells], numbers: set[int]) -> Iterator[Stratum]:
    """Strata of each engine's flag epochs; the label has one ' per restart of the engine."""
    found: dict[EpochKey, Floats] = {}
    for step in steps:
        if step.step in numbers:
            for key, cell in step.cells.items():
                found[key] = found[key] + cell if key in found else cell
    lives: dict[str, list[str]] = {}
    for key in found:
        if key.life not in lives.setdefault(key.engine, []):
            lives[key.engine].append(key.life)
    for key, cell in sorted(found.items()):
        rows = [cell[epoch_sums.ROW[figure]] for figure in ("gap", "k3", "ratio")]
        if not rows[0][MOMENT.n]:
            continue
        label = f"{key.epoch}{chr(39) * lives[key.engine].index(key.life)}"
        abs_diff, k3, ratio = map(_estimate, rows)
        counts = int(rows[0][MOMENT.n]), int(rows[0][MOMENT.sequences])
        yield Stratum("flag_epoch", label, *counts, abs_diff, k3, ratio, engine=key.engine)


def of_environments(parts: Iterable[Environments]) -> Iterator[Stratum]:
    """The gap by environment, those with the most tokens first."""
    for name, moments in sum(parts, Environments()).moments.items():
        yield _stratum(ENVIRONMENT, name, moments)


def _prompts(groups: Iterable[Groups]) -> Iterator[Stratum]:
    total = sum(groups, Groups())
    tokens = total.moments[:, FIGURE.k3, MOMENT.n]
    means = np.divide(
        total.moments[:, FIGURE.k3, MOMENT.s], tokens, out=np.full(tokens.size, -np.inf), where=tokens > 0
    )
    for number in np.argsort(-means, kind="stable")[:MAX_PROMPTS]:
        if tokens[number]:
            yield _stratum("prompt", f"{int(total.keys[number]):016x}", total.moments[number])


def _lines(lines: dict[str, Regression], strata: dict[str, Strata]) -> Iterator[LagRegression]:
    named: list[tuple[str | None, Regression, Strata]] = [
        (None, sum(lines.values(), Regression()), sum(strata.values(), Strata()))
    ]
    named += [(engine or "unknown", line, strata[engine]) for engine, line in sorted(lines.items())]
    for engine, line, own in named:
        if (found := lag_line(line, own)) is not None:
            intercept, slope = (_interval(estimate, line.sequences) for estimate in (found.at_lag0, found.per_lag))
            yield LagRegression(intercept, slope, line.sequences, engine, found.lags, found.why)


def _interval(found: Estimate | None, sequences: int) -> Interval | None:
    if found is None:
        return None
    value, error = found
    return Interval(value) if error is None else interval(value, error, sequences)
