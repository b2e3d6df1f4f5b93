"""The tables of a run's store as data: content, columns and retention of each. Pure.

One SQLite file per run. Each metric gets a column when it first appears, so ``SELECT step, kl_k3 FROM step`` works with
any tool that reads SQLite. Fields without a column are in ``rest``, as msgpack, and are restored exactly.

``python -m rltop.backend.store.schema > docs/store.md`` writes the documentation.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

VERSION = 6
"""``PRAGMA user_version`` of a store that this version writes."""

APPLICATION_ID = 0x726C7470
"""``PRAGMA application_id``: "rltp"."""

MAX_SCALARS = 256
"""Columns for the trainer's own scalars; further names go into ``rest``."""

SCALAR = "trainer/"
"""A trainer's scalar has the column of its name with this before it."""


class StoreError(ValueError):
    """A file that is no store of rltop, is damaged, locked, or of a newer version; the message says which."""


class Unavailable(ValueError):  # noqa: N818 - the name is a state
    """A sound store does not have what was asked for; the message says what it has."""


@dataclass(frozen=True)
class StoreColumn:
    """One column: its SQLite type and meaning. ``packed``: blobs of at least this size are compressed with zlib."""

    name: str
    type: str
    doc: str
    packed: int | None = None


@dataclass(frozen=True)
class StoreTable:
    """One table.

    Attributes:
        name, doc: for the documentation.
        columns: those that always exist.
        primary_key: of a table without row ids.
        indexes: column lists, with the condition of a partial index.
        growing: gets a column per metric.
        latest: a row replaces the one with the same key.
        retention: how its growth is bounded.
    """

    name: str
    doc: str
    columns: tuple[StoreColumn, ...]
    primary_key: str = ""
    indexes: tuple[str, ...] = ()
    growing: bool = False
    latest: bool = False
    retention: str = "all rows"

    def statements(self) -> list[str]:
        """The SQL that creates it."""
        parts = [f"{quoted(column.name)} {column.type}" for column in self.columns] + (
            [self.primary_key] if self.primary_key else []
        )
        created = [f"CREATE TABLE {self.name} ({', '.join(parts)})" + (" WITHOUT ROWID" if self.primary_key else "")]
        return created + [
            f"CREATE INDEX {self.name}_{number} ON {self.name} {columns}" for number, columns in enumerate(self.indexes)
        ]


_ID = StoreColumn("id", "INTEGER PRIMARY KEY", "order of arrival")
_FRAME = StoreColumn("frame", "INTEGER NOT NULL", "`frame.id` it arrived with")
_REST = StoreColumn("rest", "BLOB", "msgpack map: fields without a column; numbers that SQLite can't hold (NaN, -0.0)")

ENGINE_NUMBERS: Mapping[str, str] = {
    "last_seen": "REAL",
    "step": "INTEGER",
    "policy_version": "INTEGER",
    "lag": "INTEGER",
    "tokens": "INTEGER",
    "tokens_per_s": "REAL",
    "running": "INTEGER",
    "waiting": "INTEGER",
    "kv_usage": "REAL",
    "prefix_hit_rate": "REAL",
    "gap": "REAL",
    "flag_epoch": "INTEGER",
    "finished": "INTEGER",
    "aborted": "INTEGER",
    "without_logprobs": "INTEGER",
}
"""Fields of ``api.Engine`` that are numbers, with their SQLite types."""

ENGINE_FACTS = (
    "health",
    "host",
    "pid",
    "vllm_version",
    "version_source",
    "flags",
    "fingerprint",
    "paused",
    "update_open",
)
"""Fields of ``api.Engine`` that seldom change; stored once per change, as JSON."""

