"""A run in an odd place, or with odd things in the place of its files: every command prints one line, and exits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from rltop.tui.cli import main as cli

COMMANDS: dict[str, list[list[str]]] = {
    "top": [["r"]],
    "runs": [[], ["--json"]],
    "hub": [["r", "--stop"]],
    "status": [["r"], ["r", "--json"]],
    "diagnose": [["r"]],
    "fingerprint": [["r"]],
    "worst": [["r"]],
    "attribution": [["r"]],
    "launch-args": [["e0", "--run", "r"]],
    "set": [["prefix_caching", "off", "--run", "r"]],
    "keep": [["c", "--run", "r"]],
    "undo": [["c", "--run", "r"]],
    "flush": [["--run", "r"]],
    "pause": [["--run", "r"]],
    "resume": [["--run", "r"]],
    "keys": [["r"], ["r", "--rotate"]],
    "alarms": [["r"]],
    "ack": [["a", "--run", "r"]],
    "silence": [["a", "--off", "--run", "r"]],
    "effect": [["--run", "r"]],
    "audit": [["r"]],
    "probe": [["token-echo", "--run", "r"]],
    "replay": [["r", "--json"]],
    "report": [["r"]],
    "record": [["r", "--to", "copy.rltop.gz"]],
    "export": [["r", "--what", "steps", "--to", "rows.csv"]],
    "parity": [["r", "r"]],
}
ELSEWHERE = {"demo", "attach", "detach", "integrate", "doctor", "forward", "metrics", "compute"}
"""Commands that read no run, that wait for one, or whose output are findings; they have tests of their own."""

RUN_FILES = (
    "hub.json",
    "hub.lock",
    "hub.log",
    "start.lock",
    "store.sqlite",
    "audit.jsonl",
    "control.key",
    "ingest.sock",
)


def made(home: Path) -> Path:
    """The directory of the run."""
    home.mkdir(mode=0o700)
    (home / "r").mkdir(mode=0o700)
    return home / "r"


def is_file(home: Path) -> None:
    home.write_text("not a directory")


def is_loop(home: Path) -> None:
    home.symlink_to(home)


def run_is_file(home: Path) -> None:
    home.mkdir()
    (home / "r").write_text("not a directory")


def run_is_open(home: Path) -> None:
    made(home).chmod(0o777)
    (home / "r" / "hub.json").write_text("{}")


def files_are_directories(home: Path) -> None:
    run = made(home)
    for name in RUN_FILES:
        (run / name).mkdir()


def files_are_pipes(home: Path) -> None:
    run = made(home)
    for name in RUN_FILES:
        os.mkfifo(run / name)


def files_are_garbage(home: Path) -> None:
    run = made(home)
    for name in RUN_FILES:
        (run / name).write_bytes(b"\x00\xff\x1b[2J" * 3000 + b'\n{"at": "x", "time": 1e308}\n[]\nnull\n')


def process_has_another_program(home: Path) -> None:
    run = made(home)
    (run / "hub.lock").touch()
    info = {"pid": os.getpid(), "host": "h\x1b", "started": 1e300, "epoch": "x", "proto": 99}
    (run / "hub.json").write_text(json.dumps(info))


PLACES: tuple[Callable[[Path], object], ...] = (
    lambda _: None,
    is_file,
    is_loop,
    made,
    run_is_file,
    run_is_open,
    files_are_directories,
    files_are_pipes,
    files_are_garbage,
    process_has_another_program,
)


def test_every_command_is_here_or_elsewhere() -> None:
    assert set(cli.main.commands) == set(COMMANDS) | ELSEWHERE


@pytest.mark.parametrize("place", PLACES, ids=["absent", *(place.__name__ for place in PLACES[1:])])
def test_every_command_prints_one_line_and_exits(
    place: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RLTOP_RUN", raising=False)
    place(tmp_path / "home")
    assert_one_line()


@pytest.mark.parametrize("home", ["n" * 300, "a/" * 80, "\x1b[2J", "ü ' $(x)"], ids=ascii)
def test_so_it_does_with_an_odd_path_of_the_runs(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLTOP_HOME", str(tmp_path / home))
    monkeypatch.delenv("RLTOP_RUN", raising=False)
    assert_one_line()


def test_so_it_does_without_any_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    for name in ("RLTOP_HOME", "RLTOP_RUN", "HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert_one_line()


def assert_one_line() -> None:
    for name, lines in COMMANDS.items():
        for arguments in lines:
            result = CliRunner().invoke(cli.main, [name, *arguments])
            assert result.exception is None or isinstance(result.exception, SystemExit), (name, result.exception)
            assert "\x1b" not in result.stderr
            if result.exit_code != 0:
                assert result.exit_code == 1, (name, result.stderr)
                assert len(result.stderr.splitlines()) == 1, (name, result.stderr)
