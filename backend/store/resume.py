"""Maps receive marks and the provenance of steps to rows of the store, and back. Reads, never writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from rltop.backend.ingest.sources import ReceivedMark
from rltop.backend.steps.provenance import StepProvenance
from rltop.backend.store.read import Reader
from rltop.backend.store.row_mapping import Row, unpacked

LOADED_STEPS = 64
"""Steps of which messages may be resent: as many as are open, and more than rollouts are retained for."""


@dataclass(frozen=True)
class Resumed:
    """How far each collector is settled, by name, and the provenance of the latest steps."""

    marks: Mapping[str, ReceivedMark] = field(default_factory=dict)
    provenance: Sequence[tuple[int, StepProvenance]] = ()


class _Places(msgspec.Struct, array_like=True):
    """Rollouts of one engine in one update of a step; ``seqs`` i8 and ``places`` i4, raw and little-endian."""

    engine: str
    life: str
    update: int
    seqs: bytes
    places: bytes


class _ProvenanceBody(msgspec.Struct):
    lives: dict[int, str]
    rollouts: list[_Places]


def mark_row(source: str, mark: ReceivedMark) -> Row:
    """Return a row of ``source``."""
    return {"source": source, "epoch": mark.epoch, "acknowledged": mark.acknowledged, "settled": mark.settled}


def provenance_row(step: int, provenance: StepProvenance) -> Row:
    """Return a row of ``taken``."""
    rollouts = []
    for (engine, life, update), places in provenance.rollouts.items():
        seqs, indices = np.array(places, np.int64).T
        rollouts.append(_Places(engine, life, update, seqs.astype("<i8").tobytes(), indices.astype("<i4").tobytes()))
    body = msgspec.msgpack.encode(_ProvenanceBody(dict(provenance.lives), rollouts))
    return {"step": step, "body": body}


def load(reader: Reader) -> Resumed:
    """Return the stored marks and provenance, the latter without rollouts that are not resent."""
    stored = reader.execute("SELECT source, epoch, acknowledged, settled FROM source").fetchall()
    marks = {source: ReceivedMark(*mark) for source, *mark in stored}
    query = "SELECT step, body FROM taken ORDER BY id DESC LIMIT ?"
    rows = reader.execute(query, (LOADED_STEPS,)).fetchall()[::-1]
    return Resumed(marks, [(step, _provenance(body, marks)) for step, body in rows])


def _provenance(packed: bytes, marks: Mapping[str, ReceivedMark]) -> StepProvenance:
    body = msgspec.msgpack.decode(unpacked(packed), type=_ProvenanceBody)
    rollouts = {}
    for entry in body.rollouts:
        mark = marks.get(entry.engine)
        if mark is not None and mark.epoch == entry.life:
            pairs = zip(
                np.frombuffer(entry.seqs, "<i8").tolist(), np.frombuffer(entry.places, "<i4").tolist(), strict=True
            )
            rollouts[entry.engine, entry.life, entry.update] = [pair for pair in pairs if pair[0] > mark.acknowledged]
    return StepProvenance(body.lives, rollouts)
