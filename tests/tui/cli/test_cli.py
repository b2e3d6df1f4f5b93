"""The command line on real hubs: its output as text and JSON, its error messages and exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from rltop.backend.client.live import Client
from rltop.backend.store.writer_launch import wait_for_writer
from rltop.collectors.contract import wire
from rltop.collectors.contract.launch import ensure_hub, find_hub
from rltop.collectors.contract.rundir import RunDir, for_run
from rltop.collectors.transport.sender import Message, Sender
from rltop.tui.cli import main as cli
from tests.backend.hub.test_hub_report import CHANGE_KEYS, ENGINE_KEYS, REPORT_KEYS, STEP_KEYS
from tests.support.harness import wait_shown
from tests.support.hub_messages import Trained, engine_state, sequences
from tests.support.receiver import run_directory, wait_until


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty ``RLTOP_HOME``; hubs that a test starts in it are killed at the end."""
    for name in ("RLTOP_RUN", "RLTOP_HUB"):
        monkeypatch.delenv(name, raising=False)
    with run_directory() as found:
        monkeypatch.setenv("RLTOP_HOME", str(found.path))
        yield found.path
        for path in found.path.iterdir():
            kill_hub(RunDir(path))
            wait_for_writer(path)


def kill_hub(rundir: RunDir) -> None:
    if info := find_hub(rundir):
        os.kill(info.pid, signal.SIGKILL)
        wait_until(lambda: find_hub(rundir) is None)


