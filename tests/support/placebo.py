"""Imaginary switches in healthy recordings. ``python -m tests.support.placebo`` prints how often an interval has 0."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rltop.backend import api
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.effects.estimate import FIGURES, MIN_SIDE, WINDOW, SwitchMark, effect
from tests.support.recordings import Recording, load

HEALTHY = ("healthy-t1", "healthy-t07")
SWITCHES = 200
MIXED = 2
"""Steps left out at a switch, as at real ones."""

SEED = 20


@dataclass(frozen=True)
class Placebo:
    """Nothing happened to ``engines`` of a run at ``step``; asked after ``after`` more steps."""

    run: str
    step: int
    after: int
    engines: tuple[str, ...]


def placebos(runs: Mapping[str, Recording], seed: int = SEED, count: int = SWITCHES) -> Iterator[Placebo]:
    """Half on the whole fleet, half on one engine; anywhere in the runs, asked at any time after."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        run = sorted(runs)[int(rng.integers(len(runs)))]
        engines = sorted(runs[run].samples)
        chosen = tuple(engines) if number % 2 else (engines[int(rng.integers(len(engines)))],)
        step = int(rng.integers(MIN_SIDE + 1, len(runs[run].steps) - MIN_SIDE - MIXED))
        yield Placebo(run, step, int(rng.integers(MIN_SIDE, WINDOW + 1)), chosen)


def imagine(run: Recording, placebo: Placebo) -> api.Effect:
    """The effect of a switch that never was."""
    at, engines = placebo.step, placebo.engines

    def relabel(place: EpochKey, after: bool) -> EpochKey:
        return place._replace(epoch=place.epoch + 1) if after and place.engine in engines else place

    steps = []
    for n, step in enumerate(run.steps[: at + MIXED + placebo.after]):
        if at <= n < at + MIXED:
            continue
        cells = {relabel(place, n >= at): cell for place, cell in step.cells.items()}
        steps.append(StepCells(step.step, step.closed, cells))
    began, until = run.steps[at].closed, steps[-1].closed
    samples = {
        engine: [replace(s, epoch=s.epoch + (engine in engines and s.time > began)) for s in found if s.time < until]
        for engine, found in run.samples.items()
    }
    marks = {engine: SwitchMark(life, epoch + 1) for engine, (life, epoch) in run.present.items() if engine in engines}
    changes = [api.Change("placebo", engine, "none", "same", "applied", 0.0) for engine in engines]
    present = {engine: (life, epoch + (engine in engines)) for engine, (life, epoch) in run.present.items()}
    return effect(changes, marks, steps, samples, present)


def judged(answer: api.Effect, row: api.EffectRow) -> api.EffectEstimate | None:
    """The estimate that the verdict is by."""
    return row.against if answer.against else row.own


KINDS = ("fleet", "one engine", "against the other", "judged")


def coverage(runs: Mapping[str, Recording], seed: int, count: int) -> dict[tuple[str, str], list[tuple[bool, float]]]:
    """By kind and figure: does the interval hold 0, and its half width over the level before."""
    found: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    for placebo in placebos(runs, seed, count):
        answer = imagine(runs[placebo.run], placebo)
        for row in answer.rows:
            own = "fleet" if len(placebo.engines) > 1 else "one engine"
            for kind, estimate in zip((own, *KINDS[2:]), (row.own, row.against, judged(answer, row)), strict=True):
                if estimate is not None:
                    level = abs(row.own.before) if row.own else 0.0
                    half = (estimate.high - estimate.low) / 2
                    width = half / level if level else math.nan
                    found.setdefault((kind, row.figure), []).append((estimate.low <= 0 <= estimate.high, width))
    return found


def main(arguments: Sequence[str]) -> None:
    """Print the table of ``docs/effects.md``. Arguments: seed, imaginary switches, runs."""
    seed, count = (int(text) for text in arguments[:2]) if arguments else (SEED, SWITCHES)
    found = coverage({name: load(name) for name in arguments[2:] or HEALTHY}, seed, count)
    print("| figure | " + " | ".join(KINDS) + " | half width, share of the level |")
    print("|" + " --- |" * (len(KINDS) + 2))
    for figure in FIGURES:
        columns = [found.get((kind, figure.name), []) for kind in KINDS]
        shares = [f"{np.mean([held for held, _ in rows]):.1%} of {len(rows)}" if rows else "-" for rows in columns]
        widths = [f"{np.nanmedian([width for _, width in rows]):.2g}" if rows else "-" for rows in columns[:3]]
        print(f"| {figure.title.replace('|', chr(92) + '|')} | {' | '.join(shares)} | {', '.join(widths)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
