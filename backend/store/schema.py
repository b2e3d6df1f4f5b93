"""The tables of a run's store, as data: what each holds, column by column, and how it is kept bounded. Pure.

One SQLite file per run. A column is added as each metric appears, so ``SELECT step, kl_k3 FROM step`` works with
any tool that reads SQLite. What has no column of its own is in ``rest``, as msgpack, and comes back exactly.

``python -m rltop.backend.store.schema > docs/store.md`` writes the tables down.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

VERSION = 5
"""``PRAGMA user_version`` of a store that this version writes."""

APPLICATION_ID = 0x726C7470
"""``PRAGMA application_id``: "rltp"."""

MAX_SCALARS = 256
"""Columns for the trainer's own scalars; further names go into ``rest``."""

SCALAR = "trainer/"
"""A trainer's scalar has the column of its name with this before it."""


class StoreError(ValueError):
    """A file that is no store of ours, or one of another version; the message says which and what to do."""


@dataclass(frozen=True)
class StoreColumn:
    """One column: its SQLite type, and what it means; ``packed``: blobs from this size on are written with zlib."""

    name: str
    type: str
    doc: str
    packed: int | None = None


@dataclass(frozen=True)
class StoreTable:
    """One table.

    Attributes:
        name, doc: as read by people.
        columns: those that always exist.
        tail: primary key of a table without row ids, if it is one.
        indexes: column lists, with a condition where it is partial.
        growing: gets a column per metric.
        latest: a row takes the place of the one with the same key.
        kept: how its growth is bounded.
    """

    name: str
    doc: str
    columns: tuple[StoreColumn, ...]
    tail: str = ""
    indexes: tuple[str, ...] = ()
    growing: bool = False
    latest: bool = False
    kept: str = "whole"

    def statements(self) -> list[str]:
        """The SQL that makes it."""
        parts = [f"{quoted(column.name)} {column.type}" for column in self.columns] + ([self.tail] if self.tail else [])
        made = [f"CREATE TABLE {self.name} ({', '.join(parts)})" + (" WITHOUT ROWID" if self.tail else "")]
        return made + [
            f"CREATE INDEX {self.name}_{number} ON {self.name} {columns}" for number, columns in enumerate(self.indexes)
        ]


_ID = StoreColumn("id", "INTEGER PRIMARY KEY", "order of arrival")
_FRAME = StoreColumn("frame", "INTEGER NOT NULL", "`frame.id` that brought it")
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
"""Fields of ``view.Engine`` that are numbers, with their SQLite types."""

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
"""Fields of ``view.Engine`` that seldom change; kept once per change, as JSON."""

