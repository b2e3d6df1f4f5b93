"""The command line of attach and detach: what it says about processes, and its errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rltop.collectors.contract import engine_processes as table
from rltop.collectors.contract.engine_processes import ATTACHED, DORMANT, LOADING
from rltop.tui.cli import main as cli
from tests.support.receiver import run_directory


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("RLTOP_RUN", "RLTOP_HUB"):
        monkeypatch.delenv(name, raising=False)
    with run_directory() as found:
        monkeypatch.setenv("RLTOP_HOME", str(found.path))
        yield found.path


def rltop(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def others() -> Iterator[list[int]]:
    """The pids of two live processes."""
    found = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    yield [process.pid for process in found]
    for process in found:
        process.communicate(b"\n")


def put(pid: int, state: str, run: Path | None = None) -> None:
    """A record of a live process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    engines = () if state == LOADING else (f"e{pid}",)
    record = table.this_process(state, engines, "0.32.0", "" if run is None else str(run))
    table.write(replace(record, pid=pid, started=ticks))


def test_without_processes_the_error_names_the_usual_reasons(home: Path) -> None:
    for command in (["attach", "myrun"], ["attach", "myrun", "--all"], ["detach"]):
        said = rltop(*command)
        assert said.exit_code == 1
        assert "no engine process with the plugin is up" in said.stderr
        assert "http://HOST:PORT" in said.stderr
    assert not (home / "myrun").exists()


@pytest.mark.parametrize("url", [[], ["http://127.0.0.1:9"]])
def test_without_a_live_run_the_error_shows_the_command_with_a_new_one(home: Path, url: list[str]) -> None:
    said = rltop("attach", *url)
    assert said.exit_code == 1
    assert f"`{' '.join(['rltop attach', *url, 'myrun'])}`" in said.stderr


def test_several_dormant_processes_need_a_choice(home: Path, others: list[int]) -> None:
    for pid in others:
        put(pid, DORMANT)
    said = rltop("attach", "myrun")
    assert said.exit_code == 1
    assert "Name one with --pid, or use --all" in said.stderr
    assert all(f"pid {pid}" in said.stderr for pid in others)
    assert not (home / "myrun").exists()


def test_a_process_that_does_not_listen_is_reported_for_each(home: Path, others: list[int]) -> None:
    for pid in others:
        put(pid, ATTACHED, home / "myrun")
    said = rltop("detach", "--all", "--json")
    assert said.exit_code == 1
    answers = json.loads(said.stdout)["engines"]
    assert [answer["pid"] for answer in answers] == sorted(others)
    assert all("can't reach the process" in answer["error"] for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["attach", "myrun", "--pid", "1", "--all"], 2, "either --pid or --all"),
        (["attach", "myrun", "--pid", "0"], 2, "0"),
        (["attach", "myrun", "--pid", "x"], 2, "not a valid integer"),
        (["attach", "one", "two"], 2, "at most a URL and a run"),
        (["attach", "http://h:1", "one", "two"], 2, "at most a URL and a run"),
        (["attach", "http://h:1", "one", "--all"], 2, "not for a URL"),
        (["attach", "ftp://h:1", "one"], 1, "expected an address"),
        (["attach", "http://127.0.0.1:9", "one"], 1, "does not answer"),
        (["attach", "bad name", "--all"], 1, "bad name"),
        (["attach"], 1, "no run is live"),
        (["attach", "myrun", "--timeout", "0"], 2, "--timeout"),
        (["detach", "--keep", "--pid", "4194304"], 1, "No process has this pid"),
    ],
    ids=str,
)
def test_wrong_input_is_an_error_that_says_what_is_expected(
    home: Path, arguments: list[str], code: int, reason: str
) -> None:
    said = rltop(*arguments)
    assert (said.exit_code, reason in said.stderr) == (code, True), said.output
    assert not (home / "one").exists()


def test_a_front_ends_pid_is_refused_with_the_known_ones(home: Path, others: list[int]) -> None:
    put(others[0], DORMANT)
    said = rltop("attach", "myrun", "--pid", str(others[1]))
    assert f"known: {others[0]}" in said.stderr
    assert "engine core" in said.stderr


def test_loading_engines_are_shown_instead_of_no_run(home: Path, others: list[int]) -> None:
    put(others[0], LOADING, home / "myrun")
    line = f"plugin active in pid {others[0]} (run 'myrun'), engine loading"
    for command in (["status"], ["status", "myrun"], ["top"], ["diagnose", "myrun"]):
        said = rltop(*command)
        assert (said.exit_code, line in said.stderr) == (1, True), said.output
    assert line in rltop("runs").stdout
    (shown,) = json.loads(rltop("runs", "--json").stdout)["processes"]
    assert shown == {"pid": others[0], "state": "loading", "engines": [], "vllm_version": "0.32.0", "run": "myrun"}
    said = rltop("attach", "myrun", "--pid", str(others[0]))
    assert "try again when it is ready" in said.stderr


def test_a_run_that_is_not_among_the_listed_ones_is_shown_with_its_directory(home: Path, others: list[int]) -> None:
    put(others[0], ATTACHED, home / "elsewhere" / "deep")
    put(others[1], LOADING, home / "myrun")
    listed = rltop("runs").stdout
    assert f"reports to run 'deep' in {home / 'elsewhere'}" in listed
    assert "(run 'myrun'), engine loading" in listed


def test_a_process_of_another_run_is_left_alone_and_no_hub_is_started(home: Path, others: list[int]) -> None:
    put(others[0], ATTACHED, home / "taken")
    said = rltop("attach", "mine", "--pid", str(others[0]))
    assert said.exit_code == 1
    assert "reports to the run in" in said.stderr
    assert not (home / "mine").exists()


def test_a_directory_that_others_can_write_is_an_error(home: Path) -> None:
    table.create_directory().chmod(0o777)
    said = rltop("attach", "myrun")
    assert (said.exit_code, "mode 0700" in said.stderr) == (1, True)
    table.directory().chmod(0o700)