def rltop(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


def answer(*arguments: str) -> Any:
    """The JSON that a successful command prints."""
    result = rltop(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def start_hub(run: str) -> RunDir:
    rundir = for_run(run)
    ensure_hub(rundir)
    return rundir


class Engine:
    """An engine's end of the wire: reports its state, and applies or refuses every command immediately."""

    def __init__(self, rundir: RunDir, *, refuses: str = "") -> None:
        self._refuses = refuses
        self._closed: list[wire.CommandUpdate] = []
        self.sender = Sender[Message](
            rundir, "e0", "engine", lambda _, items: items, on_message=self._obey, periodic=self._report
        )
        self.sender.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close(5)

    def _report(self) -> None:
        self.sender.offer("state", 100, (engine_state("e0", commands=list(self._closed)), {}))

    def _obey(self, message: wire.ControlToCollector) -> None:
        if isinstance(message, wire.Command):
            state = "refused" if self._refuses else "applied"
            self._closed.append(
                wire.CommandUpdate(
                    message.id, "e0", message.flag, state, old="on", new=message.value, engine_step=9, in_flight=2,
                    lost_requests=0, milliseconds=0.5, reason=self._refuses, flag_epoch=None if self._refuses else 1,
                )
            )  # fmt: skip
            self.sender.reply(self._closed[-1])


def wait_for_engine(rundir: RunDir) -> None:
    with Client(rundir) as client:
        wait_shown(client, lambda c: c.view is not None and "e0" in c.view.engines)


def test_the_help_lists_every_command_under_one_heading() -> None:
    result = rltop("--help")
    assert result.exit_code == 0
    _, start, table = result.output.partition("Start:")
    assert re.findall(r"^(\S.*):$", start + table, re.MULTILINE) == list(cli.HEADINGS)
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", table, re.MULTILINE)
    assert sorted(listed) == sorted(cli.main.commands)
    assert "..." not in table, "a summary was cut off"
    assert rltop("--version").output.startswith("rltop, version ")


@pytest.mark.parametrize("name", cli.main.commands)
def test_the_help_of_a_command_ends_with_an_example_that_parses(name: str) -> None:
    result = rltop(name, "-h")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: main {name} ")
    (example,) = re.findall(r"^  Example: (.+)$", result.output, re.MULTILINE)
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("rltop", name)
    cli.main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "`rltop demo` starts one"),
        (["status"], 1, "`rltop runs` lists all runs"),
        (["hub"], 1, "no run is live"),
        (
            ["statsu"],
            1,
            "no run named 'statsu' .*; did you mean `rltop status`\\? there are no runs; `rltop --help`",
        ),
        (["hub", "nosuch"], 1, "no run named 'nosuch' .* `rltop hub nosuch --new` starts the hub of a new run"),
        (["report", "nosuch"], 1, "no run named 'nosuch'"),
        (["runs", "--remove", "nosuch"], 1, "no run named 'nosuch'"),
        (["status", "nosuch", "--json"], 1, "no run named 'nosuch'"),
        (["set", "prefix_caching", "off", "--run", "nosuch"], 1, "no run named 'nosuch'"),
        (["hub", "nosuch", "--stop"], 1, "no run named 'nosuch'"),
        (["hub", "a b"], 1, "run name 'a b': use 1 to 64 letters"),
        (["hub", "a" * 65], 1, "use 1 to 64 letters"),
        (["hub", "tcp://1.2.3.4:5"], 1, "network addresses are refused"),
        (["status", "tcp://1.2.3.4:5"], 1, "network addresses are refused"),
        (["runs", "extra"], 2, "unexpected extra argument"),
        (["--bogus"], 2, "--bogus"),
        (["set", "speed", "on"], 2, "prefix_caching"),
        (["set", "prefix_caching", "off", "--for", "soon"], 2, "'soon' is not a duration; use 90s, 10m"),
        (["set", "prefix_caching", "off", "--for", "8d"], 2, "8d: use more than 0 and at most 7d"),
        (["set", "prefix_caching", "off", "--fraction", "0"], 2, "--fraction"),
        (["pause", "--for", "11m"], 2, "at most 10m"),
        (["keep", "c1"], 1, "no run is live"),
        (["undo"], 1, "no run is live"),
        (["audit"], 1, "no run is live"),
        (["audit", "nosuch"], 1, "no run named 'nosuch'"),
        (["flush", "--run", __file__], 1, "is a file; this command needs a run. `rltop replay .*` shows a file"),
        (["status", __file__], 1, "no store of rltop"),
        (["status", "one", "--run", "two"], 2, "give the run once"),
        (["set", "prefix_cachin", "off"], 2, "did you mean 'prefix_caching'\\?"),
        (["set", "async_scheduling", "of"], 2, "did you mean 'off'\\?"),
        (["demo", "--fault", "stale_prefx"], 2, "did you mean 'stale-prefix'\\?"),
        (["demo", "--set", "1:prefix-caching=off"], 2, "did you mean 'prefix_caching'\\?"),
        (["probe", "tokenecho"], 2, "did you mean 'token-echo'\\?"),
        (["metrics", "kl_k33"], 1, "did you mean 'kl_k3'\\?"),
        (["forward", "--to", "promtheus:9464"], 1, "did you mean 'prometheus'\\?"),
        (["export", "--what", "step", "--to", "x.csv"], 2, "did you mean 'steps'\\?"),
        (["worst", "--kind", "abs-dif"], 2, "did you mean 'abs_diff'\\?"),
        (["audit", "--since", "yesterday"], 2, "neither a duration \\(2h\\) nor a time"),
        (["set", "prefix_caching", "maybe"], 2, "prefix_caching can be on or off, not 'maybe'"),
        (["demo", "--set", "5:prefix_caching"], 2, "expected N:FLAG=VALUE"),
        (["demo", "--set", "0:speed=on"], 2, "there are prefix_caching, async_scheduling"),
        (["demo", "--steps", "3", "--set", "3:prefix_caching=off"], 2, "the last of 3 steps is 2"),
        (["demo", "--seed", "-1"], 2, "--seed"),
    ],
)
def test_an_invalid_command_line_prints_what_to_do(home: Path, arguments: list[str], code: int, message: str) -> None:
    result = rltop(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert list(home.iterdir()) == [], "a failed command left files behind"


def test_a_hub_is_started_listed_and_stopped(home: Path) -> None:
    assert answer("runs", "--json") == {"home": str(home), "runs": [], "processes": []}
    assert "no runs under" in rltop("runs").output
    first, again = rltop("hub", "one", "--new"), rltop("hub", "one")
    assert (first.exit_code, first.output) == (0, again.output)
    info = find_hub(RunDir(home / "one"))
    assert info is not None
    (run,) = answer("runs", "--json")["runs"]
    assert run == {
        "run": "one", "live": True, "hub_pid": info.pid, "started": info.started, "directory": str(home / "one"),
    }  # fmt: skip
    assert rltop("hub", "--stop").output == "hub of run 'one' stopped\n"
    assert find_hub(RunDir(home / "one")) is None
    (run,) = answer("runs", "--json")["runs"]
    assert (run["live"], run["hub_pid"], run["started"]) == (False, None, None)
    assert "no hub" in rltop("runs").output
    twice = rltop("hub", "one", "--stop")
    assert (twice.exit_code, twice.stderr) == (1, "Error: run 'one' has no hub\n")


def test_a_wrong_name_suggests_a_run_and_leaves_nothing_behind(home: Path) -> None:
    for name in ("night", "sort"):
        (home / name).mkdir(mode=0o700)
        (home / name / "store.sqlite").touch()
    for command in (
        ["status"],
        ["hub"],
        ["top"],
        ["diagnose"],
        ["alarms"],
        ["replay"],
        ["worst"],
        ["forward", "--to", "prometheus:1"],
    ):
        result = rltop(command[0], "nigth", *command[1:])
        assert result.exit_code == 1
        assert "no run named 'nigth'" in result.stderr
        assert "did you mean 'night'? runs: night, sort" in result.stderr
    assert sorted(path.name for path in home.iterdir()) == ["night", "sort"]


def test_a_run_with_only_a_store_is_listed_and_removed_once_confirmed(home: Path) -> None:
    (home / "copied").mkdir(mode=0o700)
    (home / "copied" / "store.sqlite").write_bytes(b"x" * 2_000_000)
    assert [run["run"] for run in answer("runs", "--json")["runs"]] == ["copied"]
    declined = CliRunner().invoke(cli.main, ["runs", "--remove", "copied"], input="n\n")
    assert declined.exit_code == 1
    assert "2.0 MB" in declined.output
    assert (home / "copied").is_dir()
    assert rltop("runs", "--remove", "copied", "--yes").output == "run 'copied' removed\n"
    assert not (home / "copied").exists()
    (home / "plain").mkdir(mode=0o700)
    assert "is not a run" in rltop("runs", "--remove", "plain", "--yes").stderr


def test_a_live_run_is_not_removed(home: Path) -> None:
    info = find_hub(start_hub("live"))
    assert info is not None
    refused = rltop("runs", "--remove", "live", "--yes")
    assert refused.exit_code == 1
    assert f"run 'live' is live (hub, process {info.pid}); `rltop hub live --stop` stops its hub" in refused.stderr
    assert rltop("hub", "live", "--stop").exit_code == 0
    wait_until(lambda: rltop("runs", "--remove", "live", "--yes").exit_code == 0)
    assert list(home.iterdir()) == []


def test_the_default_run_reports_runs_without_a_hub(home: Path) -> None:
    kill_hub(start_hub("night"))
    for command in (["top"], ["set", "prefix_caching", "off"], ["hub"]):
        result = rltop(*command)
        assert result.exit_code == 1
        assert "run 'night' has no hub: `rltop hub night` starts it" in result.stderr
    kill_hub(start_hub("other"))
    assert "2 runs have no hub: `rltop hub RUN` starts it" in rltop("hub").stderr


def test_without_a_live_run_reading_commands_show_the_last_one(home: Path) -> None:
    for name in ("night", "other"):
        start_hub(name)
        assert rltop("hub", name, "--stop").exit_code == 0
    for command in ("status", "fingerprint", "alarms", "diagnose"):
        result = rltop(command)
        assert "no run is live; the last one is 'other'" in result.stderr
        assert "run other" in result.stdout, result.stdout


def test_two_live_runs_need_a_run_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_hub("one")
    start_hub("two")
    assert "2 runs are live: one, two; name one" in rltop("status").stderr
    assert answer("status", "two", "--json")["run"] == "two"
    assert answer("status", str(home / "one"), "--json")["run"] == "one"
    monkeypatch.setenv("RLTOP_RUN", "one")
    assert answer("status", "--json")["run"] == "one"
    monkeypatch.setenv("RLTOP_HUB", str(home / "two"))
    assert answer("status", "--json")["run"] == "two"
    monkeypatch.setenv("RLTOP_HUB", "tcp://1.2.3.4:5")
    assert "network addresses are refused" in rltop("status").stderr


def test_status_has_the_documented_fields(home: Path) -> None:
    rundir = start_hub("shape")
    trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)
    trainer.start()
    with Engine(rundir), Client(rundir) as client:
        row = Trained([1, 2, 3], [0, 1, 1], [-1.0, -2.0], [-1.0, -2.0])
        trainer.offer("all", 100, sequences([row], policy_version=2))
        trainer.offer("all", 100, (wire.StepClosed(0, 0, 1, 3), {}))
        wait_shown(client, lambda c: c.view is not None and bool(c.view.steps and c.view.engines))
        report = answer("status", "--json")
        text = rltop("status").output
    trainer.close(5)
    assert report.keys() == REPORT_KEYS | {"processes"}
    (engine,), (step,) = report["engines"], report["steps"]
    assert engine.keys() == ENGINE_KEYS
    assert step.keys() == {*STEP_KEYS, "join"}
    assert (engine["id"], step["step"], step["tokens"], step["ratio_mean"]) == ("e0", 0, 2, 1.0)
    assert text.startswith("run shape: trainer live, step 0")
    assert "e0" in text
    assert "prefix_caching=on" in text