TABLES: tuple[StoreTable, ...] = (
    StoreTable(
        "life",
        "One hub process that wrote the store.",
        (
            _ID,
            StoreColumn("run", "TEXT NOT NULL", "name of the run"),
            StoreColumn("epoch", "TEXT NOT NULL", "as in frames and `hub.json`"),
            StoreColumn("started", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("version", "TEXT NOT NULL", "of rltop"),
        ),
    ),
    StoreTable(
        "frame",
        "One frame, as viewers got it; the rows that it brought refer to it.",
        (
            _ID,
            StoreColumn("life", "INTEGER NOT NULL", "`life.id`"),
            StoreColumn("time", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("trainer", "BLOB", "msgpack: `api.Trainer`, if it changed"),
            StoreColumn("counters", "BLOB", "msgpack: all counters of the hub"),
        ),
        retention="the newest 200,000; of older ones, those that rows refer to",
    ),
    StoreTable(
        "step",
        "One measured training step; a repeated step has a second row, and the later one counts.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("closed", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("policy_version", "INTEGER", "weights after the step"),
            StoreColumn("partial", "INTEGER NOT NULL", "1: rows or ranks are missing"),
            StoreColumn(
                "level", "INTEGER NOT NULL DEFAULT 0", "downsampling level, see [Retention](history.md#retention)"
            ),
            _REST,
        ),
        indexes=("(step, id)", "(level, id) WHERE level > 0", "(frame)"),
        growing=True,
        retention="downsampled",
    ),
    StoreTable(
        "step_engine",
        "The part of a step that was sampled by one engine.",
        (
            StoreColumn("step_id", "INTEGER NOT NULL", "`step.id`"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            _REST,
        ),
        primary_key="PRIMARY KEY (step_id, engine)",
        growing=True,
        retention="downsampled with its step, sooner",
    ),
    StoreTable(
        "engine_facts",
        "Configuration of an engine, read from its live objects.",
        (
            _ID,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("frame", "INTEGER NOT NULL", "`frame.id` since which it holds"),
            StoreColumn("facts", "TEXT NOT NULL", "JSON: " + ", ".join(ENGINE_FACTS)),
        ),
    ),
    StoreTable(
        "engine",
        "State of an engine; at most 200 rows a second for the whole fleet, and one at once if its facts changed.",
        (
            _ID,
            _FRAME,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("facts", "INTEGER NOT NULL", "`engine_facts.id`"),
            *(StoreColumn(name, kind, "as `api.Engine`") for name, kind in ENGINE_NUMBERS.items()),
            _REST,
        ),
        indexes=("(engine, id)", "(frame)"),
        retention="the newest 500,000; of older ones, one in sixty and the extremes",
    ),
    StoreTable(
        "event",
        "One event.",
        (
            _ID,
            _FRAME,
            StoreColumn("number", "INTEGER NOT NULL", "consecutive in the run"),
            StoreColumn("time", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("severity", "TEXT NOT NULL", "info, warn, error"),
            StoreColumn("kind", "TEXT NOT NULL", "subject: engine, trainer, hub, flag, alarm, store, ..."),
            StoreColumn("text", "TEXT NOT NULL", "message"),
            StoreColumn("step", "INTEGER", "last closed step at that time"),
            StoreColumn("engine", "TEXT", "engine id, if it is about one"),
            _REST,
        ),
        indexes=("(frame)",),
        retention="the newest 200,000; of older ones, warnings and errors",
    ),
    StoreTable(
        "change",
        "One stage of a command on one engine; the last row of a command and engine is its current state.",
        (
            _ID,
            _FRAME,
            StoreColumn("command", "TEXT NOT NULL", "command id"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("flag", "TEXT NOT NULL", "flag or action"),
            StoreColumn("wanted", "TEXT NOT NULL", "requested value"),
            StoreColumn("state", "TEXT NOT NULL", "requested, accepted, ... applied, refused, timed_out"),
            StoreColumn("requested", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("step", "INTEGER", "last closed step when it was requested"),
            StoreColumn("old", "TEXT", "value read back before"),
            StoreColumn("new", "TEXT", "value read back after"),
            _REST,
        ),
        indexes=("(command, engine, id)", "(frame)"),
        retention="all rows: people make them",
    ),
    StoreTable(
        "sample",
        "One retained sequence or token of a step: some at random, and the worst.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("kind", "TEXT NOT NULL", "sample, worst (sequences); abs_diff, k3 (tokens)"),
            StoreColumn("engine", "TEXT NOT NULL", "engine that sampled it; empty if unknown"),
            StoreColumn("tokens", "INTEGER NOT NULL", "trained tokens of the sequence"),
            StoreColumn("value", "REAL", "the value that it is ranked by, nats"),
            StoreColumn(
                "body",
                "BLOB NOT NULL",
                "msgpack map, with token ids and logprobs; zlib if it starts with 0x78",
                packed=1024,  # ids and versions compress well, logprobs hardly
            ),
        ),
        indexes=("(kind, step, value)", "(frame)"),
        retention="the newest, within a budget of bytes",
    ),
    StoreTable(
        "shape",
        "Location of the gap in one engine's part of a step: the distribution of d, and its sums by stratum.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty if unknown"),
            StoreColumn("tokens", "INTEGER NOT NULL", "trained tokens"),
            StoreColumn("invalid", "INTEGER NOT NULL", "of those, without a finite d"),
            StoreColumn("bins", "BLOB NOT NULL", "zlib: int64 counts of d, bins `gaps.mismatch.EDGES`", packed=0),
            StoreColumn(
                "sums",
                "BLOB NOT NULL",
                "zlib: float64 [strata, 8], `gaps.mismatch.GapShape.sums`; [strata, 4] in old stores",
                packed=0,
            ),
            StoreColumn(
                "environments",
                "BLOB",
                "zlib: msgpack map, environment to float64 [figures, moments], `summary/environments.py`; NULL in old "
                "stores",
                packed=0,
            ),
        ),
        indexes=("(step, id)", "(frame)"),
        retention="the newest 200,000",
    ),
    StoreTable(
        "evidence",
        "Input of a diagnosis: sums over the tokens of one engine's part of a step.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty if unknown"),
            StoreColumn("body", "BLOB NOT NULL", "zlib: float32, `rltop.backend.evidence.evidence.Evidence`", packed=0),
        ),
        indexes=("(step, id)", "(frame)"),
        retention="the newest 200,000",
    ),
    StoreTable(
        "strata",
        "Source of the gap in one engine's part of a step: sums by stratum, of all and of version-matched tokens, "
        "the regression over lag, prompt groups, and environments.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty if unknown"),
            StoreColumn("old", "INTEGER NOT NULL", "1: matched by old logprobs; 0: by lag 0"),
            StoreColumn(
                "body",
                "BLOB NOT NULL",
                "zlib: msgpack, `store/aggregates.py`; strata in the order of `summary/dimensions.py`",
                packed=0,
            ),
        ),
        indexes=("(frame)",),
        retention="the newest, within a budget of bytes",
    ),
    StoreTable(
        "cell",
        "Sums over the tokens of a step that one engine sampled in one flag epoch; for the effect of a switch.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "epoch of the engine's process, whose flag epochs start at 0"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch in which the tokens were sampled"),
            StoreColumn("sums", "BLOB NOT NULL", "zlib: float64 [figures, 6], `effects.epoch_sums.FIGURES`", packed=0),
        ),
        indexes=("(frame, step)",),
        retention="the newest 200,000",
    ),
    StoreTable(
        "mark",
        "The flag epoch of an engine that a command began.",
        (
            _ID,
            _FRAME,
            StoreColumn("command", "TEXT NOT NULL", "command id"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "epoch of the engine's process"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch"),
        ),
        indexes=("(frame)",),
        retention="all rows: people make them",
    ),
    StoreTable(
        "pace",
        "Throughput of one engine while it was busy, per 5 s.",
        (
            _ID,
            _FRAME,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "epoch of the engine's process"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch"),
            StoreColumn("time", "REAL NOT NULL", "end of the interval, wall clock of the hub, seconds"),
            StoreColumn("seconds", "REAL NOT NULL", "busy time"),
            StoreColumn("tokens", "INTEGER NOT NULL", "sampled in that time"),
        ),
        indexes=("(frame)",),
        retention="the newest 500,000",
    ),
    StoreTable(
        "alarm",
        "One stage of an alarm; the last row of an alarm is its current state.",
        (
            _ID,
            _FRAME,
            StoreColumn("alarm", "TEXT NOT NULL", "id of the alarm"),
            StoreColumn("cause", "TEXT NOT NULL", "slug of the cause that it is named after"),
            StoreColumn("code", "TEXT NOT NULL", "code of that cause"),
            StoreColumn("layer", "TEXT NOT NULL", "layer of that cause"),
            StoreColumn("title", "TEXT NOT NULL", "title of that cause"),
            StoreColumn("raised", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("raised_step", "INTEGER NOT NULL", "step after which it was raised"),
            StoreColumn("since_step", "INTEGER", "first step that shows it"),
            StoreColumn("cleared", "REAL", "wall clock of the hub, seconds; NULL while it is open"),
            StoreColumn("cleared_step", "INTEGER", "step after which it was cleared"),
            _REST,
        ),
        indexes=("(alarm, id)", "(frame)"),
        retention="all rows: they are few",
    ),
    StoreTable(
        "source",
        "How many messages of a collector the store accounts for; a hub that continues the run requests the rest.",
        (
            StoreColumn("source", "TEXT NOT NULL", "engine id, or `trainer/` and the rank"),
            _FRAME,
            StoreColumn("epoch", "TEXT NOT NULL", "of the collector's process, as on the wire"),
            StoreColumn("acknowledged", "INTEGER NOT NULL", "no message up to this number is needed any more"),
            StoreColumn("settled", "INTEGER NOT NULL", "no message up to this number is missing from any step"),
        ),
        primary_key="PRIMARY KEY (source)",
        indexes=("(frame)",),
        latest=True,
        retention="one row per collector",
    ),
    StoreTable(
        "taken",
        "Provenance of a step, so that resent messages are not counted twice.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("body", "BLOB NOT NULL", "zlib: msgpack, `store/resume.py`", packed=0),
        ),
        indexes=("(frame)",),
        retention="the newest 1,000",
    ),
)

