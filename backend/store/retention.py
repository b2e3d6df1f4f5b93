"""Bounds the store of a long run: recent rows are kept whole, older ones downsampled without losing extremes.

Rows are not averaged: those that remain are real. Steps are processed in buckets of ``BUCKETS`` rows. The first and the
last row of each bucket, and for every metric of ``downsample.EXTREMES`` the rows with its minimum and maximum, rise to
the bucket's level. Old parts of a run keep the risen rows, and snapshots of a long run show them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass

from rltop.backend.api import downsample
from rltop.backend.store import schema

BUCKETS = (256, 4096, 65_536)
"""Rows per bucket of levels 1, 2, 3; each bucket consists of whole buckets of the level below."""

ENGINE_HEADLINE = ("tokens_per_s", "waiting", "kv_usage", "gap", "lag")
"""The same for the numbers of an engine."""

ENGINE_SPACING = 60
"""Of this many old rows of an engine, the first and the extremes are kept."""

BODY_ROW_BYTES = 60
"""Size of a row of ``sample`` or ``strata`` and its index entries, without its body."""

MEASURED_ROWS = 5_000
"""The mean size of bodies is taken from this many of the newest rows: several steps, since sizes differ within one."""

BATCH = 2_000
"""Rows processed per transaction, to keep transactions short."""


@dataclass(frozen=True)
class Limits:
    """How many of the newest rows are kept whole.

    Attributes:
        steps: rows of ``step``; older ones keep level 1.
        coarse_steps: rows of ``step``; older ones keep level 2.
        step_engines: rows of ``step_engine``; of older steps, those of level 1 and up are kept.
        engines, events, frames, shapes, evidence, cells, paces, taken: rows of these tables.
        sample_bytes, strata_bytes: of the bodies in ``sample`` and ``strata``.
    """

    steps: int = 200_000
    coarse_steps: int = 2_000_000
    step_engines: int = 1_000_000
    engines: int = 500_000
    events: int = 200_000
    frames: int = 200_000
    sample_bytes: int = 256 << 20
    shapes: int = 200_000
    evidence: int = 200_000
    cells: int = 200_000
    paces: int = 500_000
    taken: int = 1_000
    strata_bytes: int = 64 << 20


LIMITS = Limits()


class Retention:
    """Applies the limits to the store of one connection, a little at every call."""

    def __init__(self, connection: sqlite3.Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._calls = self._idle = 0
        self._reached: Counter[str] = Counter()  # by task, the last row that was processed

    def step_added(self, step_id: int) -> None:
        """A row of ``step`` was inserted: if it fills a bucket, raise its extremes. Inside the caller's transaction."""
        for level, size in enumerate(BUCKETS, 1):
            if step_id % size == 0:
                self._raise_level(level, step_id - size, step_id)

    def _raise_level(self, level: int, after: int, last: int) -> None:
        present = set(schema.columns(self._connection, "step"))
        among = f"id > {after} AND id <= {last}" + (f" AND level > 0 AND level >= {level - 1}" if level > 1 else "")
        parts = [f"SELECT min(id) AS id FROM step WHERE {among}", f"SELECT max(id) FROM step WHERE {among}"]
        parts += [
            f"SELECT * FROM (SELECT id FROM step WHERE {among} AND {name} IS NOT NULL ORDER BY {name} {order} LIMIT 1)"
            for name in downsample.EXTREMES
            if name in present
            for order in ("ASC", "DESC")
        ]
        self._connection.execute(f"UPDATE step SET level = {level} WHERE id IN ({' UNION '.join(parts)})")

    def apply_some(self) -> bool:
        """Process at most ``BATCH`` rows of one table in a transaction. Return False once every table is within limits.

        Raises:
            sqlite3.Error: the transaction was rolled back.
        """
        tasks = (
            self._steps,
            self._coarse_steps,
            self._step_engines,
            self._engines,
            self._events,
            self._frames,
            self._samples,
            self._shapes,
            self._evidence,
            self._strata,
            self._cells,
            self._paces,
            self._taken,
        )
        self._calls += 1
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            applied = tasks[self._calls % len(tasks)]()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._idle = 0 if applied else self._idle + 1
        if self._idle < len(tasks):
            return True
        self._idle = 0
        return False

    # Each task processes one table, and returns whether it had rows to process.

    def _span(self, key: str, table: str, keep: int) -> tuple[int, int] | None:
        """Return the next rows of ``table`` beyond the newest ``keep``, as ids (after, last]; None if none."""
        first, last = self._connection.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()
        if last is None:
            return None
        after = max(self._reached[key], first - 1)
        until = min(last - keep, after + BATCH)
        if until <= after:
            return None
        self._reached[key] = until
        return after, until

    def _steps(self) -> bool:
        return self._drop_steps("step", self._limits.steps, 1)

    def _coarse_steps(self) -> bool:
        return self._drop_steps("coarse", self._limits.coarse_steps, 2)

    def _drop_steps(self, key: str, keep: int, level: int) -> bool:
        if span := self._span(key, "step", keep):
            old = "SELECT id FROM step WHERE id > ? AND id <= ? AND level < ?"
            self._connection.execute(f"DELETE FROM step_engine WHERE step_id IN ({old})", (*span, level))
            self._connection.execute(f"DELETE FROM step WHERE id IN ({old})", (*span, level))
        return span is not None

    def _step_engines(self) -> bool:
        """Drop the engines' parts of old steps: the more engines the last step had, the fewer steps keep them."""
        run = self._connection.execute
        (last,) = run("SELECT max(step_id) FROM step_engine").fetchone()
        if last is None:
            return False
        (engines,) = run("SELECT count(*) FROM step_engine WHERE step_id = ?", (last,)).fetchone()
        keep = self._limits.step_engines // max(engines, 1)
        if span := self._span("step_engine", "step", keep):
            old = "SELECT id FROM step WHERE id > ? AND id <= ? AND level < 1"
            run(f"DELETE FROM step_engine WHERE step_id IN ({old})", span)
        return span is not None

    def _engines(self) -> bool:
        """Of each engine's old rows, keep the first of every ``ENGINE_SPACING``, and the extremes."""
        if not (span := self._span("engine", "engine", self._limits.engines)):
            return False
        extremes = "".join(
            f", row_number() OVER (PARTITION BY engine, bucket ORDER BY {name}) = 1 "
            f"OR row_number() OVER (PARTITION BY engine, bucket ORDER BY {name} DESC) = 1 AS k{number}"
            for number, name in enumerate(ENGINE_HEADLINE)
        )
        kept = " OR ".join(f"k{number}" for number in range(len(ENGINE_HEADLINE)))
        self._connection.execute(
            f"""DELETE FROM engine WHERE id IN (
                SELECT id FROM (
                    SELECT id, place % {ENGINE_SPACING} = 0 AS first{extremes} FROM (
                        SELECT *, place / {ENGINE_SPACING} AS bucket FROM (
                            SELECT *, row_number() OVER (PARTITION BY engine ORDER BY id) - 1 AS place
                            FROM engine WHERE id > ? AND id <= ?)))
                WHERE NOT (first OR {kept}))""",
            span,
        )
        return True

    def _events(self) -> bool:
        if span := self._span("event", "event", self._limits.events):
            self._connection.execute("DELETE FROM event WHERE id > ? AND id <= ? AND severity = 'info'", span)
        return span is not None

    def _frames(self) -> bool:
        if span := self._span("frame", "frame", self._limits.frames):
            users = " ".join(
                f"AND NOT EXISTS (SELECT 1 FROM {table.name} u WHERE u.frame = frame.id)"
                for table in schema.TABLES
                if any(column.name == "frame" for column in table.columns) and table.name != "engine_facts"
            )
            self._connection.execute(f"DELETE FROM frame WHERE id > ? AND id <= ? {users}", span)
        return span is not None

    def _shapes(self) -> bool:
        return self._drop_rows("shape", self._limits.shapes)

    def _evidence(self) -> bool:
        return self._drop_rows("evidence", self._limits.evidence)

    def _cells(self) -> bool:
        return self._drop_rows("cell", self._limits.cells)

    def _paces(self) -> bool:
        return self._drop_rows("pace", self._limits.paces)

    def _taken(self) -> bool:
        return self._drop_rows("taken", self._limits.taken)

    def _drop_rows(self, table: str, keep: int) -> bool:
        if span := self._span(table, table, keep):
            self._connection.execute(f"DELETE FROM {table} WHERE id > ? AND id <= ?", span)
        return span is not None

    def _samples(self) -> bool:
        return self._drop_bodies("sample", self._limits.sample_bytes)

    def _strata(self) -> bool:
        return self._drop_bodies("strata", self._limits.strata_bytes)

    def _drop_bodies(self, table: str, budget: int) -> bool:
        """Drop the oldest rows of a table whose bodies exceed their budget."""
        run = self._connection.execute
        first, last = run(f"SELECT min(id), max(id) FROM {table}").fetchone()
        if last is None:
            return False
        (mean,) = run(f"SELECT avg(length(body)) FROM {table} WHERE id > ?", (last - MEASURED_ROWS,)).fetchone()
        keep = int(budget / (mean + BODY_ROW_BYTES))
        if last - first + 1 <= keep:
            return False
        run(f"DELETE FROM {table} WHERE id <= ?", (min(last - keep, first + BATCH),))
        return True
