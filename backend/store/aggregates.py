"""Maps the sums from which effects and attribution are computed to rows of the store, and back. Reads, never writes.

A hub that continues a run loads these sums, and a replay answers from them as the hub would have at that frame. Sums
that another version of rltop stored with other figures or strata are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend import api
from rltop.backend.api.attribution import Attribution
from rltop.backend.effects import epoch_sums
from rltop.backend.effects.epoch_sums import Cell, EpochKey, StepCells
from rltop.backend.effects.estimate import SwitchMark
from rltop.backend.effects.flag_epochs import EffectHistory
from rltop.backend.effects.throughput import LEAST_SAMPLES, TOTAL_SAMPLES, SpeedSample
from rltop.backend.evidence.series import Stretch
from rltop.backend.gaps.attribute import EngineSums, attribution
from rltop.backend.ingest.sources import ReceivedMark as Received
from rltop.backend.steps.provenance import StepProvenance
from rltop.backend.store import resume, row_mapping, step_details
from rltop.backend.store.read import Reader
from rltop.backend.store.resume import Resumed
from rltop.backend.store.row_mapping import Row, unpacked
from rltop.backend.store.schema import Unavailable
from rltop.backend.store.step_details import StepDetails
from rltop.backend.summary import Regression
from rltop.backend.summary.dimensions import STRATA
from rltop.backend.summary.groups import Groups
from rltop.backend.summary.kernel import FIGURE, MOMENT
from rltop.backend.summary.strata import Packed

EFFECT_STEPS = epoch_sums.STEPS
"""Steps read on either side of a switch to estimate its effect."""

LOADED_STEPS = 400
"""Steps whose sums a new hub loads."""


@dataclass(frozen=True)
class StoredAggregates:
    """The sums that a new hub loads.

    Attributes:
        steps, parts: sums of the latest steps, oldest first.
        series: evidence of the latest steps.
        marks: flag epochs of switches, by ``api.change_key``.
        samples: throughput, by engine.
        resumed: where collectors continue.
    """

    steps: Sequence[StepCells] = ()
    parts: Sequence[tuple[int, dict[str, EngineSums]]] = ()
    series: Sequence[Stretch] = ()
    marks: Mapping[str, SwitchMark] = field(default_factory=dict)
    samples: Mapping[str, Sequence[SpeedSample]] = field(default_factory=dict)
    resumed: Resumed = field(default_factory=Resumed)


@dataclass(frozen=True)
class FrameAggregates:
    """The rows stored with a frame: details of its steps, new switch marks, throughput samples and receive marks."""

    steps: Sequence[StepDetails] = ()
    marks: Sequence[tuple[str, SwitchMark]] = ()
    samples: Sequence[tuple[str, SpeedSample]] = ()
    sources: Sequence[tuple[str, Received]] = ()

    def provenance_only(self) -> FrameAggregates:
        """Only what is needed to recognise steps whose messages are resent."""
        return FrameAggregates(
            [
                StepDetails(details.step, provenance=StepProvenance(details.provenance.lives))
                for details in self.steps
                if details.provenance
            ]
        )


NOTHING = FrameAggregates()


def aggregate_rows(aggregates: FrameAggregates) -> Iterator[tuple[str, Row]]:
    """Table and row, without the frame; blobs are not compressed yet."""
    for details in aggregates.steps:
        yield from (("sample", row_mapping.sample_row(sample)) for sample in step_details.sample_rows(details))
        yield from (("shape", row) for row in step_details.shape_rows(details))
        yield from (("strata", row) for row in part_rows(details.step, details.parts))
        yield from (("cell", row) for row in cell_rows(details.step, details.cells))
        yield from (("evidence", row) for row in step_details.evidence_rows(details))
        if details.provenance is not None:
            yield "taken", resume.provenance_row(details.step, details.provenance)
    yield from (("mark", mark_row(key, mark)) for key, mark in aggregates.marks)
    yield from (("pace", sample_row(engine, sample)) for engine, sample in aggregates.samples)
    yield from (("source", resume.mark_row(source, mark)) for source, mark in aggregates.sources)


# --- rows -------------------------------------------------------------------------------------------------------------


def cell_rows(step: int, cells: Mapping[EpochKey, Cell]) -> Iterator[Row]:
    """Yield rows of ``cell``."""
    for key, cell in cells.items():
        yield {"step": step, **key._asdict(), "sums": cell.tobytes()}


def part_rows(step: int, parts: Mapping[str, EngineSums]) -> Iterator[Row]:
    """Yield rows of ``strata``."""
    for engine, part in parts.items():
        body = _PartBody(
            STRATA, _of_strata(part.strata), _of_strata(part.matched), part.lag_regression.sequences,
            [part.lag_regression.sums.tobytes(), part.lag_regression.products.tobytes()],
            [part.groups.keys.tobytes(), part.groups.moments.tobytes(), part.groups.rewards.tobytes()],
            step_details.environments_body(part.environments),
        )  # fmt: skip
        yield {"step": step, "engine": engine, "old": int(part.old), "body": msgspec.msgpack.encode(body)}


def mark_row(key: str, mark: SwitchMark) -> Row:
    """Return a row of ``mark``."""
    command, _, engine = key.partition("@")
    return {"command": command, "engine": engine, "life": mark.life, "epoch": mark.epoch}


def sample_row(engine: str, sample: SpeedSample) -> Row:
    """Return a row of ``pace``."""
    own = ("time", "life", "epoch", "seconds", "tokens")
    return {"engine": engine, **{name: getattr(sample, name) for name in own}}


class _PartBody(msgspec.Struct):
    """``EngineSums`` with arrays as raw little-endian bytes; ``size``: the number of strata of that version."""

    size: int
    strata: list[bytes]
    matched: list[bytes]
    sequences: int
    line: list[bytes]
    groups: list[bytes]
    environments: dict[str, bytes] = {}


def _of_strata(part: Packed) -> list[bytes]:
    return [part.rows.tobytes(), part.moments.tobytes(), part.others.tobytes()]


# --- reading ----------------------------------------------------------------------------------------------------------


def _part(old: int, packed: bytes) -> EngineSums | None:
    body = msgspec.msgpack.decode(unpacked(packed), type=_PartBody)
    if body.size != STRATA:
        return None
    sums, products = (_array(raw) for raw in body.line)
    keys, moments, rewards = body.groups
    return EngineSums(
        _strata(body.strata),
        _strata(body.matched),
        bool(old),
        Regression(body.sequences, sums, products.reshape(sums.size, sums.size)),
        Groups(
            _array(keys, "<u8"), _array(moments).reshape(-1, len(FIGURE), len(MOMENT)), _array(rewards).reshape(-1, 3),
        ),
        step_details.environments_of(body.environments),
    )  # fmt: skip


def _strata(raw: Sequence[bytes]) -> Packed:
    return Packed(_array(raw[0], "<u2"), _array(raw[1]).reshape(-1, len(FIGURE), len(MOMENT)), _array(raw[2]))


def _array(raw: bytes, kind: str = "<f8") -> NDArray[Any]:
    return np.frombuffer(raw, kind)


def _steps(reader: Reader, condition: str, values: Sequence[Any]) -> list[StepCells]:
    """Return the cells of the steps that match a condition on table ``step``; of a repeated step the later one."""
    found: dict[int, StepCells] = {}
    query = (
        "SELECT s.id, s.step, s.closed, c.engine, c.life, c.epoch, c.sums FROM step s JOIN cell c "
        f"ON c.frame = s.frame AND c.step = s.step WHERE s.id IN (SELECT id FROM step WHERE {condition}) "
        "ORDER BY s.id, c.id"
    )
    rows: dict[int, int] = {}
    for row, step, closed, engine, life, epoch, sums in reader.execute(query, values):
        if rows.get(step) != row:
            rows[step] = row
            found.pop(step, None)
            found[step] = StepCells(step, closed, {})
        cell = _array(unpacked(sums))
        if cell.size == epoch_sums.empty().size:
            found[step].cells[EpochKey(engine, life, epoch)] = cell.reshape(epoch_sums.empty().shape)
    return list(found.values())


def _parts(reader: Reader, until: int, last: int) -> list[tuple[int, dict[str, EngineSums]]]:
    """Return the parts of the last steps up to frame ``until``, oldest first."""
    frames = "SELECT DISTINCT frame FROM strata WHERE frame <= ? ORDER BY frame DESC LIMIT ?"
    query = f"SELECT step, engine, old, body FROM strata WHERE frame IN ({frames}) ORDER BY id"
    found: dict[int, dict[str, EngineSums]] = {}
    for step, engine, old, body in reader.execute(query, (until, last)):
        if engine in found.get(step, {}):
            found.pop(step)  # the step was repeated
        part = _part(old, body)
        if part is not None:
            found.setdefault(step, {})[engine] = part
    return list(found.items())[-last:]


def _marks(reader: Reader, until: int) -> dict[str, tuple[int, SwitchMark]]:
    """Return frame and mark of each switch, by ``api.change_key``."""
    query = "SELECT frame, command, engine, life, epoch FROM mark WHERE frame <= ? ORDER BY id DESC LIMIT ?"
    found = reader.execute(query, (until, api.MAX_CHANGES)).fetchall()
    return {
        f"{command}@{engine}": (frame, SwitchMark(life, epoch)) for frame, command, engine, life, epoch in found[::-1]
    }


def _samples(reader: Reader, after: float, until: int) -> dict[str, list[SpeedSample]]:
    """Return throughput samples after time ``after`` up to frame ``until``, as many of the newest as a hub keeps."""
    query = (
        "SELECT engine, time, life, epoch, seconds, tokens FROM pace WHERE frame <= ? AND time >= ? "
        "ORDER BY id DESC LIMIT ?"
    )
    found: dict[str, list[SpeedSample]] = {}
    for engine, *values in reversed(reader.execute(query, (until, after, TOTAL_SAMPLES)).fetchall()):
        found.setdefault(engine, []).append(SpeedSample(*values))
    return found


def load(reader: Reader) -> StoredAggregates:
    """Return the sums that a new hub continues with."""
    until = reader.last_frame()
    return StoredAggregates(
        _steps(reader, "frame <= ? ORDER BY id DESC LIMIT ?", (until, LOADED_STEPS)),
        _parts(reader, until, LOADED_STEPS),
        step_details.evidence_series(reader).stretches(),
        {key: mark for key, (_, mark) in _marks(reader, until).items()},
        _samples(reader, 0.0, until),
        resume.load(reader),
    )


def effect(reader: Reader, question: api.AskEffect, shown: api.Snapshot) -> api.Answer:
    """Estimate the effect of a command, as of the shown snapshot."""
    until, marks = shown.seq, _marks(reader, shown.seq)
    known = EffectHistory({key: mark for key, (_, mark) in marks.items()})
    chosen = known.choose(question.command, list(shown.changes.values()))
    if isinstance(chosen, str):
        return api.Answer(question.id, error=chosen)
    keys = [api.change_key(change) for change in chosen]
    switched = min(marks[key][0] for key in keys)
    steps = _steps(reader, "frame < ? ORDER BY id DESC LIMIT ?", (switched, EFFECT_STEPS))
    steps += _steps(reader, "frame >= ? AND frame <= ? ORDER BY id LIMIT ?", (switched, until, EFFECT_STEPS))
    speeds = _samples(reader, min(change.requested for change in chosen) - _LOOKBACK_S, until)
    lives = {place.engine: place.life for step in steps for place in step.cells}
    lives |= {engine: own[-1].life for engine, own in speeds.items()}
    present = {e: (lives[e], engine.flag_epoch) for e, engine in shown.engines.items() if e in lives}
    return known.answer_for(question, chosen, steps, speeds, present)


_LOOKBACK_S = 5.0 * LEAST_SAMPLES


def attributed(reader: Reader, question: api.AskAttribution, shown: api.Snapshot) -> Attribution:
    """Break the gap of the last steps down by source, as of the shown snapshot.

    Raises:
        Unavailable: no sums of these steps are stored.
    """
    parts = _parts(reader, shown.seq, max(question.steps, 1))
    if not parts:
        raise Unavailable("no attribution data is stored up to this step")
    epochs = _steps(reader, "frame <= ? ORDER BY id DESC LIMIT ?", (shown.seq, max(question.steps, 1)))
    return attribution(parts, epochs)
