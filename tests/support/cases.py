"""Reads and writes recorded ``DiagnosisInput``s of runs, step by step, one small file per run in ``tests/data/runs``.

A file has everything of every ``DiagnosisInput`` except what no diagnosis reads: figures of single engines, sizes and
times of messages. It is lossless to float32, which is what the store keeps of evidence; what an engine or the trainer
says is kept where it changes.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.series import Stretch

DATA = Path(__file__).parents[1] / "data" / "runs"
Floats = NDArray[np.float32]
T = TypeVar("T")

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
_QUIET: dict[str, Any] = {
    "last_seen": 0.0,
    "counts": {},
    "tokens": 0,
    "step": 0,
    "running": 0,
    "waiting": 0,
    "kv_usage": None,
}
"""Of an engine: what changes all the time and says nothing of a fault."""


class Recorded(msgspec.Struct):
    """The file. ``*_at`` are places in ``steps`` from which on a thing holds."""

    run: str
    steps: list[api.Step]
    names: list[str]
    values: bytes
    engines: list[dict[str, api.Engine]]
    engines_at: list[int]
    trainers: list[api.Trainer]
    trainers_at: list[int]
    events: list[api.Event]
    events_at: list[int]
    changes: list[list[api.Change]]
    changes_at: list[int]
    evidence: list[tuple[int, str]]
    sums: bytes


def save(path: Path, cases: Sequence[DiagnosisInput]) -> None:
    """Write a run: its cases, one for each of its steps."""
    last = cases[-1]
    names = sorted({name for step in last.steps for name in step.values})
    table = np.array([[_number(step.values.get(name)) for name in names] for step in last.steps], np.float32)
    told = [(stretch.last, engine, own) for stretch in last.evidence for engine, own in stretch.engines.items()]
    sums = np.array([np.frombuffer(own.to_bytes(), "<f4") for _, _, own in told], np.float32)
    engines, engines_at = _runs([{e: _quiet(engine) for e, engine in case.engines.items()} for case in cases])
    trainers, trainers_at = _runs([msgspec.structs.replace(case.trainer, ranks={}, counts={}) for case in cases])
    changes, changes_at = _runs([list(case.changes) for case in cases])
    known = 0
    events_at = []
    for number, case in enumerate(cases):
        events_at += [number] * (len(case.events) - known)
        known = len(case.events)
    bare = [msgspec.structs.replace(step, values={}, engines={}) for step in last.steps]
    made = Recorded(
        last.run, bare, names, _pack(table), engines, engines_at, trainers, trainers_at, list(last.events), events_at,
        changes, changes_at, [(step, engine) for step, engine, _ in told], _pack(sums),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(msgspec.msgpack.encode(made), filters=FILTERS))


def load(path: Path) -> list[DiagnosisInput]:
    """Read a run: its cases, one for each of its steps."""
    made = msgspec.msgpack.decode(lzma.decompress(path.read_bytes()), type=Recorded)
    steps = list(_steps(made))
    sums = _unpack(made.sums, len(made.evidence))
    course: dict[int, dict[str, Evidence]] = {}
    for (told, engine), row in zip(made.evidence, sums, strict=True):
        course.setdefault(told, {})[engine] = Evidence.from_bytes(row.astype("<f4").tobytes())
    whole = DiagnosisInput(made.run, steps, evidence=[Stretch(at, at, engines) for at, engines in course.items()])
    found = []
    for number, step in enumerate(steps):
        found.append(
            replace(
                whole,
                steps=steps[: number + 1],
                engines=_held(made.engines, made.engines_at, number),
                trainer=_held(made.trainers, made.trainers_at, number),
                events=[event for event, at in zip(made.events, made.events_at, strict=True) if at <= number],
                changes=_held(made.changes, made.changes_at, number),
                evidence=[stretch for stretch in whole.evidence if stretch.last <= step.step],
            )
        )
    return found


def _steps(made: Recorded) -> Iterator[api.Step]:
    table = _unpack(made.values, len(made.steps)).tolist()
    for step, row in zip(made.steps, table, strict=True):
        values = {name: None if math.isnan(value) else value for name, value in zip(made.names, row, strict=True)}
        yield msgspec.structs.replace(step, values=values)


def _quiet(engine: api.Engine) -> api.Engine:
    return msgspec.structs.replace(engine, **_QUIET)


def _runs(things: Sequence[T]) -> tuple[list[T], list[int]]:
    """Each thing that is not the one before, and its place."""
    at = [n for n, thing in enumerate(things) if n == 0 or thing != things[n - 1]]
    return [things[n] for n in at], at


def _held(things: Sequence[T], at: Sequence[int], number: int) -> T:
    return next(thing for thing, begin in zip(reversed(things), reversed(at), strict=True) if begin <= number)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _pack(table: Floats) -> bytes:
    """Column by column, and of these byte by byte: what is alike stands together."""
    return table.T.astype("<f4").copy().view(np.uint8).reshape(-1, 4).T.tobytes()


def _unpack(packed: bytes, rows: int) -> Floats:
    flat = np.frombuffer(packed, np.uint8).reshape(4, -1).T.copy().view("<f4")
    return flat.reshape(-1, rows).T.astype(np.float32)