BY_NAME: Mapping[str, StoreTable] = {table.name: table for table in TABLES}

MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    1: (
        "CREATE TABLE shape (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, step INTEGER NOT NULL, "
        "engine TEXT NOT NULL, tokens INTEGER NOT NULL, invalid INTEGER NOT NULL, bins BLOB NOT NULL, "
        "sums BLOB NOT NULL)",
        "CREATE INDEX shape_0 ON shape (step, id)",
        "CREATE INDEX shape_1 ON shape (frame)",
    ),
    2: (
        "CREATE TABLE evidence (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, step INTEGER NOT NULL, "
        "engine TEXT NOT NULL, body BLOB NOT NULL)",
        "CREATE INDEX evidence_0 ON evidence (step, id)",
        "CREATE INDEX evidence_1 ON evidence (frame)",
        "CREATE TABLE strata (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, step INTEGER NOT NULL, "
        "engine TEXT NOT NULL, old INTEGER NOT NULL, body BLOB NOT NULL)",
        "CREATE INDEX strata_0 ON strata (frame)",
        "CREATE TABLE cell (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, step INTEGER NOT NULL, "
        "engine TEXT NOT NULL, life TEXT NOT NULL, epoch INTEGER NOT NULL, sums BLOB NOT NULL)",
        "CREATE INDEX cell_0 ON cell (frame, step)",
        "CREATE TABLE mark (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, command TEXT NOT NULL, "
        "engine TEXT NOT NULL, life TEXT NOT NULL, epoch INTEGER NOT NULL)",
        "CREATE INDEX mark_0 ON mark (frame)",
        "CREATE TABLE pace (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, engine TEXT NOT NULL, life TEXT NOT NULL, "
        "epoch INTEGER NOT NULL, time REAL NOT NULL, seconds REAL NOT NULL, tokens INTEGER NOT NULL)",
        "CREATE INDEX pace_0 ON pace (frame)",
    ),
    3: (
        "CREATE TABLE alarm (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, alarm TEXT NOT NULL, cause TEXT NOT NULL, "
        "code TEXT NOT NULL, layer TEXT NOT NULL, title TEXT NOT NULL, raised REAL NOT NULL, raised_step INTEGER NOT "
        "NULL, since_step INTEGER, cleared REAL, cleared_step INTEGER, rest BLOB)",
        "CREATE INDEX alarm_0 ON alarm (alarm, id)",
        "CREATE INDEX alarm_1 ON alarm (frame)",
    ),
    4: (
        "CREATE TABLE source (source TEXT NOT NULL, frame INTEGER NOT NULL, epoch TEXT NOT NULL, "
        "acknowledged INTEGER NOT NULL, settled INTEGER NOT NULL, PRIMARY KEY (source)) WITHOUT ROWID",
        "CREATE INDEX source_0 ON source (frame)",
        "CREATE TABLE taken (id INTEGER PRIMARY KEY, frame INTEGER NOT NULL, step INTEGER NOT NULL, "
        "body BLOB NOT NULL)",
        "CREATE INDEX taken_0 ON taken (frame)",
    ),
    5: ("ALTER TABLE shape ADD COLUMN environments BLOB",),
}
"""SQL that migrates from a version to the next, for every version before ``VERSION``."""