def test_forwarding_ends_with_the_run(home: Path) -> None:
    rundir = start_hub("short")
    trainer = Sender[Message](rundir, "trainer/0", "trainer", lambda _, items: items)
    trainer.start()
    with Engine(rundir), Client(rundir) as client:
        trainer.offer("all", 100, sequences([Trained([1], [0, 1], [-1.0], [-1.0])], policy_version=2))
        trainer.offer("all", 100, (wire.StepClosed(0, 0, 1, 3), {}))
        wait_shown(client, lambda c: c.view is not None and bool(c.view.steps and c.view.engines))
    trainer.close(5)
    result = rltop("forward", "short", "--on-alarm", "true")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("run 'short' has ended\n")


def test_set_prints_the_outcome_and_fails_unless_applied(home: Path) -> None:
    rundir = start_hub("flags")
    no_engine = rltop("set", "prefix_caching", "off")
    assert (no_engine.exit_code, no_engine.stdout) == (1, "")
    assert "no engine is live" in no_engine.stderr
    with Engine(rundir):
        wait_for_engine(rundir)
        (change,) = answer("set", "prefix_caching", "off", "--json", "--reason", "to see")["flag_changes"]
        assert change.keys() == CHANGE_KEYS
        assert (change["engine"], change["outcome"], change["lost_requests"]) == ("e0", "applied", 0)
        hints = rltop("set", "prefix_caching", "on").stderr
        assert re.fullmatch(r"see its effect: rltop effect (\w+); revert it: rltop undo \1\n", hints)
        unknown = rltop("worst", "--engine", "e9")
        assert (unknown.exit_code, unknown.stderr) == (1, "Error: no engine 'e9'; engines of this run: e0\n")
        wrong = rltop("set", "prefix_caching", "off", "--engine", "e9")
        assert (wrong.exit_code, wrong.stderr) == (1, "Error: no engine 'e9'; live engines: e0\n")


