"""Writes frames into a run's store, one transaction per call. Blocks on the disk: runs in the writer process.

Steps, events, changes and alarms are stored exactly as viewers got them. Engine states are stored at a bounded rate,
the trainer's counts and the hub's counters once a second.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from rltop.backend import api
from rltop.backend.store import retention, row_mapping, schema

ENGINE_ROWS_PER_S = 200.0
"""Rows of ``engine`` a second for the whole fleet: an engine a second up to 200 engines, each less often beyond."""

COUNTS_PERIOD_S = 1.0
"""How often counters and the trainer's counts are stored while there is no other news."""

PAGE_BYTES = 8192
CHECKPOINT_PAGES = 2000
"""Pages in the write-ahead log (16 MB) before they are moved into the file."""

MAINTENANCE_S = 0.05
"""How long retention may delay a frame: a fifth of the longest wait for a commit (``store.COMMIT_TIMEOUT_S``)."""

_COMPRESSED = {table.name: [c for c in table.columns if c.packed is not None] for table in schema.TABLES}

BUSY_S = 2.0
"""How long a write waits for another program that locked the file."""


class Writer:
    """An open store, written for one hub process.

    Args:
        path: the file; created if it does not exist.
        run, epoch, started: of the hub.
        wal: write-ahead log; else a rollback journal, for file systems where processes can't share memory.
        limits: of retention.

    Raises:
        schema.StoreError: a newer version or another program wrote the file.
        sqlite3.Error, OSError: the file can't be opened or written.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        epoch: str,
        started: float,
        *,
        wal: bool = True,
        limits: retention.Limits = retention.LIMITS,
    ) -> None:
        self.path = path
        path.touch(mode=0o600, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._open(run, epoch, started, wal=wal)
        except BaseException:
            self._connection.close()
            raise
        self._inode = path.stat().st_ino
        self._retention = retention.Retention(self._connection, limits)

    def _open(self, name: str, epoch: str, started: float, *, wal: bool) -> None:
        run = self._connection.execute
        run(f"PRAGMA page_size = {PAGE_BYTES}")
        run(f"PRAGMA journal_mode = {'WAL' if wal else 'TRUNCATE'}")
        run("PRAGMA synchronous = NORMAL")
        run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        schema.prepare(self._connection)
        self._known = {t.name: set(schema.columns(self._connection, t.name)) for t in schema.TABLES if t.growing}
        self._scalars = {
            name.removeprefix(schema.SCALAR): name for name in self._known["step"] if name.startswith(schema.SCALAR)
        }
        self._frame = self._last("frame")
        self._step = self._last("step")
        self._facts: dict[str, tuple[str, int]] = {}
        for engine, number, facts in run("SELECT engine, max(id), facts FROM engine_facts GROUP BY engine"):
            self._facts[engine] = facts, number
        self._engines: dict[str, api.Engine] = {}  # states that are not stored yet
        self._engine_stored: dict[str, float] = {}
        self._trainer: api.Trainer | None = None
        self._counters: dict[str, int] = {}
        self._counts_stored = 0.0
        self._sql: dict[tuple[str, ...], str] = {}
        found = run("SELECT id FROM life WHERE epoch = ?", (epoch,)).fetchone()
        if found is None:  # else this hub opens the file again, after an error
            found = (
                self._insert("life", {"run": name, "epoch": epoch, "started": started, "version": version("rltop")}),
            )
        self._life = found[0]

    def _last(self, table: str) -> int:
        (number,) = self._connection.execute(f"SELECT max(id) FROM {table}").fetchone()
        return number or 0

    def stored_until(self) -> float:
        """Time of the newest frame that this hub has stored; frames that are not newer are stored already."""
        query = "SELECT time FROM frame WHERE id = ? AND life = ?"
        found = self._connection.execute(query, (self._frame, self._life)).fetchone()
        return found[0] if found else float("-inf")

    @property
    def was_replaced(self) -> bool:
        """Whether the open file is no longer the one at ``path``."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def write(self, frames: Sequence[api.Frame], rows: Sequence[Sequence[tuple[str, row_mapping.Row]]] = ()) -> None:
        """Store frames, oldest first, and further rows of each frame, in one transaction.

        Args:
            frames: as viewers get them.
            rows: by frame, table and row (without column ``frame``, blobs not compressed); may be shorter than
                ``frames``.

        Raises:
            sqlite3.Error: the transaction was rolled back; reopen the store before writing again.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for frame, more in zip(frames, chain(rows, repeat(())), strict=False):
                self._add(frame)
                for table, row in more:
                    self._insert(table, _compressed(table, row) | {"frame": self._frame})
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def maintain(self, limit_s: float = MAINTENANCE_S) -> None:
        """Apply retention for at most ``limit_s`` seconds, in transactions of its own. Raises ``sqlite3.Error``."""
        end = time.monotonic() + limit_s
        while self._retention.apply_some() and time.monotonic() < end:
            pass

    def close(self) -> None:
        """Store engine states that were held back, and leave a single file. Raises ``sqlite3.Error``."""
        try:
            if self._engines:
                self._connection.execute("BEGIN IMMEDIATE")
                frame = self._new_frame(max(engine.last_seen for engine in self._engines.values()))
                for engine in self._engines.values():
                    self._add_engine(engine, frame)
                self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with contextlib.suppress(sqlite3.OperationalError):  # another process reads it: the log stays
                self._connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            self._connection.close()

    def abandon(self) -> None:
        """Close the file after an error."""
        self._connection.close()

    # --- frames -------------------------------------------------------------------------------------------------------

    def _add(self, frame: api.Frame) -> None:
        self._engines.update(frame.engines)
        self._counters.update(frame.counters)
        self._trainer = frame.trainer or self._trainer
        due = self._due(frame.time)
        news = api.has_records(frame) or due
        if not news and (not (self._trainer or frame.counters) or frame.time - self._counts_stored < COUNTS_PERIOD_S):
            return
        number = self._new_frame(frame.time)
        for step in frame.steps:
            self._add_step(step, number)
        for event in frame.events:
            self._insert("event", row_mapping.event_row(event) | {"frame": number})
        for change in frame.changes:
            self._add_change(row_mapping.change_row(change), number)
        for alarm in frame.alarms.values():
            self._insert("alarm", row_mapping.alarm_row(alarm) | {"frame": number})
        for engine in due:
            self._add_engine(engine, number)
            self._engine_stored[engine.id] = frame.time
            del self._engines[engine.id]

    def _due(self, now: float) -> list[api.Engine]:
        """Return the engines to store now: those whose facts changed, and those that are due."""
        period = max(1.0, len(self._engine_stored) / ENGINE_ROWS_PER_S)
        return [
            engine
            for engine in self._engines.values()
            if now - self._engine_stored.get(engine.id, 0.0) >= period
            or self._facts.get(engine.id, ("",))[0] != row_mapping.engine_facts(engine)
        ]

    def _new_frame(self, now: float) -> int:
        self._frame += 1
        trainer = None if self._trainer is None else row_mapping.blob(self._trainer)
        values = {"id": self._frame, "life": self._life, "time": now, "trainer": trainer}
        self._insert("frame", values | {"counters": row_mapping.blob(self._counters)})
        self._trainer, self._counts_stored = None, now
        return self._frame

    def _add_step(self, step: api.Step, frame: int) -> None:
        self._name_scalars(step)
        self._grow("step", [*step.values, *(self._scalars[name] for name in step.trainer if name in self._scalars)])
        self._grow("step_engine", [name for values in step.engines.values() for name in values])
        self._step += 1
        self._insert("step", row_mapping.step_row(step, self._scalars) | {"id": self._step, "frame": frame})
        for row in row_mapping.step_engine_rows(step, self._step):
            self._insert("step_engine", row)
        self._retention.step_added(self._step)

    def _name_scalars(self, step: api.Step) -> None:
        """Assign columns to new scalars whose names SQLite can tell apart (it ignores case)."""
        for name in step.trainer:
            if name not in self._scalars and len(self._scalars) < schema.MAX_SCALARS:
                taken = {known.lower() for known in self._scalars}
                if name.isascii() and name.isprintable() and name.lower() not in taken:
                    self._scalars[name] = schema.SCALAR + name

    def _grow(self, table: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._known[table]:
                self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {schema.quoted(name)} REAL")
                self._known[table].add(name)

    def _add_engine(self, engine: api.Engine, frame: int) -> None:
        facts = row_mapping.engine_facts(engine)
        known = self._facts.get(engine.id)
        if known is None or known[0] != facts:
            number = self._insert("engine_facts", {"engine": engine.id, "frame": frame, "facts": facts})
            known = self._facts[engine.id] = facts, number
        self._insert("engine", row_mapping.engine_row(engine, known[1]) | {"frame": frame})

    def _add_change(self, row: dict[str, Any], frame: int) -> None:
        """Store a change unless it repeats the stored one: a hub that starts repeats earlier commands."""
        names = ", ".join(map(schema.quoted, row))
        query = f"SELECT {names} FROM change WHERE command = ? AND engine = ? ORDER BY id DESC LIMIT 1"
        last = self._connection.execute(query, (row["command"], row["engine"])).fetchone()
        if last != tuple(row.values()):
            self._insert("change", row | {"frame": frame})

    def _insert(self, table: str, row: dict[str, Any]) -> int:
        key = (table, *row)
        if key not in self._sql:
            names = ", ".join(map(schema.quoted, row))
            verb = "REPLACE" if schema.BY_NAME[table].latest else "INSERT"
            self._sql[key] = f"{verb} INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})"
        number = self._connection.execute(self._sql[key], tuple(row.values())).lastrowid
        assert number is not None
        return number


def _compressed(table: str, row: row_mapping.Row) -> row_mapping.Row:
    return row | {
        column.name: zlib.compress(row[column.name], 1)
        for column in _COMPRESSED[table]
        if len(row[column.name]) >= (column.packed or 0)
    }


def set_aside(path: Path, reason: str) -> Path:
    """Rename the file and its log. Return the new path."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}-{reason}-{stamp}{path.suffix}")
    for end in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}{end}", f"{aside}{end}")  # noqa: PTH105 - names with ends, not paths
    return aside
