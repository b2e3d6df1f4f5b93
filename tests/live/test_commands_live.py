"""Commands on a real engine while hubs, viewers and links fail: each ends in one state, is logged once.

The stages are held open by a weight update, which commands wait for, by stopping the hub's process, and by cutting the
link between the two. The setup: one engine, a hub process that is killed and restarted, and clients and command
lines of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError
from rltop.backend.commands import audit
from rltop.backend.commands.events import outcome
from rltop.collectors.contract.rundir import RunDir
from tests.support.harness import ME, PATIENT_S, wait_for, wait_shown
from tests.support.link import Link
from tests.support.live_engine import ENVIRONMENT, MODEL, LiveEngine, result
from tests.support.receiver import run_directory
from tests.tui.cli.test_cli_control import Engine as PlayedEngine

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]

ENGINE = "e0"
FLAG = "prefix_caching"
IN_FLIGHT = 32
TOKENS = 200


class Run:
    """The run's engine, hub and client."""

    def __init__(self, rundir: RunDir, engine: LiveEngine, link: Link) -> None:
        self.rundir = rundir
        self.engine = engine
        self.link = link
        self.hub = self.start_hub()
        self.client = Client(rundir)
        self._batches = 0

    def start_hub(self) -> subprocess.Popen[bytes]:
        """Start a hub where the last one died."""
        command = [sys.executable, "-m", "rltop.backend.hub", str(self.rundir.path)]
        self.hub = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        return self.hub

    def kill_hub(self) -> None:
        """SIGKILL, also where it is stopped: nothing is written or sent any more."""
        self.hub.kill()
        self.hub.wait()

    def another_hub(self) -> None:
        """Start the next hub, and follow it once it has heard the engine: what it shows before is from the store."""
        before = self.client.view.epoch if self.client.view else ""
        self.start_hub()
        self.see(lambda v: v.epoch != before and is_live(v))

    def see(self, condition: Any) -> api.Snapshot:
        wait_shown(self.client, lambda c: c.view is not None and c.state == "live" and bool(condition(c.view)))
        assert self.client.view is not None
        return self.client.view

    def ask(self, value: str, **about: Any) -> str:
        """Ask for a switch without waiting for its end; the command's id."""
        question = api.AskSet(api.new_id(), FLAG, value, who="ann", host="here", **about)
        self.client.ask(question)
        wait_shown(self.client, lambda c: question.id in c.answers)
        answer = self.client.answers[question.id]
        assert answer.command, answer.error
        return answer.command

    def change(self, command: str) -> api.Change | None:
        return self.client.view.changes.get(f"{command}@{ENGINE}") if self.client.view else None

    def until(self, command: str, *states: str) -> api.Change:
        """Wait for the command to be in one of the states."""
        self.see(lambda v: (found := v.changes.get(f"{command}@{ENGINE}")) is not None and found.state in states)
        found = self.change(command)
        assert found is not None
        return found

    def settled(self, command: str, *, asked: int = 1) -> api.Change:
        """How it ended, which is what the flag reads on the engine, and what the log has exactly once."""
        change = self.until(command, *api.TERMINAL)
        value = change.wanted if change.state == "applied" else {"on": "off", "off": "on"}[change.wanted]
        if change.state != "superseded":
            self.see(lambda v: v.engines[ENGINE].flags[FLAG].value == value)
        lines, bad = audit.read(self.rundir.audit)
        mine = [line for line in lines if line.command == command]
        assert bad == 0
        assert [line.event for line in mine] == ["requested"] * asked + [outcome(change)], mine
        assert change.lost_requests in (0, None)
        return change

    def switch(self, value: str, **about: Any) -> api.Change:
        (change,) = self.client.command(api.AskSet(api.new_id(), FLAG, value, **about))
        assert change.state == "applied", change
        return change

    def heard(self) -> None:
        """Wait for the engine's next word."""
        now = time.time()
        self.see(lambda v: is_live(v) and v.engines[ENGINE].last_seen > now)

    def reach(self) -> None:
        """Wait until the engine is heard and hears, with the flag on: behind a link that was cut either takes time."""
        self.heard()
        wait_for(
            lambda: self.client.command(api.AskSet(api.new_id(), FLAG, "on"))[0].state == "applied", "the engine hears"
        )

    def batch(self, tokens: int = 3) -> list[Any]:
        """Requests in flight, each with at least this many tokens."""
        self._batches += 1
        names = [f"batch{self._batches}-{i}" for i in range(IN_FLIGHT)]
        running = [self.engine.generate(n, [3] + [5 + i] * 20, TOKENS, seed=i) for i, n in enumerate(names)]
        self.engine.wait_running(names, tokens)
        return running

    @contextlib.contextmanager
    def update(self, running: list[Any] | None = None) -> Iterator[None]:
        """A weight update is open, with requests in flight, all of which finish whole afterwards."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        llm, running = self.engine.llm, running or self.batch()
        self.engine.run(llm.pause_generation(mode="keep", clear_cache=False))
        self.engine.run(llm.start_weight_update())
        try:
            yield
        finally:
            request = WeightTransferUpdateRequest(update_info={"path": str(Path(MODEL) / "model.safetensors")})
            self.engine.run(llm.update_weights(request))
            self.engine.run(llm.finish_weight_update(f"step-{self._batches}"))
            self.engine.run(
                llm.resume_generation()
            )  # answered at a later boundary: waiting commands have been executed
            self.finish(running)

    def finish(self, running: list[Any]) -> None:
        assert all(len(result(work).outputs[0].token_ids) == TOKENS for work in running)


def is_live(shown: api.Snapshot) -> bool:
    """Whether the hub receives the engine's reports."""
    return ENGINE in shown.engines and shown.engines[ENGINE].health == "live"


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with run_directory() as rundir, run_directory() as near, pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("RLTOP_HUB", str(near.path))
        patch.setenv("RLTOP_ENGINE", ENGINE)
        link = Link(near, rundir)
        engine = LiveEngine()
        made = Run(rundir, engine, link)
        try:
            yield made
        finally:
            made.client.close()
            engine.close()
            made.kill_hub()
            link.close()


