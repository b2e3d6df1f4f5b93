"""Records of engine processes: written atomically, valid or skipped, and gone with their process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract import engine_processes as table
from rltop.collectors.contract.rundir import RunDirError
from tests.support.harness import ended


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path))
    return tmp_path


def record_file(pid: int) -> Path:
    return table.directory() / f"{pid}.json"


def put(pid: int, content: bytes) -> None:
    table.create_directory()
    record_file(pid).write_bytes(content)


def test_a_record_is_read_as_it_was_written_and_replaced_by_the_next() -> None:
    assert table.engine_processes() == []
    for state in table.STATES:
        written = table.this_process(state, ("e0", "e1"), "0.32.0", "/runs/one")
        table.write(written)
        assert table.engine_processes() == [written]
    table.remove(os.getpid())
    assert table.engine_processes() == []


def test_the_record_of_a_killed_process_is_removed_with_its_socket() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    table.write(replace(table.this_process(table.DORMANT), pid=process.pid, started=ticks))
    table.socket_of(process.pid).touch()
    assert [found.pid for found in table.engine_processes()] == [process.pid]
    process.send_signal(signal.SIGKILL)
    ended(process)
    assert table.engine_processes() == []
    assert list(table.directory().iterdir()) == []


def test_a_later_process_with_the_same_pid_is_not_the_engine() -> None:
    table.write(replace(table.this_process(table.DORMANT), started="1"))
    assert table.engine_processes() == []
    assert not record_file(os.getpid()).exists()


def test_records_of_other_machines_and_pid_namespaces_are_left_alone() -> None:
    table.write(replace(table.this_process(table.DORMANT), machine="elsewhere pid:[1]", started="1"))
    assert table.engine_processes() == []
    assert record_file(os.getpid()).exists()


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_a_malformed_record_is_skipped(content: bytes) -> None:
    put(os.getpid(), content)
    assert table.engine_processes() == []


@pytest.mark.parametrize(
    "change",
    [
        {"state": "sleeping"},
        {"pid": 1},
        {"engines": "e0"},
        {"engines": [1]},
        {"run": None},
        {"more": 1},
        {"started": 5},
    ],
    ids=str,
)
def test_a_record_with_other_fields_is_skipped(change: dict[str, Any]) -> None:
    fields = asdict(table.this_process(table.DORMANT, ("e0",)))
    put(os.getpid(), json.dumps(fields | change).encode())
    assert table.engine_processes() == []


def test_a_directory_that_others_can_write_is_refused(home: Path) -> None:
    table.create_directory().chmod(0o770)
    with pytest.raises(RunDirError, match="0700"):
        table.write(table.this_process(table.DORMANT))
    with pytest.raises(RunDirError, match="0700"):
        table.engine_processes()


def test_a_link_instead_of_the_directory_is_refused(home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    table.directory().symlink_to(elsewhere)
    with pytest.raises(RunDirError, match="0700"):
        table.create_directory()


def test_a_path_that_is_too_long_for_a_socket_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_HOME", str(home / ("x" * 100)))
    with pytest.raises(RunDirError, match="too long for a socket"):
        table.create_directory()


def test_the_directory_can_not_be_the_name_of_a_run() -> None:
    from rltop.collectors.contract.rundir import for_run

    with pytest.raises(RunDirError):
        for_run(table.directory().name)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o773])
def test_a_home_in_which_others_could_replace_the_directory_is_refused(home: Path, mode: int) -> None:
    home.chmod(mode)
    with pytest.raises(RunDirError, match="another user could replace"):
        table.write(table.this_process(table.DORMANT))
