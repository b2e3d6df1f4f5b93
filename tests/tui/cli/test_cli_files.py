"""Damaged, foreign, locked and newer files: every command that reads one prints a line on standard error, and exits."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rltop.backend.measure import arrays
from rltop.backend.metrics import METRICS
from rltop.backend.store import schema
from rltop.backend.store.read import NAME
from rltop.tui.cli import main as cli

DATA = Path(__file__).parents[2] / "data" / "stored"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A store of a real run, of the current version."""
    return lzma.decompress((DATA / "store.sqlite.xz").read_bytes())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RLTOP_RUN", raising=False)
    return tmp_path


def readers(path: Path, out: Path) -> Iterator[list[str]]:
    """A command line of every command that reads a file of a run."""
    name = str(path)
    yield ["replay", name, "--json"]
    yield ["replay", name]
    yield ["diagnose", name, "--tests"]
    yield ["report", name, "--html"]
    yield ["attribution", name]
    yield ["effect", "--run", name]
    yield ["alarms", name]
    yield ["parity", name, name]
    yield ["record", name, "--to", str(out / "copy.rltop.gz"), "--force"]
    for what in ("steps", "engine-steps", "engines", "sequences", "events", "changes"):
        yield ["export", name, "--what", what, "--to", str(out / "rows.jsonl"), "--force"]


