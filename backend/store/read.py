"""Reads a run's store: the snapshot as of any frame, the frames one by one, and metrics over steps. Never writes.

Any number of readers may read while the writer writes.
"""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import msgspec

from rltop.backend import api
from rltop.backend.api import downsample
from rltop.backend.api.alarm import MAX_ALARMS, Alarm
from rltop.backend.store import row_mapping, schema

NAME = "store.sqlite"
"""The store's name in a run directory."""

LEVEL_1_STEPS = 16_000
"""A snapshot has all of the newest steps (``downsample.ROOM``), and level 1 of older ones up to this many."""

LEVEL_2_STEPS = 250_000
"""Level 2 up to this many steps, then level 3."""

HEADER_BYTES = 100
"""The header of an SQLite file; it states the size of a page and the number of pages."""

MAX_SHOWN = 200
"""Characters of an error's text in a message."""


@dataclass(frozen=True)
class HubLife:
    """One hub process that wrote the store; ``number`` is its row."""

    number: int
    run: str
    epoch: str
    started: float


class Reader:
    """A store that is open for reading.

    Args:
        path: the file (gzip if its name ends in .gz), or a run directory with one.

    Attributes:
        columns: column names of each table in this file.

    Raises:
        schema.StoreError: there is no file, it is not a store, or a newer version wrote it; the message says which.
            Queries of a damaged file raise many types: ``evaluating`` makes them this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path / NAME if path.is_dir() else path
        self._connection = _connect(self.path)
        try:
            version = schema.open_version(self._connection)
            if version is None or version > schema.VERSION:
                raise schema.StoreError(_other_version(version))
            if version < schema.VERSION:
                self._connection = _up_to_date(self._connection)
            schema.check_tables(self._connection)
            self.columns = {t.name: tuple(schema.columns(self._connection, t.name)) for t in schema.TABLES}
        except schema.StoreError as error:
            self.close()
            raise schema.StoreError(f"{self.path}: {error}") from None
        except _DAMAGE as error:
            self.close()
            raise _damaged(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute an SQL query."""
        return self._connection.execute(sql, values)

    # --- queries --------------------------------------------------------------------------------------------------

    def lives(self) -> list[HubLife]:
        """Return the hubs that wrote the store, oldest first."""
        return [HubLife(*row) for row in self.execute("SELECT id, run, epoch, started FROM life ORDER BY id")]

    def last_frame(self) -> int:
        """Return the number of the newest frame; 0 if there is none."""
        return int(self.execute("SELECT coalesce(max(id), 0) FROM frame").fetchone()[0])

    def frame_of_step(self, step: int) -> int | None:
        """Return the first frame with this step or a later one; None if no such step is stored."""
        found = self.execute("SELECT min(frame) FROM step WHERE step >= ?", (step,)).fetchone()[0]
        return None if found is None else int(found)

    def metrics(self) -> list[str]:
        """Return the names that ``series`` accepts: metrics, and the trainer's scalars with the prefix ``trainer/``."""
        return schema.metric_names(self.columns, "step")

    def series(self, metric: str, *, last: int = 500) -> list[tuple[int, float | None]]:
        """Return step and value of the newest steps, in order of arrival.

        Raises:
            KeyError: no such metric.
        """
        if metric not in self.metrics():
            raise KeyError(metric)
        query = f"SELECT step, {schema.quoted(metric)} FROM step ORDER BY id DESC LIMIT ?"
        return self.execute(query, (last,)).fetchall()[::-1]

    def samples(self, kind: str, first: int, last: int, limit: int = 20) -> list[dict[str, Any]]:
        """Return stored sequences or tokens of the steps from ``first`` to ``last``, highest value first.

        These are the overall worst if each step keeps at least its ``limit`` worst.

        Returns:
            The columns of ``sample``, with ``body`` as a map.
        """
        names = "step", "kind", "engine", "tokens", "value", "body"
        query = (
            f"SELECT {', '.join(names)} FROM sample WHERE id IN (SELECT id FROM sample WHERE kind = ? AND step >= ? "
            "AND step <= ? ORDER BY value DESC LIMIT ?) ORDER BY value DESC"
        )
        found = [dict(zip(names, row, strict=True)) for row in self.execute(query, (kind, first, last, limit))]
        return [row | {"body": row_mapping.sample_body(row["body"])} for row in found]

    def sample_bodies(self, frame: int, step: int, kind: str) -> Iterator[dict[str, Any]]:
        """Return the sample bodies of one frame and kind, highest value first, then in order of arrival."""
        query = "SELECT body FROM sample WHERE frame = ? AND step = ? AND kind = ? ORDER BY value DESC, id"
        return (row_mapping.sample_body(body) for (body,) in self.execute(query, (frame, step, kind)))

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self, until: int | None = None) -> api.Snapshot:
        """Return a viewer's snapshot after frame ``until`` (None: the last), downsampled; ``seq`` is the frame."""
        until = self.last_frame() if until is None else until
        frame = self.execute(
            "SELECT l.run, l.epoch, l.started, f.time FROM frame f JOIN life l ON l.id = f.life WHERE f.id <= ? "
            "ORDER BY f.id DESC LIMIT 1", (until,),
        ).fetchone()  # fmt: skip
        if frame is None:
            lives = self.lives()
            known = (lives[0].run, lives[0].epoch, lives[0].started) if lives else (self.path.stem, "", 0.0)
            return api.Snapshot(*known[:2], until, known[2], known[2])
        run, epoch, started, time = frame
        trainer = self._last("trainer", until)
        counters = self._last("counters", until)
        return api.Snapshot(
            run,
            epoch,
            until,
            started,
            time,
            engines=self._snapshot_engines(until),
            trainer=row_mapping.trainer_of(trainer) if trainer else api.Trainer(),
            steps=self._snapshot_steps(until),
            events=self._snapshot_events(until),
            changes={api.change_key(change): change for change in self._snapshot_changes(until)},
            counters=row_mapping.counters_of(counters) if counters else {},
            alarms={alarm.id: alarm for alarm in self._snapshot_alarms(until)},
        )

    def past(self, step: int, until: int | None = None) -> api.PastState:
        """Return the run as of the close of ``step``, the last one up to frame ``until`` (None: the last).

        Raises:
            Unavailable: no such step is stored.
        """
        until = self.last_frame() if until is None else until
        row = self.execute(
            "SELECT id, frame FROM step WHERE step = ? AND frame <= ? ORDER BY id DESC LIMIT 1", (step, until)
        ).fetchone()
        if row is None:
            raise schema.Unavailable(f"step {step} is not stored")
        (whole,) = self.steps("id = ?", (row[0],))
        return api.PastState(whole, self._snapshot_engines(row[1]))

    def _last(self, column: str, until: int) -> bytes | None:
        query = f"SELECT {column} FROM frame WHERE id <= ? AND {column} IS NOT NULL ORDER BY id DESC LIMIT 1"
        found = self.execute(query, (until,)).fetchone()
        return found[0] if found else None

    def _snapshot_steps(self, until: int) -> dict[int, api.Step]:
        """Return steps by number, in order of arrival; older ones with headline metrics only, and downsampled."""
        last = self.execute(
            "SELECT id FROM step WHERE frame <= ? ORDER BY frame DESC, id DESC LIMIT 1", (until,)
        ).fetchone()
        if last is None:
            return {}
        end = last[0]
        whole = self._before_whole(end)
        edges = [whole, end - downsample.ROOM[0], end - LEVEL_1_STEPS, end - LEVEL_2_STEPS]
        found: list[api.Step] = list(self.steps("id > ? AND id <= ?", (whole, end)))
        for level, (newer, older) in enumerate(pairwise([*edges, -1])):
            if newer > max(older, 0):
                found = list(self._headlines(level, newer, older)) + found
        newest = dict.fromkeys(step.step for step in reversed(found))
        by_number = {step.step: step for step in found}
        kept = {
            number: by_number[number] if place < downsample.WHOLE_STEPS else downsample.headline(by_number[number])
            for place, number in enumerate(newest)
        }
        return dict(reversed(kept.items()))

    def _headlines(self, level: int, newer: int, older: int) -> Iterator[api.Step]:
        """Yield the steps after row ``older`` up to ``newer`` that rose to ``level``, with headline metrics only."""
        wanted = {*(column.name for column in schema.BY_NAME["step"].columns), *downsample.HEADLINE}
        names = tuple(name for name in self.columns["step"] if name in wanted)
        condition = f"id > {older} AND id <= {newer}"
        if level:  # by the index of risen rows: a scan would read all others too
            risen = f"SELECT id FROM step INDEXED BY step_1 WHERE level > 0 AND level >= {level} AND {condition}"
            condition = f"id IN ({risen})"
        query = f"SELECT {', '.join(map(schema.quoted, names))} FROM step WHERE {condition} ORDER BY id"
        for row in self.execute(query):
            step = row_mapping.step_of(names, row, {})
            yield msgspec.structs.replace(step, level=level) if level else step

    def _before_whole(self, end: int) -> int:
        """Return the last row up to ``end`` whose step is older than those that a snapshot has with all metrics."""
        numbers: set[int] = set()
        for row, number in self.execute("SELECT id, step FROM step WHERE id <= ? ORDER BY id DESC", (end,)):
            numbers.add(number)
            if len(numbers) > downsample.WHOLE_STEPS:
                return int(row)
        return 0

    def steps(self, condition: str = "1", values: Sequence[Any] = (), *, engines: bool = True) -> Iterator[api.Step]:
        """Yield steps by an SQL condition on table ``step``, in order of arrival, perhaps with their engines' parts."""
        names = self.columns["step"]
        place = names.index("id")
        for row in self.execute(f"SELECT * FROM step WHERE {condition} ORDER BY id", values):
            yield row_mapping.step_of(names, row, self._step_engines(row[place]) if engines else {})

    def _step_engines(self, step_id: int) -> dict[str, dict[str, float | None]]:
        names = self.columns["step_engine"]
        found = self.execute("SELECT * FROM step_engine WHERE step_id = ? ORDER BY engine", (step_id,))
        return {engine: values for _, engine, values in (row_mapping.step_engine_of(names, row) for row in found)}

    def _snapshot_engines(self, until: int) -> dict[str, api.Engine]:
        names = [row[0] for row in self.execute("SELECT DISTINCT engine FROM engine_facts ORDER BY engine")]
        query = "SELECT id FROM engine WHERE frame <= ? ORDER BY frame DESC, id DESC LIMIT 1"
        (last,) = self.execute(query, (until,)).fetchone() or (0,)
        found = {}
        for engine in names:
            query = "SELECT * FROM engine WHERE engine = ? AND id <= ? ORDER BY id DESC LIMIT 1"
            if row := self.execute(query, (engine, last)).fetchone():
                found[engine] = self._engine(row)
        return found

    def _engine(self, row: Sequence[Any]) -> api.Engine:
        names = self.columns["engine"]
        number = row[names.index("facts")]
        (facts,) = self.execute("SELECT facts FROM engine_facts WHERE id = ?", (number,)).fetchone()
        return row_mapping.engine_of(names, row, facts)

    def engine_rows(self) -> Iterator[api.Engine]:
        """Yield every stored state of every engine, in order of arrival."""
        return map(self._engine, self.execute("SELECT * FROM engine ORDER BY id"))

    def _snapshot_events(self, until: int) -> list[api.Event]:
        query = "SELECT * FROM event WHERE frame <= ? ORDER BY id DESC LIMIT ?"
        found = self.execute(query, (until, api.MAX_EVENTS)).fetchall()
        return [row_mapping.event_of(self.columns["event"], row) for row in reversed(found)]

    def events(self) -> Iterator[api.Event]:
        """Yield every event, in order."""
        return (
            row_mapping.event_of(self.columns["event"], row) for row in self.execute("SELECT * FROM event ORDER BY id")
        )

    def _snapshot_changes(self, until: int) -> list[api.Change]:
        """Return the last stage of each command on each engine, in the order in which they were requested."""
        query = (
            "SELECT c.* FROM change c JOIN (SELECT min(id) AS first, max(id) AS last FROM change WHERE frame <= ? "
            "GROUP BY command, engine ORDER BY first DESC LIMIT ?) x ON c.id = x.last ORDER BY x.first"
        )
        found = self.execute(query, (until, api.MAX_CHANGES))
        return [row_mapping.change_of(self.columns["change"], row) for row in found]

    def _snapshot_alarms(self, until: int) -> list[Alarm]:
        """Return the last stage of each alarm, in the order in which they were raised."""
        query = (
            "SELECT a.* FROM alarm a JOIN (SELECT min(id) AS first, max(id) AS last FROM alarm WHERE frame <= ? "
            "GROUP BY alarm ORDER BY first DESC LIMIT ?) x ON a.id = x.last ORDER BY x.first"
        )
        found = self.execute(query, (until, MAX_ALARMS))
        return [row_mapping.alarm_of(self.columns["alarm"], row) for row in found]

    # --- frames ---------------------------------------------------------------------------------------------------

    def frames(self, after: int = 0, until: int | None = None) -> Generator[api.Frame, None, None]:
        """Yield the stored frames after number ``after``; ``seq`` is the number, ``epoch`` is empty."""
        until = self.last_frame() if until is None else until
        query = "SELECT id, time, trainer, counters FROM frame WHERE id > ? AND id <= ? ORDER BY id"
        for number, time, trainer, counters in self.execute(query, (after, until)):
            yield api.Frame(
                "",
                number,
                time,
                {engine.id: engine for engine in map(self._engine, self._rows("engine", number))},
                row_mapping.trainer_of(trainer) if trainer else None,
                list(self.steps("frame = ?", (number,))),
                [row_mapping.event_of(self.columns["event"], row) for row in self._rows("event", number)],
                [row_mapping.change_of(self.columns["change"], row) for row in self._rows("change", number)],
                row_mapping.counters_of(counters) if counters else {},
                alarms={
                    a.id: a
                    for a in (row_mapping.alarm_of(self.columns["alarm"], r) for r in self._rows("alarm", number))
                },
            )

    def _rows(self, table: str, frame: int) -> list[tuple[Any, ...]]:
        return self.execute(f"SELECT * FROM {table} WHERE frame = ? ORDER BY id", (frame,)).fetchall()