@pytest.fixture(autouse=True)
def begins_with_the_flag_on(run: Run) -> Iterator[None]:
    run.see(lambda v: v.engines.get(ENGINE) is not None and v.engines[ENGINE].flags[FLAG].value == "on")
    yield
    if run.hub.poll() is not None:
        run.another_hub()
    run.reach()


def test_a_hub_killed_before_reading_the_request_leaves_no_command(run: Run) -> None:
    run.hub.send_signal(signal.SIGSTOP)
    question = api.AskSet(api.new_id(), FLAG, "off")
    run.client.ask(question)
    run.kill_hub()
    before = audit.read(run.rundir.audit)[0]
    run.another_hub()
    assert question.id not in run.client.answers
    assert run.client.view is not None
    assert run.client.view.engines[ENGINE].flags[FLAG].value == "on"
    assert audit.read(run.rundir.audit)[0] == before


def test_after_a_kill_during_delivery_the_next_hub_learns_the_outcome(run: Run) -> None:
    assert run.client.view is not None
    pid = run.client.view.engines[ENGINE].pid
    os.kill(pid, signal.SIGSTOP)  # the engine's process: messages to it now wait in the socket
    try:
        command = run.ask("off")
        run.kill_hub()
    finally:
        os.kill(pid, signal.SIGCONT)
    run.another_hub()
    assert run.settled(command).who == ME


@pytest.mark.parametrize("finished", ["before the next hub", "after it"])
def test_a_hub_killed_while_the_command_waits_for_a_weight_update(run: Run, finished: str) -> None:
    with run.update():
        command = run.ask("off", timeout_s=PATIENT_S)
        assert "weight update" in run.until(command, "draining").reason
        run.kill_hub()
        if finished == "after it":
            run.another_hub()
            assert run.until(command, "draining").who == ME
    if finished == "before the next hub":
        run.another_hub()
    assert (run.settled(command).state, run.settled(command).in_flight) == ("applied", IN_FLIGHT)


def test_a_hub_killed_between_application_and_report(run: Run) -> None:
    with run.update():
        command = run.ask("off", timeout_s=PATIENT_S)
        run.until(command, "draining")
        run.hub.send_signal(signal.SIGSTOP)
    run.kill_hub()
    assert [line.event for line in audit.read(run.rundir.audit)[0] if line.command == command] == ["requested"]
    run.another_hub()
    assert run.settled(command).state == "applied"


@pytest.mark.parametrize("in_time", [True, False])
def test_a_stopped_hub_learns_the_outcome_when_it_continues(run: Run, in_time: bool) -> None:
    with run.update():
        command = run.ask("off", timeout_s=PATIENT_S if in_time else 4.0)
        run.until(command, "draining")
        run.hub.send_signal(signal.SIGSTOP)
        if not in_time:  # the engine times out, and its report is lost
            assert not run.client.wait(lambda c: c.view is None, 6.0)
    run.hub.send_signal(signal.SIGCONT)
    assert run.settled(command).state == ("applied" if in_time else "timed_out")