def run(arguments: list[str]) -> Result:
    """Run a command in this process; an exception other than click's is one of this test."""
    result = CliRunner().invoke(cli.main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(arguments) from result.exception
    return result


def one_line(result: Result) -> str:
    """The only line on standard error of a command that failed."""
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    return line


def edited(whole: bytes, path: Path, *statements: str) -> Path:
    path.write_bytes(whole)
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path


DAMAGE = {
    "text in a number": "UPDATE step SET kl_k3 = 'abc', closed = 'x'",
    "no facts": "UPDATE engine_facts SET facts = '[1,2'",
    "other facts": "DELETE FROM engine_facts WHERE id > 1",
    "bad counters": "UPDATE frame SET counters = x'ff00', trainer = x'c1'",
    "bad rest": "UPDATE step SET rest = x'8100'",
    "wrong rest": "UPDATE event SET rest = x'c0'",
    "huge step": "UPDATE step SET step = 9223372036854775807",
    "negative step": "UPDATE step SET step = -step - 1",
    "huge times": "UPDATE step SET closed = 1e300",
    "infinite times": "UPDATE event SET time = 9e999",
    "times of frames": "UPDATE frame SET time = -1e300",
    "times of changes": "UPDATE change SET requested = 1e300",
    "times of hubs": "UPDATE life SET started = 1e300",
    "infinite metrics": "UPDATE step_engine SET kl_k3 = 9e999",
    "cut evidence": "UPDATE evidence SET body = substr(body, 1, 20)",
    "bad zlib": "UPDATE strata SET body = x'78ffff'",
    "zeros": "UPDATE sample SET body = zeroblob(1000)",
    "other shape": "UPDATE shape SET bins = x'789c'",
    "number for a blob": "UPDATE cell SET sums = 7",
    "huge pace": "UPDATE pace SET seconds = 9e999, tokens = 9223372036854775807",
    "text for an id": "UPDATE mark SET epoch = 'x'",
    "bad text": "UPDATE event SET text = CAST(x'ff' AS TEXT)",
    "no table": "DROP TABLE step",
    "no column": "ALTER TABLE event DROP COLUMN text",
    "endless view": "DROP TABLE alarm; CREATE VIEW alarm AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 "
    "FROM r) SELECT n AS id, n AS frame FROM r",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_store_with_damaged_rows_is_read_or_refused(whole: bytes, tmp_path: Path, name: str) -> None:
    path = edited(whole, tmp_path / "run.rltop", *DAMAGE[name].split("; "))
    for command in readers(path, tmp_path):
        result = run(command)
        assert result.exit_code in (0, 1, 3), command
        assert result.exit_code != 1 or result.stdout or len(result.stderr.splitlines()) == 1, result.stderr


FOREIGN = {
    "a newer version": ("PRAGMA user_version = 99", "a newer rltop wrote it"),
    "another program": ("PRAGMA application_id = 7", "another program"),
    "no table": ("DROP TABLE step", "table step lacks"),
    "a view for a table": ("ALTER TABLE pace RENAME TO p; CREATE VIEW pace AS SELECT * FROM p", "table pace lacks"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_store_is_refused_in_one_line_that_says_why(whole: bytes, tmp_path: Path, name: str) -> None:
    statements, why = FOREIGN[name]
    path = edited(whole, tmp_path / "run.rltop", *statements.split("; "))
    for command in readers(path, tmp_path):
        line = one_line(run(command))
        assert str(path) in line
        assert why in line


def test_a_file_that_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    kinds = {"a": b"", "b": b"SQLite format 3\0", "c": os.urandom(5000), "d.gz": b"no gzip", "e.gz": bomb}
    for name, content in kinds.items():
        (path := tmp_path / name).write_bytes(content)
        for command in readers(path, tmp_path):
            assert str(path) in one_line(run(command))


def test_a_store_that_another_process_has_locked_is_named(whole: bytes, tmp_path: Path) -> None:
    path = edited(whole, tmp_path / "run.rltop", "PRAGMA journal_mode = DELETE")
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert "another process has locked it" in one_line(run(["replay", str(path), "--json"]))
    finally:
        connection.close()


def test_a_pipe_in_place_of_a_store_is_not_waited_for(home: Path) -> None:
    run_directory = home / "home" / "pipe"
    run_directory.mkdir(parents=True, mode=0o700)
    os.mkfifo(run_directory / NAME)
    assert "no store at" in one_line(run(["replay", "pipe", "--json"]))


@st.composite
def damages(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """Places and bytes to put there; dense enough to hit rows as well as pages' own structure."""
    places = st.integers(0, size - 1)
    return draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=60))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_of_a_store_leaves_an_answer_or_one_line(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    for place, value in data.draw(damages(len(whole))):
        damaged[place] = value
    del damaged[data.draw(st.integers(0, 4 * len(whole))) :]
    (path := tmp_path / "run.rltop").write_bytes(damaged)
    for command in readers(path, tmp_path):
        result = run(command)
        assert result.exit_code in (0, 1, 3)
        assert result.stdout or len(result.stderr.splitlines()) == 1


EVERY_COLUMN = [(table.name, column.name) for table in schema.TABLES for column in table.columns] + [
    (table, metric.name) for table in ("step", "step_engine") for metric in METRICS
]


ODD = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.binary(max_size=9),
    st.sampled_from([zlib.compress(b""), zlib.compress(bytes(8)), b"\x80", b"\x90", b"\xc0", "{}", "[]", "null"]),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(EVERY_COLUMN), ODD), min_size=1, max_size=3))
def test_any_value_in_any_column_leaves_an_answer_or_one_line(
    whole: bytes, tmp_path: Path, edits: list[tuple[tuple[str, str], Any]]
) -> None:
    (path := tmp_path / "run.rltop").write_bytes(whole)
    connection = sqlite3.connect(path, isolation_level=None)
    for (table, column), value in edits:
        with contextlib.suppress(sqlite3.IntegrityError, sqlite3.OperationalError):  # a constraint, or no such metric
            connection.execute(f"UPDATE {table} SET {schema.quoted(column)} = ?", (value,))
    connection.close()
    for command in readers(path, tmp_path):
        result = run(command)
        assert result.exit_code in (0, 1, 3)
        assert result.stdout or len(result.stderr.splitlines()) == 1


ROWS: dict[str, Any] = {
    "trainer_logprobs": np.zeros((2, 3), "f4"),
    "rollout_logprobs": np.zeros((2, 3), "f4"),
    "mask": np.ones((2, 3)),
}


def npy(array: Any) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def with_header(text: bytes) -> bytes:
    """The beginning of an array's file, without numbers."""
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    return with_header(repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n")


BAD_MEMBERS = {
    "huge": header((2**40, 2**20)) + b"x" * 10,
    "larger than memory": header((10**11,)),
    "negative": header((-5, 3)) + b"x" * 10,
    "long text": header((2, 3), "<U99999999"),
    "a call": with_header(b"__import__('os').system('false')\n"),
    "deep": with_header(b"(" * 100_000 + b"\n"),
    "cut": header((2, 3)) + b"x",
    "empty": b"",
    "no array": b"hello",
}


@pytest.mark.parametrize("name", BAD_MEMBERS)
def test_an_array_that_is_no_array_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.npz"
    with zipfile.ZipFile(path, "w") as file:
        for own, array in ROWS.items():
            file.writestr(f"{own}.npy", BAD_MEMBERS[name] if own == "mask" else npy(array))
    assert "mask" in one_line(run(["compute", str(path)]))


@pytest.mark.parametrize("version", [np.nan, np.inf, -np.inf, 0.5, 1e30, np.uint64(2**64 - 1), np.uint64(2**63)])
def test_a_version_that_is_no_version_is_refused(tmp_path: Path, version: Any) -> None:
    np.savez(path := tmp_path / "rows.npz", **ROWS, policy_version=version)
    assert "policy_version: " in one_line(run(["compute", str(path)]))


def rounded(values: list[float], kind: str) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(kind)


NUMBERS = st.one_of(st.floats(), st.integers(-(2**63), 2**64 - 1), st.booleans(), st.complex_numbers(), st.text())
ARRAYS = st.one_of(
    NUMBERS.map(np.asarray),
    st.lists(NUMBERS, max_size=6).map(lambda values: np.asarray(values, object).astype(str)),
    st.tuples(st.lists(st.floats(), min_size=6, max_size=6), st.sampled_from(["f2", "f4", "f8"])).map(
        lambda drawn: rounded(*drawn).reshape(2, 3)
    ),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=6, max_size=6).map(lambda v: np.asarray(v).reshape(2, 3)),
)


@example({"old_version": np.zeros((2, 3), np.float16)})
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(arrays.NAMES)), ARRAYS, max_size=5))
def test_any_arrays_are_computed_or_refused_in_one_line(tmp_path: Path, drawn: dict[str, Any]) -> None:
    np.savez(path := tmp_path / "rows.npz", **(ROWS | drawn))
    result = run(["compute", str(path), "--json"])
    assert result.exit_code == 0 or one_line(result)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_of_an_npz_is_computed_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    np.savez_compressed(path := tmp_path / "rows.npz", **ROWS)
    damaged = bytearray(path.read_bytes())
    for place, value in data.draw(damages(len(damaged))):
        damaged[place] = value
    del damaged[data.draw(st.integers(0, 2 * len(damaged))) :]
    path.write_bytes(damaged)
    result = run(["compute", str(path)])
    assert result.exit_code == 0 or one_line(result)


RLTOP = [sys.executable, "-m", "rltop.tui.cli.main"]


@pytest.mark.parametrize("arguments", [["--help"], ["metrics"], ["metrics", "--json"], ["replay", "--sample"]])
def test_a_full_disk_as_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*RLTOP, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "Error: standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["--help"], ["metrics", "--json"]])
def test_a_reader_that_left_ends_the_command_quietly(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([*RLTOP, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_characters_that_the_terminal_lacks_are_printed_as_escapes() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run([*RLTOP, "metrics"], capture_output=True, env=environment, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u" in ended.stdout or ended.stdout.isascii()
