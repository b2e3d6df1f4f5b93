"""Reads and writes recorded runs, cell by cell (``tests/data``; see ``bench/effects.py``)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from rltop.backend import api
from rltop.backend.effects.epoch_sums import EpochKey, StepCells
from rltop.backend.effects.estimate import SwitchMark, effect
from rltop.backend.effects.throughput import SpeedSample

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Recording:
    """What effects are reckoned from: steps, speeds, and the commands with what they began."""

    steps: Sequence[StepCells]
    samples: Mapping[str, Sequence[SpeedSample]]
    changes: Mapping[str, api.Change]
    marks: Mapping[str, SwitchMark]
    present: Mapping[str, tuple[str, int]]

    @property
    def commands(self) -> list[str]:
        return list(dict.fromkeys(change.command for change in self.changes.values()))

    def effect(self, command: str, after: int | None = None) -> api.Effect:
        """What it did, as told when ``after`` steps of the run had closed since (None: at the end)."""
        changes = [c for c in self.changes.values() if c.command == command]
        steps = self.steps
        if after is not None:
            asked = max(c.step or 0 for c in changes)
            steps = [step for step in steps if step.step <= asked + after]
        marks = {c.engine: self.marks[api.change_key(c)] for c in changes}
        return effect(changes, marks, steps, self.samples, self.present)


class _About(msgspec.Struct):
    places: list[tuple[str, str, int]]
    changes: dict[str, api.Change]
    marks: dict[str, tuple[str, int]]
    present: dict[str, tuple[str, int]]
    engines: list[str]


def save(path: Path, recording: Recording) -> None:
    places = list(dict.fromkeys(place for step in recording.steps for place in step.cells))
    flat = [(n, places.index(p), c) for n, step in enumerate(recording.steps) for p, c in step.cells.items()]
    samples = [(e, sample) for e in sorted(recording.samples) for sample in recording.samples[e]]
    engines = sorted(recording.samples)
    lives = {life: n for n, life in enumerate(dict.fromkeys(s.life for _, s in samples))}
    about = _About(
        [(p.engine, p.life, p.epoch) for p in places], dict(recording.changes),
        {key: (m.life, m.epoch) for key, m in recording.marks.items()}, dict(recording.present), [*engines, *lives],
    )  # fmt: skip
    np.savez_compressed(
        path,
        about=np.frombuffer(msgspec.json.encode(about), np.uint8),
        steps=np.array([(step.step, step.closed) for step in recording.steps]),
        where=np.array([(n, p) for n, p, _ in flat], np.int32),
        cells=np.array([c for _, _, c in flat]),
        samples=np.array([
            (engines.index(e), lives[s.life], s.epoch, s.tokens, s.time, s.seconds) for e, s in samples
        ]),
    )  # fmt: skip


def load(name: str) -> Recording:
    with np.load(io.BytesIO((DATA / f"{name}.npz").read_bytes())) as held:
        arrays = {key: held[key] for key in held.files}
    about = msgspec.json.decode(arrays["about"].tobytes(), type=_About)
    steps = [StepCells(int(number), float(closed), {}) for number, closed in arrays["steps"]]
    for (n, place), cell in zip(arrays["where"], arrays["cells"], strict=True):
        steps[n].cells[EpochKey(*about.places[place])] = cell
    samples: dict[str, list[SpeedSample]] = {}
    count = len({int(row[0]) for row in arrays["samples"]})
    for engine, life, epoch, tokens, time, seconds in arrays["samples"]:
        sample = SpeedSample(time, about.engines[count + int(life)], int(epoch), seconds, int(tokens))
        samples.setdefault(about.engines[int(engine)], []).append(sample)
    marks = {key: SwitchMark(*mark) for key, mark in about.marks.items()}
    return Recording(steps, samples, about.changes, marks, about.present)
