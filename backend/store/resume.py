"""Where a hub that goes on from a store takes collectors up, between its memory and rows. Reads, never writes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from rltop.backend.ingest.sources import ReceivedMark
from rltop.backend.steps.provenance import StepProvenance
from rltop.backend.store.read import Reader
from rltop.backend.store.row_mapping import Row

RECALLED_STEPS = 64
"""Steps that may be told again, or whose rollouts may be: as many as are open, and more than rollouts are kept for."""


@dataclass(frozen=True)
class Resumed:
    """How far each collector is settled, by name, and what the latest steps were made from."""

    marks: Mapping[str, ReceivedMark] = field(default_factory=dict)
    taken: Sequence[tuple[int, StepProvenance]] = ()


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
    """A row of ``source``."""
    return {"source": source, "epoch": mark.epoch, "acknowledged": mark.acknowledged, "settled": mark.settled}


def taken_row(step: int, taken: StepProvenance) -> Row:
    """A row of ``taken``."""
    rollouts = []
    for (engine, life, update), found in taken.rollouts.items():
        seqs, places = np.array(found, np.int64).T
        rollouts.append(_Places(engine, life, update, seqs.astype("<i8").tobytes(), places.astype("<i4").tobytes()))
    body = msgspec.msgpack.encode(_ProvenanceBody(dict(taken.lives), rollouts))
    return {"step": step, "body": body}


def resume(reader: Reader) -> Resumed:
    """What is stored of that. Of rollouts, those that may be sent again."""
    found = reader.execute("SELECT source, epoch, acknowledged, settled FROM source").fetchall()
    marks = {source: ReceivedMark(*mark) for source, *mark in found}
    query = "SELECT step, body FROM taken ORDER BY id DESC LIMIT ?"
    rows = reader.execute(query, (RECALLED_STEPS,)).fetchall()[::-1]
    return Resumed(marks, [(step, _taken(body, marks)) for step, body in rows])


def _taken(packed: bytes, marks: Mapping[str, ReceivedMark]) -> StepProvenance:
    body = msgspec.msgpack.decode(zlib.decompress(packed), type=_ProvenanceBody)
    rollouts = {}
    for of in body.rollouts:
        mark = marks.get(of.engine)
        if mark is not None and mark.epoch == of.life:
            pairs = zip(np.frombuffer(of.seqs, "<i8").tolist(), np.frombuffer(of.places, "<i4").tolist(), strict=True)
            rollouts[of.engine, of.life, of.update] = [pair for pair in pairs if pair[0] > mark.acknowledged]
    return StepProvenance(body.lives, rollouts)
