"""The commands that change engines, from the command line to simulated engines and back."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend.client.live import Client
from rltop.collectors.contract import wire
from rltop.collectors.contract.rundir import RunDir
from rltop.collectors.transport.sender import Message, Sender
from tests.backend.hub.test_hub_report import CHANGE_KEYS
from tests.support.harness import ended, wait_shown
from tests.support.hub_messages import engine_state
from tests.support.receiver import wait_until
from tests.tui.cli.test_cli import answer, home, kill_hub, rltop, start_hub

__all__ = ["home"]


class Engine:
    """A simulated engine that executes commands immediately; its timers never fire.

    With ``refuses`` it refuses every ``set`` for that reason; with ``drains`` it reports that reason as ``draining``
    and waits for a call of ``execute``.
    """

    def __init__(self, rundir: RunDir, name: str, *, refuses: str = "", drains: str = "") -> None:
        self.name, self.refuses, self.drains = name, refuses, drains
        self.caching, self.paused = "on", False
        self.timers: list[wire.Timer] = []
        self.received: list[wire.Command] = []
        self.sender = Sender[Message](
            rundir, name, "engine", lambda _, items: items, on_message=self._on_command, periodic=self.report
        )
        self.sender.start()

    def report(self) -> None:
        flags = {"prefix_caching": wire.FlagState(self.caching, True)}
        state = engine_state(self.name, flags=flags, timers=list(self.timers), paused=self.paused)
        self.sender.offer("state", 100, (state, {}))

    def _on_command(self, message: wire.ControlToCollector) -> None:
        if not isinstance(message, wire.Command):
            return
        self.received.append(message)
        if self.drains:
            self._reply(message, "draining", reason=self.drains)
        else:
            self.execute(message)

    def execute(self, message: wire.Command) -> None:
        old, reason, state = self.caching, "", "applied"
        if message.verb == "set" and self.refuses:
            state, reason = "refused", self.refuses
        elif message.verb == "set":
            self.caching = message.value
        elif message.verb in ("pause", "resume"):
            self.paused = message.verb == "pause"
        seconds = 60.0 if message.verb == "pause" else message.revert_s
        at = time.time() + seconds if seconds and state == "applied" else None
        self.timers = [timer for timer in self.timers if timer.command != message.target]
        if at is not None:
            back = "running" if message.verb == "pause" else old
            self.timers.append(wire.Timer(message.id, message.verb, message.flag, back, at))
        self.report()
        self._reply(message, state, reason=reason, old=old, new=self.caching, engine_step=9, in_flight=2,
                  lost_requests=0, milliseconds=0.5, reverts_at=at)  # fmt: skip

    def _reply(self, message: wire.Command, state: str, **about: Any) -> None:
        reverts = "" if message.verb == "keep" else message.target
        self.sender.reply(
            wire.CommandUpdate(message.id, self.name, message.flag, state, verb=message.verb, reverts=reverts, **about)
        )


@contextlib.contextmanager
def engines(rundir: RunDir, *names: str, **about: Any) -> Iterator[list[Engine]]:
    """Simulated engines that the hub already knows."""
    found = [Engine(rundir, name, **about) for name in names]
    try:
        with Client(rundir) as client:
            wait_shown(client, lambda c: c.view is not None and {*names} <= {*c.view.engines})
        yield found
    finally:
        for engine in found:
            engine.sender.close(5)


def logged(run: str = "", *arguments: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = answer("audit", *([run] if run else []), "--json", *arguments)["lines"]
    return lines


def test_a_temporary_switch_is_kept_and_logged(home: Path) -> None:
    rundir = start_hub("keep")
    with engines(rundir, "e0") as (engine,):
        done = rltop("set", "prefix_caching", "off", "--for", "10m", "--reason", "trial")
        assert done.exit_code == 0
        (command,) = engine.received
        assert command.revert_s == 600.0
        assert f"; keep it: rltop keep {command.id}\n" in done.stderr
        wait_until(lambda: f"`rltop keep {command.id}` keeps the current value" in rltop("status").output)
        (timer,) = answer("status", "--json")["engines"][0]["timers"]
        assert (timer["command"], timer["back_to"]) == (command.id, "on")
        kept = rltop("keep")
        assert (kept.exit_code, kept.stdout) == (
            0, f"e0: keep {command.id}, applied, at engine step 9, 2 requests in flight, 0 lost, 0.5 ms\n",
        )  # fmt: skip
        wait_until(lambda: "auto-reverts to" not in rltop("status").output)
        none = rltop("keep")
        assert (none.exit_code, none.stderr) == (
            1, "Error: no timer is running: no change auto-reverts, so there is nothing to keep\n",
        )  # fmt: skip
    assert [line["event"] for line in logged()] == ["requested", "applied", "requested", "kept"]
    kill_hub(rundir)
    text = rltop("audit").output  # no hub, and the only run
    assert f"requested     e0     prefix_caching → off [{command.id}] by " in text
    assert "because 'trial' for 600 s" in text
    assert [line["event"] for line in logged("keep", "--flag", "prefix_caching")] == ["requested", "applied"]
    assert logged("keep", "--engine", "e1") == logged("keep", "--since", "2999-01-01") == []
    assert len(logged("keep", "--since", "1h")) == len(logged("keep", "--since", "2020-01-01T00:00")) == 4


def test_keep_needs_an_id_if_several_timers_run(home: Path) -> None:
    rundir = start_hub("two")
    with engines(rundir, "e0", "e1"):
        for engine in ("e0", "e1"):
            assert rltop("set", "prefix_caching", "off", "--for", "10m", "--engine", engine).exit_code == 0
        wait_until(lambda: rltop("status").output.count("auto-reverts to") == 2)
        many = rltop("keep")
    assert many.exit_code == 1
    assert "2 commands have timers; give the id of one" in many.stderr
    timer = r"e\d: prefix_caching auto-reverts to on in \S+ \(`rltop keep \w+` keeps the current value\)"
    assert len(re.findall(timer, many.stderr)) == 2


def test_a_half_switched_fleet_prints_the_command_that_reverts_it(home: Path) -> None:
    rundir = start_hub("half")
    with engines(rundir, "e0", "e1") as (e0, e1):
        e1.refuses = "started without it"
        half = rltop("set", "prefix_caching", "off", "--run", "half")
        assert half.exit_code == 1
        (command,) = e0.received
        assert half.stderr == f"not applied on all engines; this reverts e0:\n  rltop undo {command.id} --run half\n"
        assert "half switched: off on e0; on on e1" in rltop("status").output
        undone = rltop("undo", command.id)
        assert (undone.exit_code, e0.caching) == (0, "on")
        assert [order.id for order in e1.received] == [command.id]
    assert [line["event"] for line in logged() if line["engine"] != "e1"] == [
        "requested", "applied", "half_switched", "requested", "undone",
    ]  # fmt: skip


def test_a_fraction_switches_part_of_the_fleet(home: Path) -> None:
    rundir = start_hub("part")
    with engines(rundir, "e0", "e1", "e2") as fleet:
        (change,) = answer("set", "prefix_caching", "off", "--fraction", "0.3", "--json")["flag_changes"]
        assert change.keys() == CHANGE_KEYS
        assert (change["engine"], [engine.caching for engine in fleet]) == ("e0", ["off", "on", "on"])


def test_generation_is_paused_and_resumed_and_the_cache_flushed(home: Path) -> None:
    rundir = start_hub("pause")
    with engines(rundir, "e0") as (engine,):
        paused = rltop("pause", "--for", "30s")
        assert (paused.exit_code, engine.received[-1].revert_s) == (0, 30.0)
        assert paused.stderr.startswith("auto-reverts in ")
        assert "keep" not in paused.stderr
        wait_until(lambda: answer("status", "--json")["engines"][0]["paused"])
        assert rltop("resume", "--engine", "e0").exit_code == 0
        assert rltop("flush").exit_code == 0
        assert [order.verb for order in engine.received] == ["pause", "resume", "flush_cache"]


def test_progress_is_printed_on_a_terminal(home: Path) -> None:
    rundir = start_hub("slow")
    with engines(rundir, "e0", drains="waits for the weight update under way to finish") as (engine,):
        master, slave = pty.openpty()
        command = subprocess.Popen(
            [sys.executable, "-m", "rltop.tui.cli.main", "set", "prefix_caching", "off"],
            stdout=subprocess.PIPE,
            stderr=slave,
        )
        try:
            printed = b""
            while b"e0: draining, waits for the weight update under way to finish" not in printed:
                printed += os.read(master, 4096)
            engine.execute(engine.received[0])
            assert ended(command) == 0
            assert command.stdout is not None
            assert command.stdout.read().decode().startswith("e0: prefix_caching on → off, applied")
        finally:
            command.kill()
            command.communicate()
            os.close(slave)
            os.close(master)


def test_an_unknown_command_id_lists_the_last_ones(home: Path) -> None:
    rundir = start_hub("who")
    with engines(rundir, "e0") as (engine,):
        assert rltop("set", "prefix_caching", "off").exit_code == 0
        wrong = rltop("undo", "c999")
    assert (wrong.exit_code, wrong.stderr) == (
        1, f"Error: no command 'c999'; the last ones: {engine.received[0].id}\n",
    )  # fmt: skip


def test_an_unreadable_log_is_reported(home: Path) -> None:
    rundir = RunDir(home / "odd")
    rundir.create()
    rundir.audit.mkdir()
    assert "audit.jsonl: Is a directory" in rltop("audit", "odd").stderr
    rundir.audit.rmdir()
    rundir.audit.write_text('{"torn')
    found = rltop("audit", "odd")
    assert (found.exit_code, found.stdout) == (0, "")
    assert "1 unreadable lines" in found.stderr
    assert json.loads(rltop("audit", "odd", "--json").stdout)["unreadable"] == 1


@pytest.mark.parametrize("broken", ["a directory", "full"])
def test_a_log_that_cannot_be_written_is_reported_and_stops_no_command(home: Path, broken: str) -> None:
    rundir = start_hub("full")
    rundir.audit.mkdir() if broken == "a directory" else rundir.audit.symlink_to("/dev/full")
    with engines(rundir, "e0"):
        assert rltop("set", "prefix_caching", "off").exit_code == 0
        wait_until(lambda: "the audit log can't be written" in rltop("status").output)
        rundir.audit.rmdir() if broken == "a directory" else rundir.audit.unlink()
        wait_until(lambda: "the audit log is written again" in rltop("status").output)
    assert [line["event"] for line in logged()] == ["requested", "applied"]