_DAMAGE = (
    sqlite3.Error, zlib.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, EOFError,
    MemoryError, RecursionError,
)  # fmt: skip
"""What reading damaged data raises. SQLite has no checksums: any number or text in a file may be another."""


@contextlib.contextmanager
def evaluating(path: Path) -> Iterator[None]:
    """A block that computes from the store at ``path``: what damage in it raises becomes a ``StoreError``.

    Raises:
        schema.StoreError: the file is damaged, or another process has locked it.
    """
    try:
        yield
    except (schema.StoreError, schema.Unavailable):
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> schema.StoreError:
    if _is_locked(error):
        return schema.StoreError(f"{path}: another process has locked it; try again when that has ended")
    shown = str(error) or "no details"
    return schema.StoreError(f"{path}: damaged, or no store of rltop ({type(error).__name__}: {shown[:MAX_SHOWN]})")


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED


_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file read-only; as immutable if it can't be locked and has no log."""
    if not path.is_file():
        raise schema.StoreError(f"no store at {path}: nothing was recorded there")
    try:
        return _unpacked(path) if path.suffix == ".gz" else _read_only(path)
    except OSError as error:
        raise schema.StoreError(f"{path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _unpacked(path: Path) -> sqlite3.Connection:
    """The content of a compressed recording, in memory: as many pages as its header states, and no more."""
    with gzip.open(path) as file:
        header = file.read(HEADER_BYTES)
        if not header.startswith(b"SQLite format 3\0") or len(header) < HEADER_BYTES:
            raise schema.StoreError(f"{path}: no recording of a run: it has no database in it")
        (page, pages) = int.from_bytes(header[16:18]), int.from_bytes(header[28:32])
        content = bytearray(header + file.read(max((65_536 if page == 1 else page) * pages - HEADER_BYTES, 0)))
    content[18:20] = b"\x01\x01"  # a database in memory has no write-ahead log
    connection = sqlite3.connect(":memory:")
    connection.deserialize(bytes(content))
    return connection


def _read_only(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        return connection
    except sqlite3.OperationalError as error:  # in a read-only directory the log's index can't be created
        connection.close()
        if _is_locked(error) or ((log := path.with_name(path.name + "-wal")).exists() and log.stat().st_size):
            raise
        return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, check_same_thread=False)


def _up_to_date(old: sqlite3.Connection) -> sqlite3.Connection:
    """Return a copy in memory, migrated to this version: reading an older store does not change it."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    old.backup(copy)
    old.close()
    schema.prepare(copy)
    return copy


def _other_version(version: int | None) -> str:
    if version is None:
        return "nothing was recorded in it yet"
    return f"a newer rltop wrote it (schema {version}, this one knows {schema.VERSION}); update rltop"


def has_steps(path: Path) -> bool:
    """Whether the store at ``path`` has steps."""
    with contextlib.suppress(schema.StoreError), evaluating(path), Reader(path) as reader:
        return reader.execute("SELECT 1 FROM step LIMIT 1").fetchone() is not None
    return False
