"""Maps the details of a step (sequences, tokens, gap shapes, evidence) to rows of the store, and back. Never writes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rltop.backend.api.profiles import Mismatch
from rltop.backend.api.samples import Samples, Sequence, Token
from rltop.backend.effects.epoch_sums import Cell, EpochKey
from rltop.backend.evidence.evidence import Evidence
from rltop.backend.evidence.series import MAX_PARTS, EvidenceSeries
from rltop.backend.gaps.attribute import EngineSums
from rltop.backend.gaps.mismatch import COLUMNS, MAX_STEPS, MEANS, GapShape, GapShapes
from rltop.backend.gaps.sampling import KINDS, StepSamples
from rltop.backend.steps.provenance import StepProvenance
from rltop.backend.store.read import Reader
from rltop.backend.store.row_mapping import Row, SampleRow, unpacked
from rltop.backend.store.schema import Unavailable
from rltop.backend.summary import CLAMP
from rltop.backend.summary.environments import Environments
from rltop.backend.summary.kernel import FIGURE, MOMENT

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class StepDetails:
    """The details of a step that are stored with its metrics; they don't change any more.

    Attributes:
        step: its number.
        samples: sequences and tokens.
        shapes, parts, evidence: by engine.
        cells: by engine, its epoch and flag epoch.
        provenance: the messages that the step was made from.
    """

    step: int
    samples: StepSamples | None = None
    shapes: Mapping[str, GapShape] = field(default_factory=dict)
    parts: Mapping[str, EngineSums] = field(default_factory=dict)
    cells: Mapping[EpochKey, Cell] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    provenance: StepProvenance | None = None


def sample_rows(details: StepDetails) -> Iterator[SampleRow]:
    """Yield the sequences and tokens, those of single engines included, each once per kind."""
    step, samples = details.step, details.samples
    if samples is None:
        return
    for kind in KINDS:
        seen: set[tuple[int, ...]] = set()
        for engine in (None, *samples.engines):
            sequences, tokens = samples.select(kind, engine)
            for sequence in sequences:
                if (row := (sequence.rank, sequence.number)) not in seen:
                    seen.add(row)
                    yield _sequence(step, kind, sequence)
            for token in tokens:
                if (place := (token.rank, token.number, token.position)) not in seen:
                    seen.add(place)
                    yield _token(step, kind, token)


def _sequence(step: int, kind: str, sequence: Sequence) -> SampleRow:
    value = None if kind == "sample" else math.inf if sequence.invalid else sequence.k3_mean
    return SampleRow(step, kind, ", ".join(sequence.engines), sequence.tokens, value, _encode(sequence))


def _token(step: int, kind: str, token: Token) -> SampleRow:
    d = token.diff
    clamped = max(-CLAMP, min(CLAMP, d))
    value = math.inf if d != d else abs(d) if kind == "abs_diff" else math.expm1(clamped) - clamped
    return SampleRow(step, kind, token.engine, token.tokens, value, _encode(token))


def shape_rows(details: StepDetails) -> Iterator[Row]:
    """Yield rows of ``shape``."""
    for engine, shape in details.shapes.items():
        yield {
            "step": details.step,
            "engine": engine,
            "tokens": shape.tokens,
            "invalid": shape.invalid,
            "bins": shape.bins.astype("<i8").tobytes(),
            "sums": shape.sums.astype("<f8").tobytes(),
            "environments": _encode(environments_body(shape.environments)),
        }


def environments_body(environments: Environments) -> dict[str, bytes]:
    """Return the moments as raw little-endian bytes, by environment."""
    return {name: moments.astype("<f8").tobytes() for name, moments in environments.moments.items()}


def environments_of(body: Mapping[str, bytes]) -> Environments:
    """Return what ``environments_body`` was made from."""
    shape = (len(FIGURE), len(MOMENT))
    return Environments({name: np.frombuffer(raw, "<f8").reshape(shape) for name, raw in body.items()})


def evidence_rows(details: StepDetails) -> Iterator[Row]:
    """Yield rows of ``evidence``."""
    for engine, evidence in details.evidence.items():
        yield {"step": details.step, "engine": engine, "body": evidence.to_bytes()}


def evidence_series(reader: Reader, until: int | None = None) -> EvidenceSeries:
    """Return the evidence of the latest steps up to frame ``until`` (None: the last), if it is of this version."""
    last = 2**62 if until is None else until
    query = (
        "SELECT frame, step, engine, body FROM (SELECT * FROM evidence WHERE frame <= ? ORDER BY id DESC LIMIT ?) "
        "ORDER BY id"
    )
    found: dict[tuple[int, int], dict[str, Evidence]] = {}
    for frame, step, engine, body in reader.execute(query, (last, MAX_PARTS)):
        with contextlib.suppress(ValueError):
            found.setdefault((frame, step), {})[engine] = Evidence.from_bytes(unpacked(body))
    series = EvidenceSeries()
    for (_, step), engines in found.items():
        series.put(step, engines)
    return series


def mismatch(reader: Reader, first: int | None, last: int | None) -> Mismatch:
    """As ``GapShapes.answer``, from a store: over the last ``MAX_STEPS`` steps of the range.

    Raises:
        Unavailable: none of these steps is stored.
    """
    bounds = (-(2**62) if first is None else first, 2**62 if last is None else last)
    newest = "SELECT DISTINCT step FROM shape WHERE step >= ? AND step <= ? ORDER BY step DESC LIMIT ?"
    columns = "frame, step, engine, tokens, invalid, bins, sums, environments"
    query = f"SELECT {columns} FROM shape WHERE step IN ({newest}) ORDER BY id"
    found: dict[int, tuple[int, dict[str, GapShape]]] = {}
    for frame, step, engine, tokens, invalid, bins, sums, named in reader.execute(query, (*bounds, MAX_STEPS)):
        if found.get(step, (-1,))[0] != frame:  # of a repeated step the last row counts
            found[step] = frame, {}
        environments = environments_of({} if named is None else msgspec.msgpack.decode(unpacked(named)))
        shape = GapShape(_unpacked(bins, "<i8"), _sums(_unpacked(sums, "<f8")), tokens, invalid, environments)
        found[step][1][engine] = shape
    shapes = GapShapes()
    for step, (_, by_engine) in sorted(found.items()):
        if all(_fits(shape) for shape in by_engine.values()):
            shapes.put_shapes(step, by_engine)
    try:
        return shapes.answer(first, last)
    except ValueError as error:
        raise Unavailable(str(error)) from error


def _unpacked(packed: bytes, kind: str) -> NDArray[Any]:
    return np.frombuffer(unpacked(packed), kind)


def _sums(flat: NDArray[Any]) -> NDArray[Any]:
    """``GapShape.sums`` as stored; stores from before there were intervals have only the columns for means."""
    current = GapShape().sums
    if flat.size == len(current) * MEANS:
        return np.pad(flat.reshape(-1, MEANS), [(0, 0), (0, COLUMNS - MEANS)], constant_values=np.nan)
    return flat.reshape(-1, COLUMNS) if flat.size == current.size else flat


def _fits(shape: GapShape) -> bool:
    """Whether its strata and bins are those of this version."""
    current = GapShape()
    return shape.bins.shape == current.bins.shape and shape.sums.shape == current.sums.shape


def samples(reader: Reader, step: int | None, kind: str, engine: str | None, limit: int) -> Samples:
    """As ``SampledSteps.answer``, from a store.

    Raises:
        Unavailable: there is no such kind, or the step is not stored; the text lists the steps that are.
    """
    if kind not in KINDS:
        raise Unavailable(f"no samples of kind {kind!r}; there are {', '.join(KINDS)}")
    steps = [row[0] for row in reader.execute("SELECT DISTINCT step FROM sample WHERE kind = ? ORDER BY step", (kind,))]
    if step is None:
        step = steps[-1] if steps else None
    if step is None or step not in steps:
        which = f"; there are {len(steps)} steps from {steps[0]} to {steps[-1]}" if steps else ""
        raise Unavailable(f"{'no sample' if step is None else f'no sample of step {step}'} is stored{which}")
    (frame,) = reader.execute("SELECT max(frame) FROM sample WHERE step = ?", (step,)).fetchone()
    sequences: list[Sequence] = []
    tokens: list[Token] = []
    for body in reader.sample_bodies(frame, step, kind):
        if kind in ("sample", "worst"):
            sequences.append(msgspec.convert(body, Sequence))
        else:
            tokens.append(msgspec.convert(body, Token))
    sequences = [s for s in sequences if engine is None or engine in (s.engines or [""])]
    tokens = [t for t in tokens if engine is None or engine == t.engine]
    of = next(reader.steps("step = ? AND frame <= ?", (step, frame)), None)
    counts = [int((of.values.get(name) if of else None) or 0) for name in ("sequences", "tokens")]
    most = max(limit, 0)
    return Samples(step, kind, counts[0], counts[1], sequences[:most], tokens[:most], steps)
