"""Exports a stored run as CSV, JSON lines, or Parquet (with pyarrow)."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rltop.backend.store.read import Reader
from rltop.backend.store.row_mapping import sample_body
from rltop.backend.store.schema import BY_NAME, ENGINE_NUMBERS, SCALAR, Unavailable, metric_names

Row = dict[str, Any]

BATCH = 10_000
"""Rows in memory at a time."""


class ExportError(Unavailable):
    """An unsupported export; the message names the supported ones."""


@dataclass(frozen=True)
class ExportKind:
    """An exportable table.

    Attributes:
        name: as in ``kinds.SUMMARIES``.
        columns: names and types (``float``, ``int``, ``text``, ``bool``) in this store.
        rows: one dict per row, in order of arrival.
    """

    name: str
    columns: Callable[[Reader], dict[str, str]]
    rows: Callable[[Reader], Iterable[Row]]


def _step_columns(reader: Reader) -> dict[str, str]:
    own = {"step": "int", "closed": "float", "policy_version": "int", "partial": "bool"}
    return own | dict.fromkeys(reader.metrics(), "float")


def _steps(reader: Reader) -> Iterator[Row]:
    for step in reader.steps(engines=False):
        own = {
            "step": step.step, "closed": step.closed, "policy_version": step.policy_version, "partial": step.partial,
        }  # fmt: skip
        yield own | step.values | {SCALAR + name: value for name, value in step.trainer.items()}


def _engine_step_columns(reader: Reader) -> dict[str, str]:
    return {"step": "int", "engine": "text"} | dict.fromkeys(metric_names(reader.columns, "step_engine"), "float")


def _engine_steps(reader: Reader) -> Iterator[Row]:
    for step in reader.steps():
        for engine, values in step.engines.items():
            yield {"step": step.step, "engine": engine, **values}


def _engine_columns(_: Reader) -> dict[str, str]:
    kinds = {"REAL": "float", "INTEGER": "int"}
    numbers = {name: kinds[kind] for name, kind in ENGINE_NUMBERS.items()}
    return {"time": "float", "engine": "text", "health": "text"} | numbers | {"flags": "text"}


def _engines(reader: Reader) -> Iterator[Row]:
    for engine in reader.engine_rows():
        flags = " ".join(f"{name}={flag.value}" for name, flag in engine.flags.items())
        numbers = {name: getattr(engine, name) for name in ENGINE_NUMBERS}
        yield {"time": engine.last_seen, "engine": engine.id, "health": engine.health, **numbers, "flags": flags}


def _plain_columns(table: str) -> Callable[[Reader], dict[str, str]]:
    kinds = {"REAL": "float", "INTE": "int", "TEXT": "text"}
    skip = {"id", "frame", "rest", "body"}
    own = {c.name: kinds[c.type[:4]] for c in BY_NAME[table].columns if c.name not in skip}
    return lambda _: own


def _plain(table: str) -> Callable[[Reader], Iterator[Row]]:
    names = _plain_columns(table)

    def rows(reader: Reader) -> Iterator[Row]:
        own = list(names(reader))
        query = f"SELECT {', '.join(own)} FROM {table} ORDER BY id"
        return (dict(zip(own, row, strict=True)) for row in reader.execute(query))

    return rows


def _sequence_columns(reader: Reader) -> dict[str, str]:
    return _plain_columns("sample")(reader) | {"body": "text"}


def _sequences(reader: Reader) -> Iterator[Row]:
    names = list(_plain_columns("sample")(reader))
    for *own, body in reader.execute(f"SELECT {', '.join(names)}, body FROM sample ORDER BY id"):
        text = msgspec.json.encode(readable(sample_body(body))).decode()
        yield dict(zip(names, own, strict=True)) | {"body": text}


def readable(body: Row) -> Row:
    """The row with its raw arrays as lists; columns not in ``types`` are i4."""
    types = {"rollout": "<f4", "trainer": "<f4", "old": "<f4", "mask": "u1"}
    return {
        name: np.frombuffer(value, types.get(name, "<i4")).tolist() if isinstance(value, bytes) else value
        for name, value in body.items()
    }


KINDS: tuple[ExportKind, ...] = (
    ExportKind("steps", _step_columns, _steps),
    ExportKind("engine-steps", _engine_step_columns, _engine_steps),
    ExportKind("engines", _engine_columns, _engines),
    ExportKind("sequences", _sequence_columns, _sequences),
    ExportKind("events", _plain_columns("event"), _plain("event")),
    ExportKind("changes", _plain_columns("change"), _plain("change")),
)

KIND_BY_NAME: Mapping[str, ExportKind] = {kind.name: kind for kind in KINDS}


def export(reader: Reader, what: str, to: Path, *, overwrite: bool = False) -> int:
    """Write one table to ``to``; the suffix selects the format. Atomic.

    CSV: unknown numbers are empty, ``nan`` and ``inf`` are written as such. JSON: null for all of these.

    Returns:
        The number of rows.

    Raises:
        ExportError: no such format, pyarrow is missing, or there are no rows.
        FileExistsError: ``to`` exists and ``overwrite`` is off.
        OSError: writing failed.
    """
    write = _writer(to)
    if to.exists() and not overwrite:
        raise FileExistsError(f"{to} already exists")
    kind = KIND_BY_NAME[what]
    rows = iter(kind.rows(reader))
    first = next(rows, None)
    if first is None:
        raise ExportError(f"no {what} are stored in {reader.path}")
    handle, partial = tempfile.mkstemp(prefix=".rltop-", dir=to.parent)
    os.close(handle)
    try:
        count = write(Path(partial), kind.columns(reader), itertools.chain([first], rows))
        os.replace(partial, to)  # noqa: PTH105 - the atomic call by its name
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return count


Write = Callable[[Path, dict[str, str], Iterator[Row]], int]


def _writer(to: Path) -> Write:
    formats: dict[str, Write] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if to.suffix not in formats:
        raise ExportError(f"{to}: the name must end in {', '.join(formats)}")
    if to.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ExportError("Parquet needs pyarrow: `pip install 'rltop[parquet]'`; CSV and JSON lines need nothing")
    return formats[to.suffix]


def _csv(path: Path, columns: dict[str, str], rows: Iterator[Row]) -> int:
    count = 0
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for row in rows:
            out.writerow(row.get(name) for name in columns)  # floats as repr: bit-exact when read back
            count += 1
    return count


def _jsonl(path: Path, columns: dict[str, str], rows: Iterator[Row]) -> int:
    count = 0
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for row in rows:
            file.write(encoder.encode({name: row.get(name) for name in columns}) + b"\n")
            count += 1
    return count


def _parquet(path: Path, columns: dict[str, str], rows: Iterator[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"float": pa.float64(), "int": pa.int64(), "text": pa.string(), "bool": pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        while batch := list(itertools.islice(rows, BATCH)):
            table = {name: [row.get(name) for row in batch] for name in columns}
            out.write_table(pa.table(table, schema=schema))
            count += len(batch)
    return count