def test_a_refused_switch_exits_with_1_and_prints_the_reason(home: Path) -> None:
    rundir = start_hub("flags")
    with Engine(rundir, refuses="launch with --enable-prefix-caching"):
        wait_for_engine(rundir)
        as_text = rltop("set", "prefix_caching", "off")
        as_json = rltop("set", "prefix_caching", "off", "--json")
    assert (as_text.exit_code, as_json.exit_code) == (1, 1)
    assert "refused" in as_text.stdout
    assert "(launch with --enable-prefix-caching)" in as_text.stdout
    assert json.loads(as_json.stdout)["flag_changes"][0]["outcome"] == "refused"


def test_a_run_without_a_hub_prints_how_to_start_one(home: Path) -> None:
    start_hub("gone")
    assert rltop("hub", "gone", "--stop").exit_code == 0
    assert "`rltop hub gone` starts one" in rltop("flush", "--run", "gone").stderr
    assert rltop("status", "gone").stdout.startswith("run gone: ")
    assert rltop("hub", "gone").exit_code == 0
    assert rltop("status", "gone").exit_code == 0


@pytest.mark.parametrize("command", [["status", "s"], ["hub", "s", "--stop"], ["alarms", "s"], ["diagnose", "s"]])
def test_a_stopped_hub_is_named_with_its_process(home: Path, command: list[str]) -> None:
    pid = ensure_hub(for_run("s")).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        stopped = rltop(*command)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert stopped.exit_code == 1
    assert stopped.stderr.count("\n") == 1
    assert f"process {pid}, does not answer: it is stopped; `kill -CONT {pid}` continues it" in stopped.stderr


@pytest.mark.parametrize("command", [["status", "k"], ["set", "prefix_caching", "off", "--run", "k"], ["hub", "k"]])
def test_a_directory_that_is_not_private_or_too_long_is_refused(
    home: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "k").mkdir(mode=0o755)
    assert "must be a directory of yours with mode 0700" in rltop(*command).stderr
    long = home / ("x" * 90)
    (long / "k").mkdir(mode=0o700, parents=True)
    monkeypatch.setenv("RLTOP_HOME", str(long))
    result = rltop(*command)
    assert result.exit_code == 1
    assert "set RLTOP_HOME to a shorter directory" in result.stderr


@pytest.mark.parametrize("command", [["hub", "k"], ["demo", "--headless", "--run", "k"]])
def test_an_unusable_home_is_reported(home: Path, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("RLTOP_HOME", str(home / "file"))
    result = rltop(*command)
    assert result.exit_code == 1
    assert str(home / "file") in result.stderr


def test_the_demo_fails_immediately_if_its_report_cannot_be_written(home: Path) -> None:
    (home / "file").touch()
    result = rltop("demo", "--headless", "--json", str(home / "file" / "out.json"))
    assert result.exit_code == 1
    assert "--json" in result.stderr
    assert sorted(path.name for path in home.iterdir()) == ["file"]


@pytest.mark.parametrize("redirected", ["stdin", "stdout", "stderr"])
def test_the_dashboard_needs_all_three_streams_on_a_terminal(home: Path, redirected: str) -> None:
    RunDir(home / "one").create()
    master, slave = pty.openpty()
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    streams[redirected] = subprocess.DEVNULL
    try:
        code = subprocess.run([sys.executable, "-m", "rltop.tui.cli.main", "one"], check=False, **streams)
    finally:
        os.close(slave)
        os.close(master)
    assert code.returncode == 1
    assert find_hub(RunDir(home / "one")) is None