TABLES: tuple[StoreTable, ...] = (
    StoreTable(
        "life",
        "One hub process that wrote here.",
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
        "One batch of news, as viewers got it; what it brought refers to it.",
        (
            _ID,
            StoreColumn("life", "INTEGER NOT NULL", "`life.id`"),
            StoreColumn("time", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("trainer", "BLOB", "msgpack: `view.Trainer`, where it changed"),
            StoreColumn("counters", "BLOB", "msgpack: all counters of the hub"),
        ),
        kept="of the oldest, those that nothing refers to go",
    ),
    StoreTable(
        "step",
        "One training step, measured; a step that was trained again has a second row, and the later one counts.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("closed", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("policy_version", "INTEGER", "weights after the step"),
            StoreColumn("partial", "INTEGER NOT NULL", "1: rows of it are missing"),
            StoreColumn("level", "INTEGER NOT NULL DEFAULT 0", "in how coarse a picture it is kept; see `thinned`"),
            _REST,
        ),
        indexes=("(step, id)", "(level, id) WHERE level > 0", "(frame)"),
        growing=True,
        kept="thinned",
    ),
    StoreTable(
        "step_engine",
        "The part of a step that one engine wrote.",
        (
            StoreColumn("step_id", "INTEGER NOT NULL", "`step.id`"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            _REST,
        ),
        tail="PRIMARY KEY (step_id, engine)",
        growing=True,
        kept="thinned with its step, sooner",
    ),
    StoreTable(
        "engine_facts",
        "What an engine is: its settings as read from the live objects.",
        (
            _ID,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("frame", "INTEGER NOT NULL", "since which `frame.id`"),
            StoreColumn("facts", "TEXT NOT NULL", "JSON: " + ", ".join(ENGINE_FACTS)),
        ),
    ),
    StoreTable(
        "engine",
        "An engine as it was; at most 200 rows a second for the whole fleet, one at once where its facts changed.",
        (
            _ID,
            _FRAME,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("facts", "INTEGER NOT NULL", "`engine_facts.id`"),
            *(StoreColumn(name, kind, "as `view.Engine`") for name, kind in ENGINE_NUMBERS.items()),
            _REST,
        ),
        indexes=("(engine, id)", "(frame)"),
        kept="of the oldest, one a minute and the extremes stay",
    ),
    StoreTable(
        "event",
        "Something that happened.",
        (
            _ID,
            _FRAME,
            StoreColumn("number", "INTEGER NOT NULL", "rises by one per event of the run"),
            StoreColumn("time", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("severity", "TEXT NOT NULL", "info, warn, error"),
            StoreColumn("kind", "TEXT NOT NULL", "what it is about"),
            StoreColumn("text", "TEXT NOT NULL", "for people"),
            StoreColumn("step", "INTEGER", "last closed step at the time"),
            StoreColumn("engine", "TEXT", "which engine"),
            _REST,
        ),
        indexes=("(frame)",),
        kept="of the oldest, those of severity info go",
    ),
    StoreTable(
        "change",
        "One stage in the life of a command on one engine; the last row of a command and engine is how it stands.",
        (
            _ID,
            _FRAME,
            StoreColumn("command", "TEXT NOT NULL", "command id"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("flag", "TEXT NOT NULL", "which flag"),
            StoreColumn("wanted", "TEXT NOT NULL", "value asked for"),
            StoreColumn("state", "TEXT NOT NULL", "requested, accepted, ... applied, refused, timed_out"),
            StoreColumn("requested", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("step", "INTEGER", "last closed step when it was asked"),
            StoreColumn("old", "TEXT", "value read back before"),
            StoreColumn("new", "TEXT", "value read back after"),
            _REST,
        ),
        indexes=("(command, engine, id)", "(frame)"),
        kept="whole: people make them",
    ),
    StoreTable(
        "sample",
        "One trained sequence or token that was kept of a step: some at random, and the worst.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("kind", "TEXT NOT NULL", "sample, worst (sequences); abs_diff, k3 (tokens)"),
            StoreColumn("engine", "TEXT NOT NULL", "engine that wrote it; empty where not known"),
            StoreColumn("tokens", "INTEGER NOT NULL", "trained tokens of the sequence"),
            StoreColumn("value", "REAL", "what made it one of the worst, nats"),
            StoreColumn(
                "body",
                "BLOB NOT NULL",
                "msgpack map, with token ids and logprobs; zlib where it begins with 0x78",
                packed=1024,  # ids and versions repeat themselves, logprobs hardly
            ),
        ),
        indexes=("(kind, step, value)", "(frame)"),
        kept="the newest, within a budget of bytes",
    ),
    StoreTable(
        "shape",
        "Where the gap of one engine's part of a step lies: how d is spread, and its sums by stratum.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty where not known"),
            StoreColumn("tokens", "INTEGER NOT NULL", "trained tokens"),
            StoreColumn("invalid", "INTEGER NOT NULL", "of those, without a finite d"),
            StoreColumn("bins", "BLOB NOT NULL", "zlib: int64 counts of d, `mismatch.EDGES`", packed=0),
            StoreColumn(
                "sums",
                "BLOB NOT NULL",
                "zlib: float64 [strata, 8], `mismatch.Shape.sums`; [strata, 4] of old",
                packed=0,
            ),
        ),
        indexes=("(step, id)", "(frame)"),
        kept="the newest 200,000",
    ),
    StoreTable(
        "evidence",
        "What a diagnosis is made from: sums over the tokens of one engine's part of a step.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty where not known"),
            StoreColumn("body", "BLOB NOT NULL", "zlib: float32, `rltop.backend.evidence.evidence.Evidence`", packed=0),
        ),
        indexes=("(step, id)", "(frame)"),
        kept="the newest 200,000",
    ),
    StoreTable(
        "strata",
        "Where the gap of one engine's part of a step comes from: sums by stratum, of all and of matched tokens, "
        "the line over lag, and prompt groups.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id; empty where not known"),
            StoreColumn("old", "INTEGER NOT NULL", "1: matched by old logprobs; 0: by lag 0"),
            StoreColumn(
                "body",
                "BLOB NOT NULL",
                "zlib: msgpack, `history/sums.py`; strata in the order of `dimensions`",
                packed=0,
            ),
        ),
        indexes=("(frame)",),
        kept="the newest, within a budget of bytes",
    ),
    StoreTable(
        "cell",
        "What one engine wrote in one flag epoch of what a step trained on, in sums; for what a switch did.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "of the engine's process, whose flag epochs start at 0"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch in which the tokens were sampled"),
            StoreColumn("sums", "BLOB NOT NULL", "zlib: float64 [figures, 6], `cells.FIGURES`", packed=0),
        ),
        indexes=("(frame, step)",),
        kept="the newest 200,000",
    ),
    StoreTable(
        "mark",
        "Which flag epoch of an engine a command began.",
        (
            _ID,
            _FRAME,
            StoreColumn("command", "TEXT NOT NULL", "command id"),
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "of the engine's process"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch"),
        ),
        indexes=("(frame)",),
        kept="whole: people make them",
    ),
    StoreTable(
        "pace",
        "How fast one engine sampled while it worked, in stretches of 5 s.",
        (
            _ID,
            _FRAME,
            StoreColumn("engine", "TEXT NOT NULL", "engine id"),
            StoreColumn("life", "TEXT NOT NULL", "of the engine's process"),
            StoreColumn("epoch", "INTEGER NOT NULL", "flag epoch"),
            StoreColumn("time", "REAL NOT NULL", "end of it, wall clock of the hub, seconds"),
            StoreColumn("seconds", "REAL NOT NULL", "of work"),
            StoreColumn("tokens", "INTEGER NOT NULL", "sampled in them"),
        ),
        indexes=("(frame)",),
        kept="the newest 500,000",
    ),
    StoreTable(
        "alarm",
        "One stage in the life of an alarm; the last row of an alarm is how it stands.",
        (
            _ID,
            _FRAME,
            StoreColumn("alarm", "TEXT NOT NULL", "id of the alarm"),
            StoreColumn("cause", "TEXT NOT NULL", "slug of the cause that it is called by"),
            StoreColumn("code", "TEXT NOT NULL", "of that cause"),
            StoreColumn("layer", "TEXT NOT NULL", "where it lies"),
            StoreColumn("title", "TEXT NOT NULL", "what is wrong"),
            StoreColumn("raised", "REAL NOT NULL", "wall clock of the hub, seconds"),
            StoreColumn("raised_step", "INTEGER NOT NULL", "step after which it was raised"),
            StoreColumn("since_step", "INTEGER", "first step at which it shows"),
            StoreColumn("cleared", "REAL", "wall clock of the hub, seconds; NULL while it is open"),
            StoreColumn("cleared_step", "INTEGER", "step after which it was over"),
            _REST,
        ),
        indexes=("(alarm, id)", "(frame)"),
        kept="whole: they are few",
    ),
    StoreTable(
        "source",
        "How much of what a collector sent is in what is stored; a hub that goes on from here asks for the rest.",
        (
            StoreColumn("source", "TEXT NOT NULL", "engine id, or `trainer/` and the rank"),
            _FRAME,
            StoreColumn("epoch", "TEXT NOT NULL", "of the collector's process, as on the wire"),
            StoreColumn("acknowledged", "INTEGER NOT NULL", "no message up to this number is needed any more"),
            StoreColumn("settled", "INTEGER NOT NULL", "without messages from this number on steps may lack something"),
        ),
        tail="PRIMARY KEY (source)",
        indexes=("(frame)",),
        latest=True,
        kept="the newest of each collector",
    ),
    StoreTable(
        "taken",
        "What a step was made from, so that what is sent again is not counted twice.",
        (
            _ID,
            _FRAME,
            StoreColumn("step", "INTEGER NOT NULL", "the trainer's number"),
            StoreColumn("body", "BLOB NOT NULL", "zlib: msgpack, `history/resume.py`", packed=0),
        ),
        indexes=("(frame)",),
        kept="the newest 1,000",
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
}
"""From a version to the next: the SQL that does it. There is one for every version before ``VERSION``."""


