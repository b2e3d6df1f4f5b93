"""Keeps a long run's store bounded: the newest whole, the old thinner, and never an extreme lost.

Rows are not averaged: those that stay are real. Steps are looked at in buckets of ``BUCKETS`` rows. Of each bucket the
first and the last row, and for every metric of ``HEADLINE`` the rows with its least and its greatest value, rise to the
bucket's level; what has risen is what an old part of the run keeps, and what a coarse picture of a long run shows.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from rltop.backend.history import schema

BUCKETS = (256, 4096, 65_536)
"""Rows per bucket of levels 1, 2, 3; each bucket is made of whole ones of the level below."""

HEADLINE = (
    "reward_mean",
    "logp_abs_diff_mean",
    "logp_abs_diff_max",
    "ratio_mean",
    "kl_k3",
    "clip_frac_low",
    "clip_frac_high",
    "entropy",
    "ess",
    "lag_max",
    "joined_fraction",
    "invalid_frac",
)
"""Metrics whose extremes are kept."""

ENGINE_HEADLINE = ("tokens_per_s", "waiting", "kv_usage", "gap", "lag")
"""The same of an engine's figures."""

ENGINE_SPACING = 60
"""Of old rows of an engine, the first of so many stays, and the extremes among them."""

SAMPLE_ROW_BYTES = 60
"""What a row of ``sample`` and its places in indexes take beside its body."""

BATCH = 2_000
"""Rows looked at per turn, so that no turn keeps the disk long."""


@dataclass(frozen=True)
class Limits:
    """How many of the newest rows are kept whole.

    ``steps`` of ``step``: older ones keep level 1; ``coarse_steps``: older ones keep level 2. ``step_engines`` rows of
    ``step_engine``: of older steps those of level 1 and up; ``engines``, ``events``, ``frames``, ``shapes``,
    ``evidence`` rows of these tables; ``sample_bytes`` of kept sequences.
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


LIMITS = Limits()


class Thinner:
    """Thins the store of one connection, a little at every turn."""

    def __init__(self, connection: sqlite3.Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._turns = 0
        self._reached = dict.fromkeys(
            ("step", "coarse", "step_engine", "engine", "event", "frame", "shape", "evidence"), 0
        )

    def added_step(self, step_id: int) -> None:
        """A step's row was inserted: if it fills a bucket, let its extremes rise. Inside the caller's transaction."""
        for level, size in enumerate(BUCKETS, 1):
            if step_id % size == 0:
                self._raise_level(level, step_id - size, step_id)

    def _raise_level(self, level: int, after: int, last: int) -> None:
        present = set(schema.columns(self._connection, "step"))
        among = f"id > {after} AND id <= {last}" + (f" AND level > 0 AND level >= {level - 1}" if level > 1 else "")
        parts = [f"SELECT min(id) AS id FROM step WHERE {among}", f"SELECT max(id) FROM step WHERE {among}"]
        parts += [
            f"SELECT * FROM (SELECT id FROM step WHERE {among} AND {name} IS NOT NULL ORDER BY {name} {order} LIMIT 1)"
            for name in HEADLINE
            if name in present
            for order in ("ASC", "DESC")
        ]
        self._connection.execute(f"UPDATE step SET level = {level} WHERE id IN ({' UNION '.join(parts)})")

    def turn(self) -> None:
        """One transaction that thins at most ``BATCH`` rows of one table. Raises ``sqlite3.Error``."""
        steps = (
            self._steps,
            self._coarse_steps,
            self._step_engines,
            self._engines,
            self._events,
            self._frames,
            self._samples,
            self._shapes,
            self._evidence,
        )
        self._turns += 1
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            steps[self._turns % len(steps)]()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _span(self, key: str, table: str, keep: int) -> tuple[int, int] | None:
        """The next rows of ``table`` beyond the newest ``keep``, as ids (after, last); None if there are none yet."""
        first, last = self._connection.execute(f"SELECT min(id), max(id) FROM {table}").fetchone()
        if last is None:
            return None
        after = max(self._reached[key], first - 1)
        until = min(last - keep, after + BATCH)
        if until <= after:
            return None
        self._reached[key] = until
        return after, until

    def _steps(self) -> None:
        self._drop_steps("step", self._limits.steps, 1)

    def _coarse_steps(self) -> None:
        self._drop_steps("coarse", self._limits.coarse_steps, 2)

    def _drop_steps(self, key: str, keep: int, level: int) -> None:
        if span := self._span(key, "step", keep):
            old = "SELECT id FROM step WHERE id > ? AND id <= ? AND level < ?"
            self._connection.execute(f"DELETE FROM step_engine WHERE step_id IN ({old})", (*span, level))
            self._connection.execute(f"DELETE FROM step WHERE id IN ({old})", (*span, level))

    def _step_engines(self) -> None:
        """Steps whose engines' parts are too many: how many steps that is, goes by how many engines the last had."""
        run = self._connection.execute
        (last,) = run("SELECT max(step_id) FROM step_engine").fetchone()
        if last is None:
            return
        (engines,) = run("SELECT count(*) FROM step_engine WHERE step_id = ?", (last,)).fetchone()
        keep = self._limits.step_engines // max(engines, 1)
        if span := self._span("step_engine", "step", keep):
            old = "SELECT id FROM step WHERE id > ? AND id <= ? AND level < 1"
            run(f"DELETE FROM step_engine WHERE step_id IN ({old})", span)

    def _engines(self) -> None:
        """Of each engine's old rows in the span, the first of every ``ENGINE_SPACING`` stays, and the extremes."""
        if not (span := self._span("engine", "engine", self._limits.engines)):
            return
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

    def _events(self) -> None:
        if span := self._span("event", "event", self._limits.events):
            self._connection.execute("DELETE FROM event WHERE id > ? AND id <= ? AND severity = 'info'", span)

    def _frames(self) -> None:
        if span := self._span("frame", "frame", self._limits.frames):
            users = " ".join(
                f"AND NOT EXISTS (SELECT 1 FROM {table.name} u WHERE u.frame = frame.id)"
                for table in schema.TABLES
                if any(column.name == "frame" for column in table.columns) and table.name != "engine_facts"
            )
            self._connection.execute(f"DELETE FROM frame WHERE id > ? AND id <= ? {users}", span)

    def _shapes(self) -> None:
        if span := self._span("shape", "shape", self._limits.shapes):
            self._connection.execute("DELETE FROM shape WHERE id > ? AND id <= ?", span)

    def _evidence(self) -> None:
        if span := self._span("evidence", "evidence", self._limits.evidence):
            self._connection.execute("DELETE FROM evidence WHERE id > ? AND id <= ?", span)

    def _samples(self) -> None:
        """Drop the oldest of what was kept of single sequences and tokens while it takes more than its budget."""
        run = self._connection.execute
        first, last = run("SELECT min(id), max(id) FROM sample").fetchone()
        if last is None:
            return
        (mean,) = run("SELECT avg(length(body)) FROM sample WHERE id > ?", (last - 200,)).fetchone()
        keep = int(self._limits.sample_bytes / (mean + SAMPLE_ROW_BYTES))
        if last - first + 1 > keep:
            run("DELETE FROM sample WHERE id <= ?", (min(last - keep, first + BATCH),))