@pytest.mark.parametrize("in_time", [True, False])
def test_after_a_broken_link_the_hub_learns_the_outcome(run: Run, in_time: bool) -> None:
    with contextlib.ExitStack() as until_mended, run.update():
        command = run.ask("off", timeout_s=PATIENT_S if in_time else 4.0)
        run.until(command, "draining")
        until_mended.enter_context(run.link.cut())
        if not in_time:  # the engine times out, and so does the hub
            run.until(command, "timed_out")
    run.see(is_live)  # the engine has reconnected and reports
    assert run.settled(command).state == ("applied" if in_time else "timed_out")


def test_after_a_broken_link_and_a_kill_the_next_hub_learns_the_outcome(run: Run) -> None:
    with contextlib.ExitStack() as until_mended:
        with run.update():
            command = run.ask("off", timeout_s=PATIENT_S)
            run.until(command, "draining")
            before = run.see(lambda _: True).epoch
            until_mended.enter_context(run.link.cut())
        run.kill_hub()
        run.start_hub()
        shown = run.see(lambda v: v.epoch != before)
        assert shown.engines[ENGINE].health != "live"
        assert shown.changes[f"{command}@{ENGINE}"].state not in api.TERMINAL
    assert run.settled(command).state == "applied"


def test_a_command_over_a_broken_link_is_refused_without_being_sent(run: Run) -> None:
    with run.link.cut():
        command = run.ask("off", timeout_s=PATIENT_S)
        change = run.until(command, *api.TERMINAL)
    assert (change.state, change.reason) == ("refused", f"engine {ENGINE} is not connected; nothing was sent")
    run.heard()
    assert run.settled(command).state == "refused"


def test_a_command_ends_without_its_socket_files_and_the_next_hub_replaces_them(run: Run) -> None:
    with run.update():
        command = run.ask("off", timeout_s=PATIENT_S)
        run.until(command, "draining")
        for path in run.rundir.path.glob("*.sock"):
            path.unlink()
    assert run.settled(command).state == "applied"  # existing connections stay
    run.kill_hub()
    run.another_hub()
    run.heard()
    assert run.settled(command).who == ME  # from the log
    assert run.switch("on").old == "off"


def test_a_command_outlives_its_command_line(run: Run) -> None:
    with run.update():
        line = subprocess.Popen(
            [sys.executable, "-m", "rltop.tui.cli.main", "set", FLAG, "off", "--run", str(run.rundir.path)],
            stdout=subprocess.DEVNULL,
        )
        run.see(lambda v: any(change.state == "draining" for change in v.changes.values()))
        line.kill()
        line.wait()
        assert run.client.view is not None
        (command,) = [c.command for c in run.client.view.changes.values() if c.state == "draining"]
    assert run.settled(command).state == "applied"


def test_the_engine_reverts_a_timed_switch_without_a_hub(run: Run) -> None:
    running = run.batch()
    change = run.switch("off", revert_s=3.0, who="ann", why="trial")
    assert change.reverts_at is not None
    run.kill_hub()
    over = change.reverts_at + 2.0  # the engine checks once a second
    wait_for(lambda: time.time() > over, "the timer's end")
    run.another_hub()
    revert = run.settled(f"{change.command}/revert", asked=0)
    assert (revert.state, revert.old, revert.new, revert.reverts) == ("applied", "off", "on", change.command)
    assert (revert.who, revert.why) == (ME, "its timer expired after 3 s")
    run.finish(running)


def test_a_timer_is_kept_through_the_next_hub(run: Run) -> None:
    change = run.switch("off", revert_s=600.0)
    run.kill_hub()
    run.another_hub()
    (timer,) = run.see(lambda v: v.engines[ENGINE].timers).engines[ENGINE].timers
    assert (timer.command, timer.flag, timer.back_to) == (change.command, FLAG, "on")
    (kept,) = run.client.command(api.AskKeep(api.new_id(), change.command, who="bob"))
    assert kept.state == "applied"
    run.see(lambda v: not v.engines[ENGINE].timers)
    assert run.settled(change.command).kept_by == ME
    with pytest.raises(CommandError, match="no command"):
        run.client.command(api.AskKeep(api.new_id(), "unknown"))