def quoted(name: str) -> str:
    """The name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def open_version(connection: sqlite3.Connection) -> int | None:
    """Schema version of an open file; None if it is empty.

    Raises:
        StoreError: it is SQLite, but no store of ours.
        sqlite3.DatabaseError: it is not even that.
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
    """Make the tables in an empty file, or bring those of an older version up to date; one transaction.

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


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    """Names of the columns that the table has in this file."""
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def metric_names(present: Mapping[str, Iterable[str]], table: str) -> list[str]:
    """Of the columns that are ``present``, by table, those that metrics have brought."""
    own = {column.name for column in BY_NAME[table].columns}
    return [name for name in present[table] if name not in own]


def document() -> str:
    """``docs/store.md``."""
    lines = [
        "# The store's tables",
        "",
        "Made from [`backend/store/schema.py`](../backend/store/schema.py):",
        "`python -m rltop.backend.store.schema > docs/store.md`. How it is used: [`history.md`](history.md).",
        f"Schema version {VERSION} (`PRAGMA user_version`).",
    ]
    for table in TABLES:
        lines += [
            "",
            f"## {table.name}",
            "",
            table.doc + f" Kept: {table.kept}.",
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
                f"| `{SCALAR}`*name* | REAL | one column per scalar the trainer passed, the first {MAX_SCALARS} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(document())
