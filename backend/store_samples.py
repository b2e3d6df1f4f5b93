"""Between the sequences and tokens that are kept of a step and rows of the store. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from rltop.backend.sampled import Samples, Sequence, Token
from rltop.backend.samples import KINDS, StepSamples
from rltop.backend.store_read import Reader
from rltop.backend.store_rows import Sample
from rltop.backend.summary import CLAMP

_encode = msgspec.msgpack.Encoder().encode


def rows(step: int, kept: StepSamples) -> Iterator[Sample]:
    """What is kept of a step, those of single engines included, each once per kind."""
    for kind in KINDS:
        seen: set[tuple[int, ...]] = set()
        for engine in (None, *kept.engines):
            sequences, tokens = kept.of(kind, engine)
            for sequence in sequences:
                if (row := (sequence.rank, sequence.number)) not in seen:
                    seen.add(row)
                    yield _sequence(step, kind, sequence)
            for token in tokens:
                if (place := (token.rank, token.number, token.position)) not in seen:
                    seen.add(place)
                    yield _token(step, kind, token)


def _sequence(step: int, kind: str, sequence: Sequence) -> Sample:
    value = None if kind == "sample" else math.inf if sequence.invalid else sequence.k3_mean
    return Sample(step, kind, ", ".join(sequence.engines), sequence.tokens, value, _encode(sequence))


def _token(step: int, kind: str, token: Token) -> Sample:
    d = token.diff
    held = max(-CLAMP, min(CLAMP, d))
    value = math.inf if d != d else abs(d) if kind == "abs_diff" else math.expm1(held) - held
    return Sample(step, kind, token.engine, token.tokens, value, _encode(token))


def answer(reader: Reader, step: int | None, kind: str, engine: str | None, limit: int) -> Samples:
    """As ``samples.Kept.answer``, from a store.

    Raises:
        ValueError: there is no such kind, or nothing is stored of the step; the text says what is.
    """
    if kind not in KINDS:
        raise ValueError(f"no samples of kind {kind!r}; there are {', '.join(KINDS)}")
    steps = [row[0] for row in reader.execute("SELECT DISTINCT step FROM sample WHERE kind = ? ORDER BY step", (kind,))]
    if step is None:
        step = steps[-1] if steps else None
    if step is None or step not in steps:
        which = f"; there are {len(steps)} steps from {steps[0]} to {steps[-1]}" if steps else ""
        raise ValueError(f"nothing is stored of {'any step' if step is None else f'step {step}'}{which}")
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