def test_a_timer_is_superseded_by_a_command_of_the_next_hub(run: Run) -> None:
    change = run.switch("off", revert_s=600.0)
    run.kill_hub()
    run.another_hub()
    run.switch("on")
    assert run.settled(f"{change.command}/revert", asked=0).state == "superseded"
    run.see(lambda v: not v.engines[ENGINE].timers)


def test_a_revert_waits_for_an_open_weight_update(run: Run) -> None:
    running = run.batch()  # before the timer starts: then the update is opened at once
    change = run.switch("off", revert_s=2.0)
    with run.update(running):
        assert "weight update" in run.until(f"{change.command}/revert", "draining").reason
        run.kill_hub()
        run.another_hub()
        assert run.until(f"{change.command}/revert", "draining").reverts == change.command
    assert run.settled(f"{change.command}/revert", asked=0).new == "on"


def test_a_half_switched_fleet_is_reverted(run: Run) -> None:
    played = PlayedEngine(run.rundir, "e1", refuses="started without it")
    try:
        run.see(lambda v: "e1" in v.engines)
        changes = run.client.command(api.AskSet(api.new_id(), FLAG, "off"))
        assert {change.engine: change.state for change in changes} == {"e0": "applied", "e1": "refused"}
        command = changes[0].command
        run.see(lambda v: any(f"`rltop undo {command}` reverts e0" in event.text for event in v.events))
        (undone,) = run.client.command(api.AskUndo(api.new_id(), command))
        assert (undone.state, undone.new, undone.reverts) == ("applied", "on", command)
        (left,) = run.client.command(api.AskUndo(api.new_id(), command))
        assert (left.state, left.new) == ("superseded", "on")
    finally:
        played.sender.close(5)
    run.see(lambda v: v.engines["e1"].health == "gone")


def test_a_pause_ends_without_a_hub_and_loses_no_request(run: Run) -> None:
    running = run.batch()
    (paused,) = run.client.command(api.AskAct(api.new_id(), "pause", revert_s=6.0, who="ann"))
    assert (paused.state, paused.new, paused.in_flight, paused.lost_requests) == ("applied", "paused", IN_FLIGHT, 0)
    run.see(lambda v: v.engines[ENGINE].paused)
    seen = dict(run.engine.progress)
    run.kill_hub()
    assert seen == run.engine.progress
    run.finish(running)  # it resumes by itself
    run.another_hub()
    revert = run.until(f"{paused.command}/revert", "applied")
    assert (revert.verb, revert.new, revert.reverts, revert.who) == ("resume", "running", paused.command, ME)


def test_a_pause_of_another_caller_is_not_resumed(run: Run) -> None:
    llm = run.engine.llm
    run.engine.run(llm.pause_generation(mode="keep", clear_cache=False))
    try:
        (refused,) = run.client.command(api.AskAct(api.new_id(), "resume"))
        assert (refused.state, "has to resume it" in refused.reason) == ("refused", True)
        assert run.engine.run(llm.is_paused())
    finally:
        run.engine.run(llm.resume_generation())
    run.client.command(api.AskAct(api.new_id(), "pause", revert_s=600.0))
    run.engine.run(llm.resume_generation())  # now another caller's: the guard timer has nothing to end
    run.see(lambda v: not v.engines[ENGINE].timers and not v.engines[ENGINE].paused)


def test_a_flushed_cache_has_no_hits_and_reports_the_remaining_blocks(run: Run) -> None:
    shared = [3] + [7 + i % 90 for i in range(99)]

    def cached(name: str) -> int:
        return int(result(run.engine.generate(name, shared, 2, seed=0)).num_cached_tokens)

    cached("fill")
    assert cached("hit") == 96
    (flushed,) = run.client.command(api.AskAct(api.new_id(), "flush_cache"))
    assert (flushed.state, flushed.new) == ("applied", "0 blocks")
    assert flushed.reason.endswith("blocks evicted, none left")
    assert cached("cold") == 0
    for _ in range(5):  # requests may end before the engine executes it
        running = run.batch(tokens=40)  # a block is 32 tokens: each holds one that is cached
        (held,) = run.client.command(api.AskAct(api.new_id(), "flush_cache"))
        run.finish(running)
        if "in use stay" in held.reason:
            break
    assert "in use stay" in held.reason


def test_no_fault_was_contained_during_these_tests(run: Run) -> None:
    engine = run.see(lambda v: v.engines[ENGINE].counts).engines[ENGINE]
    assert engine.faults == {}
    assert not [name for name in engine.fingerprint if name.startswith("missing")]