def quoted(name: str) -> str:
    """Quote a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def open_version(connection: sqlite3.Connection) -> int | None:
    """Return the schema version of an open file; None if it is empty.

    Raises:
        StoreError: another program's database.
        sqlite3.DatabaseError: not an SQLite file.
    """
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if found == APPLICATION_ID:
        return int(version)
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
        return None
    raise StoreError("it is a database of another program")


def prepare(
    connection: sqlite3.Connection,
    *,
    tables: tuple[StoreTable, ...] = TABLES,
    migrations: Mapping[int, tuple[str, ...]] = MIGRATIONS,
    version: int = VERSION,
) -> None:
    """Create the tables in an empty file, or migrate those of an older version, in one transaction.

    Raises:
        StoreError: a newer version wrote it.
    """
    found = open_version(connection)
    if found == version:
        return
    if found is not None and found > version:
        raise StoreError(f"a newer rltop wrote it (schema {found}, this one knows {version}); update rltop")
    connection.execute("BEGIN IMMEDIATE")
    try:
        if found is None:
            statements = [statement for table in tables for statement in table.statements()]
        else:
            statements = [statement for step in range(found, version) for statement in migrations[step]]
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check_tables(connection: sqlite3.Connection) -> None:
    """Check that a file of this version has every table with its columns; a view or a virtual table is no table.

    Raises:
        StoreError: a table or a column is missing.
    """
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
    present = {name for (name,) in connection.execute(query)}
    for table in TABLES:
        found = columns(connection, table.name) if table.name in present else []
        if lacking := [column.name for column in table.columns if column.name not in found]:
            raise StoreError(f"damaged: table {table.name} lacks {', '.join(lacking)}")


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Return the names of the columns that the table has in this file."""
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def metric_names(present: Mapping[str, Iterable[str]], table: str) -> list[str]:
    """Return the metric columns among those that are ``present``, by table."""
    own = {column.name for column in BY_NAME[table].columns}
    return [name for name in present[table] if name not in own]


def document() -> str:
    """Return the content of ``docs/store.md``."""
    lines = [
        "# The store's tables",
        "",
        "Generated from [`backend/store/schema.py`](../backend/store/schema.py):",
        "`python -m rltop.backend.store.schema > docs/store.md`. Usage: [`history.md`](history.md).",
        f"Schema version {VERSION} (`PRAGMA user_version`).",
    ]
    for table in TABLES:
        lines += [
            "",
            f"## {table.name}",
            "",
            table.doc + f" Retention: {table.retention}.",
            "",
            "| column | type | |",
            "|---|---|---|",
        ]
        lines += [
            f"| `{column.name}` | {column.type} | {column.doc.replace('|', chr(92) + '|')} |"
            for column in table.columns
        ]
        if table.growing:
            lines.append("| *metric* | REAL | one column per metric of [`metrics.md`](metrics.md), by its name |")
        if table.name == "step":
            lines.append(
                f"| `{SCALAR}`*name* | REAL | one column per scalar that the trainer logged, the first {MAX_SCALARS} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(document())
