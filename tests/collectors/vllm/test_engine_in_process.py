"""Engines inside their caller's process: switched between the steps that the caller runs, and never hold it up."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.contract.wire import Command
from rltop.collectors.transport.error_boundary import MAX_FAULTS
from rltop.collectors.vllm.control.command_executor import NO_STEP_IN_TIME, WAITS_FOR_CALLER
from rltop.collectors.vllm.engine_core import why_no_boundary
from rltop.collectors.vllm.patches import CALLERS_STEP
from tests.collectors.vllm.test_engine_switches import Desk
from tests.support.engine_doubles import InProcessCore, Outputs, Torch, launched, output, request
from tests.support.harness import switch_off


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", Torch)


class InProcessDesk(Desk):
    """An engine core inside the process of the test, which is its caller."""

    engine: InProcessCore

    def __init__(self) -> None:
        super().__init__(InProcessCore())

    def queue_batch(self, token: int, finish: str | None = None) -> None:
        """A batch in flight, with one token of request ``a``."""
        assert self.engine.batch_queue is not None
        self.engine.batch_queue.appendleft({0: Outputs([output("a", [token], finish=finish)])})

    def tokens(self) -> list[int]:
        """The tokens that one call of the caller returns."""
        return [token for item in self.engine.get_output().outputs for token in item.new_token_ids]


def test_a_switch_runs_before_the_callers_next_step_and_its_caller_receives_every_batch_in_order() -> None:
    desk = InProcessDesk()
    desk.engine.scheduler.add_request(request("a"))
    desk.queue_batch(1)
    desk.queue_batch(2, finish="stop")
    assert [(u.state, u.reason) for u in desk.send("async_scheduling", "off")] == [("accepted", WAITS_FOR_CALLER)]
    assert desk.engine.batch_queue_size == 2
    assert desk.tokens() == [1]
    (update,) = desk.commands.pop_updates()
    assert (update.state, update.new, update.in_flight, update.lost_requests) == ("applied", "off", 1, 0)
    assert desk.engine.batch_queue_size == 1
    assert desk.tokens() == [2]
    assert desk.tokens() == []
    assert desk.engine.post_steps == [True, True, False, False, False]  # once for each step that executed a batch
    assert desk.guard.faults == {}


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_outputs_keep_their_order_however_batches_and_switches_alternate(rounds: list[tuple[int, bool]]) -> None:
    desk = InProcessDesk()
    desk.engine.scheduler.add_request(request("a"))
    received, sent = list[int](), 0
    for number, (batches, switch) in enumerate(rounds):
        for _ in range(min(batches, desk.engine.batch_queue_size - len(desk.engine.batch_queue or ()))):
            sent += 1
            desk.queue_batch(sent)
        if switch:
            desk.send("async_scheduling", "off" if desk.engine.batch_queue_size == 2 else "on", f"c{number}")
        received += desk.tokens()
    while tokens := desk.tokens():
        received += tokens
    assert received == list(range(1, sent + 1))


@pytest.mark.parametrize("flag", BY_NAME)
def test_every_flag_is_switched_at_the_callers_step(flag: str) -> None:
    desk = InProcessDesk()
    value = next(v for v in BY_NAME[flag].values if v != desk.board.states()[flag].value)
    desk.send(flag, value)
    desk.engine.get_output()
    (update,) = desk.commands.pop_updates()
    assert (update.state, update.new, desk.board.states()[flag].value) == ("applied", value, value)


@pytest.mark.parametrize("flag", BY_NAME)
def test_every_flag_waits_for_the_caller_and_says_so_when_it_is_too_late(flag: str) -> None:
    desk = InProcessDesk()
    value = next(v for v in BY_NAME[flag].values if v != desk.board.states()[flag].value)
    desk.send(flag, value, seconds=0.01)
    time.sleep(0.02)
    desk.commands.check()
    assert [(u.state, u.reason) for u in desk.commands.pop_updates()] == [("timed_out", NO_STEP_IN_TIME)]
    desk.engine.get_output()
    assert desk.commands.pop_updates() == []


def test_a_timer_reverts_before_the_step_that_follows_it() -> None:
    desk = InProcessDesk()
    desk.commands.receive(Command("c", "prefix_caching", "off", time.time() + 60, revert_s=0.01))
    desk.engine.get_output()
    time.sleep(0.02)
    desk.commands.check()
    assert not desk.engine.scheduler.kv_cache_manager.enable_caching
    desk.engine.get_output()
    assert desk.engine.scheduler.kv_cache_manager.enable_caching
    assert [(u.id, u.state) for u in desk.commands.pop_updates()][-1] == ("c/revert", "applied")


def test_a_pause_is_refused_since_the_caller_would_wait() -> None:
    desk = InProcessDesk()
    desk.commands.receive(Command("p", "", "", time.time() + 60, "pause"))
    (update,) = desk.commands.pop_updates()
    assert (update.state, "its caller would wait in generate()" in update.reason) == ("refused", True)


def test_a_failure_while_draining_reaches_the_caller() -> None:
    desk = InProcessDesk()
    desk.queue_batch(1)
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append(SimpleNamespace())  # its outputs can't be read
    desk.send("async_scheduling", "off")
    with pytest.raises(AttributeError):
        desk.engine.get_output()
    assert desk.commands.pop_updates()[-1].state == "refused"
    assert desk.guard.faults == {}


def test_outputs_that_a_switch_held_arrive_even_if_the_boundary_is_off() -> None:
    desk = InProcessDesk()
    desk.queue_batch(1)
    desk.queue_batch(2)
    desk.send("async_scheduling", "off")
    assert desk.tokens() == [1]
    switch_off(desk.guard, CALLERS_STEP.name)
    assert desk.tokens() == [2]
    assert f"failed {MAX_FAULTS} times" in why_no_boundary(desk.engine)
    assert desk.send("prefix_caching", "off", "d")[-1].state == "refused"


def test_ranks_that_an_external_launcher_steps_together_are_not_switched() -> None:
    assert why_no_boundary(launched(InProcessDesk().engine, ranks=1)) == ""
    assert "lockstep" in why_no_boundary(launched(InProcessDesk().engine, ranks=2))
