"""Commands on duck-typed engines: refused with a reason, completed or undone, executed once and in time."""

from __future__ import annotations

import sys
import time
from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.contract.wire import Command, CommandUpdate
from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary
from rltop.collectors.vllm.control.command_executor import CLOSED_SHOWN, MAX_REASON_CHARS, REMEMBERED, CommandExecutor
from rltop.collectors.vllm.control.switchboard import Switchboard, drain
from rltop.collectors.vllm.in_process import is_in_process
from rltop.collectors.vllm.patches import AFTER, CALLERS_STEP, FAILED, Hook, HostFailure, InstalledPatches
from rltop.collectors.vllm.rollouts.tap import StepOutputs, Tap
from tests.support.engine_doubles import (
    EngineCore,
    Outputs,
    output,
    request,
)
from tests.support.harness import switch_off, wait_for


class Kinds(Enum):
    ADD = 0
    ABORT = 1
    WAKEUP = 5


class Desk:
    """An engine and its commands, driven by the test: ``send`` on the sender's thread, ``boundary`` on the engine's."""

    def __init__(self, engine: EngineCore | None = None) -> None:
        self.engine = engine or EngineCore()
        self.announced = 0
        self.guard = ErrorBoundary()
        self.board = Switchboard(self.engine)
        policy = self.board.core.policy
        self.tap = Tap(self.engine, on_weights=policy.on_weights)
        self.commands = CommandExecutor(self.board, "e0", self.tap, lambda: (3, "engine"), self._announce)
        hooks: dict[str, Hook] = {
            "step": self.tap.on_step,
            "finish": self.tap.on_finish,
            "rpc": self.tap.on_rpc,
            "rpc" + FAILED: self.tap.on_rpc_failed,
            "reset": policy.on_reset,
            "pausing": policy.on_pause,
            "pause": self.commands.generation.on_set,
            "boundary": self._at_boundary,
        }
        if is_in_process(self.engine):
            hooks[CALLERS_STEP.name] = self._at_boundary
            hooks[CALLERS_STEP.name + AFTER] = self.commands.prober.after_step
        self.taps = InstalledPatches(self.engine, hooks, self.guard)

    def _at_boundary(self, *_message: Any) -> None:
        self.board.at_boundary()
        self.commands.at_boundary()

    def _announce(self) -> None:
        self.announced += 1

    def send(
        self,
        flag: str,
        value: str,
        id: str = "c",  # noqa: A002
        seconds: float = 60,
        *,
        strict: bool = False,
    ) -> list[CommandUpdate]:
        self.commands.receive(Command(id, flag, value, time.time() + seconds, strict=strict))
        return self.commands.pop_updates()

    def boundary(self) -> list[CommandUpdate]:
        assert self.engine._handle_client_request(Kinds.WAKEUP, None) == "handled"
        return self.commands.pop_updates()


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


def in_flight(engine: EngineCore, *names: str) -> None:
    for name in names:
        engine.scheduler.add_request(request(name))


def test_a_switch_drains_the_batches_in_flight_and_loses_no_request() -> None:
    desk = Desk()
    in_flight(desk.engine, "a", "b")
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([output("a", [1], finish="stop"), output("b", [1])])})
    assert [u.state for u in desk.send("async_scheduling", "off")] == ["accepted"]
    assert desk.engine.input_queue.get_nowait() == (Kinds.WAKEUP, None)
    assert desk.engine.batch_queue_size == 2  # nothing happens before the boundary
    (update,) = desk.boundary()
    assert (update.state, update.old, update.new) == ("applied", "on", "off")
    assert (update.in_flight, update.lost_requests, update.policy_version) == (2, 0, 3)
    assert (desk.engine.batch_queue_size, desk.engine.batch_queue) == (1, deque(maxlen=1))
    assert desk.engine.output_queue.get_nowait()[0] == 0
    assert [record.flag_epoch for record in desk.tap.records if isinstance(record, StepOutputs)] == [0]
    assert desk.tap.flag_epoch == 1
    assert "has_requests" not in vars(desk.engine.scheduler)
    desk.send("async_scheduling", "on", "back")
    assert desk.boundary()[0].new == "on"
    assert desk.engine.batch_queue_size == 2


def test_prefix_caching_evicts_what_no_request_holds_and_leaves_the_pool_as_it_is() -> None:
    desk = Desk()
    manager = desk.engine.scheduler.kv_cache_manager
    desk.send("prefix_caching", "off")
    assert desk.boundary()[0].new == "off"
    assert not manager.enable_caching
    assert manager.block_pool.enable_caching
    assert manager.block_pool.evicted == [0, 2, 4, 6]
    manager.block_pool.blocks[2].block_hash = "hashed meanwhile"
    desk.send("prefix_caching", "on", "again")
    assert desk.boundary()[0].new == "on"
    assert manager.block_pool.evicted == [0, 2, 4, 6, 2]


def test_the_present_value_is_applied_without_a_drain_and_without_a_new_epoch() -> None:
    desk = Desk()
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([])})
    desk.send("prefix_caching", "on")
    (update,) = desk.boundary()
    assert (update.state, update.reason, update.lost_requests) == ("applied", "already on", None)
    assert len(desk.engine.batch_queue) == 1
    assert desk.tap.flag_epoch == 0


def test_a_failing_switch_is_undone_and_refused() -> None:
    desk = Desk()
    manager = desk.engine.scheduler.kv_cache_manager

    def broken(block_ids: set[int]) -> None:
        raise KeyError("block")

    manager.block_pool.evict_blocks = broken
    desk.send("prefix_caching", "off")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "undone" in update.reason
    assert manager.enable_caching
    assert desk.tap.flag_epoch == 0
    assert update.lost_requests == 0
    assert desk.guard.faults == {}  # refused is an answer


def test_a_switch_that_always_fails_does_not_block_the_others() -> None:
    desk = Desk()

    def broken(block_ids: set[int]) -> None:
        raise KeyError("block")

    desk.engine.scheduler.kv_cache_manager.block_pool.evict_blocks = broken
    for number in range(MAX_FAULTS + 1):
        desk.send("prefix_caching", "off", f"c{number}")
        assert desk.boundary()[0].state == "refused"
    desk.send("async_scheduling", "off", "d")
    assert desk.boundary()[0].state == "applied"


def test_a_failing_switch_reports_lost_requests() -> None:
    desk = Desk()
    in_flight(desk.engine, "a", "b")

    def broken(block_ids: set[int]) -> None:
        del desk.engine.scheduler.requests["b"]
        raise KeyError("block")

    desk.engine.scheduler.kv_cache_manager.block_pool.evict_blocks = broken
    desk.send("prefix_caching", "off")
    (update,) = desk.boundary()
    assert (update.state, update.in_flight, update.lost_requests) == ("refused", 2, 1)


def test_a_switch_that_fails_halfway_reports_the_value_read() -> None:
    desk = Desk()

    def torn(value: str, *, strict: bool) -> None:
        desk.engine.scheduler.kv_cache_manager.enable_caching = False
        raise AssertionError

    vars(desk.commands._jobs["prefix_caching"])["perform"] = torn
    desk.send("prefix_caching", "off")
    (update,) = desk.boundary()
    assert (update.state, update.new, update.flag_epoch) == ("refused", "off", 1)
    assert update.reason == "the switch failed and left the value at off: AssertionError: "
    assert desk.tap.flag_epoch == 1


def test_every_command_is_answered() -> None:
    desk = Desk()
    desk.send("prefix_caching", "off")

    def fails() -> str:
        raise RuntimeError("x" * 10_000)

    vars(desk.commands._jobs["prefix_caching"])["read"] = fails
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "the collector failed: RuntimeError: xxx" in update.reason
    assert len(update.reason) <= MAX_REASON_CHARS
    assert desk.guard.faults == {"boundary": 1}


def test_a_boundary_that_is_off_refuses_pending_commands() -> None:
    desk = Desk()
    desk.send("prefix_caching", "off")
    switch_off(desk.guard, "boundary")
    desk.commands.check()
    (update,) = desk.commands.pop_updates()
    assert update.state == "refused"
    assert f"hook of _handle_client_request failed {MAX_FAULTS} times" in update.reason


@pytest.mark.parametrize(("seam", "method"), [("boundary", "_handle_client_request"), ("step", "step_fn")])
def test_flags_report_a_required_patch_point_that_is_off(seam: str, method: str) -> None:
    desk = Desk()
    switch_off(desk.guard, seam)
    for state in desk.board.states().values():
        assert not state.switchable
        assert f"hook of {method} failed {MAX_FAULTS} times" in state.reason
    assert desk.send("prefix_caching", "off", "d")[0].state == "refused"


def test_reading_back_detects_a_switch_without_effect() -> None:
    class Stubborn(SimpleNamespace):
        def __setattr__(self, name: str, value: Any) -> None:
            if name != "enable_caching":
                super().__setattr__(name, value)

    desk = Desk()
    manager = desk.engine.scheduler.kv_cache_manager
    desk.engine.scheduler.kv_cache_manager = Stubborn(**vars(manager))
    vars(desk.engine.scheduler.kv_cache_manager)["enable_caching"] = True
    desk.send("prefix_caching", "off")
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert "still reads on" in update.reason


def test_the_engines_own_failure_while_draining_reaches_the_engine_unchanged() -> None:
    desk = Desk()

    def dies() -> Any:
        raise RuntimeError("the model executor failed")

    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([])})
    desk.engine.step_fn = dies
    desk.send("async_scheduling", "off")
    with pytest.raises(RuntimeError, match="the model executor failed"):
        desk.boundary()
    (update,) = desk.commands.pop_updates()
    assert update.state == "refused"
    assert "has_requests" not in vars(desk.engine.scheduler)
    assert desk.guard.faults == {}


def test_a_switch_that_loses_a_request_is_undone_and_refused() -> None:
    desk = Desk()
    in_flight(desk.engine, "a", "b", "c")

    class Forgetful(dict[int, Outputs]):
        def values(self) -> Any:
            desk.engine.scheduler.requests.pop("b", None)
            return super().values()

    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append(Forgetful({0: Outputs([output("a", [1], finish="stop")])}))
    desk.send("async_scheduling", "off")
    (update,) = desk.boundary()
    assert (update.state, update.in_flight, update.lost_requests) == ("refused", 3, 1)
    assert (update.old, update.new, update.reason) == ("on", "on", "1 requests were lost; it was undone")
    assert desk.engine.batch_queue_size == 2


def test_a_switch_waits_while_a_weight_update_is_open() -> None:
    desk = Desk()
    desk.tap.on_rpc(None, "start_weight_update")
    desk.send("prefix_caching", "off")
    assert [u.state for u in desk.boundary()] == ["draining"]
    assert desk.boundary() == []  # said once
    assert desk.engine.scheduler.kv_cache_manager.enable_caching
    desk.tap.on_rpc(None, "finish_weight_update")
    assert [u.state for u in desk.boundary()] == ["applied"]


def test_a_command_that_waits_too_long_times_out_and_is_never_executed() -> None:
    desk = Desk()
    desk.tap.on_rpc(None, "start_weight_update")
    desk.send("prefix_caching", "off", seconds=0.01)
    desk.boundary()

    def taken() -> list[CommandUpdate]:
        desk.commands.check()
        return desk.commands.pop_updates()

    updates = wait_for(taken, "the command times out")
    assert [u.state for u in updates] == ["timed_out"]
    desk.tap.on_rpc(None, "finish_weight_update")
    assert desk.boundary() == []
    assert desk.engine.scheduler.kv_cache_manager.enable_caching


def test_a_waiting_command_is_not_forgotten_after_many_others() -> None:
    desk = Desk()
    desk.tap.on_rpc(None, "start_weight_update")
    desk.send("prefix_caching", "off", "patient")
    for number in range(REMEMBERED):
        desk.send("no_such_flag", "on", f"c{number}")
    desk.boundary()
    desk.tap.on_rpc(None, "finish_weight_update")
    assert [(u.id, u.state) for u in desk.boundary()] == [("patient", "applied")]
    assert desk.guard.faults == {}


def test_a_late_command_is_void() -> None:
    desk = Desk()
    assert [u.state for u in desk.send("prefix_caching", "off", seconds=-1)] == ["timed_out"]
    assert desk.engine.input_queue.empty()


def test_a_repeated_command_is_answered_and_not_executed_again() -> None:
    desk = Desk()
    desk.send("prefix_caching", "off", "x")
    desk.boundary()
    assert [u.state for u in desk.send("prefix_caching", "off", "x")] == ["applied"]
    assert desk.boundary() == []
    assert [u.id for u in desk.commands.closed()] == ["x"]


def test_remembered_commands_are_bounded() -> None:
    desk = Desk()
    for number in range(REMEMBERED + 50):
        desk.send("no_such_flag", "on", f"c{number}")
    assert len(desk.commands._known) == REMEMBERED
    shown = [f"c{n}" for n in range(REMEMBERED + 50 - CLOSED_SHOWN, REMEMBERED + 50)]
    assert [u.id for u in desk.commands.closed()] == shown


def test_unknown_flags_and_values_are_refused_with_the_known_ones() -> None:
    desk = Desk()
    (unknown,) = desk.send("prefix_cachin", "on", "1")
    assert unknown.state == "refused"
    assert "prefix_caching" in unknown.reason
    (value,) = desk.send("prefix_caching", "maybe", "2")
    assert value.state == "refused"
    assert "on, off" in value.reason


def test_drain_restores_an_attribute_that_was_masked_before() -> None:
    engine = EngineCore()
    mine = engine.scheduler.has_requests = lambda: False
    drain(engine)
    assert engine.scheduler.has_requests is mine

    def dies() -> bool:
        raise ValueError("step")

    assert engine.batch_queue is not None
    engine.batch_queue.append({})
    engine._process_engine_step = dies  # type: ignore[method-assign]
    with pytest.raises(HostFailure):
        drain(engine)
    assert engine.scheduler.has_requests is mine


def test_an_engine_without_a_known_step_boundary_refuses_switches() -> None:
    desk = Desk()
    vars(desk.engine)["_handle_client_request"] = lambda message: "another vLLM"
    (update,) = desk.send("prefix_caching", "off")
    assert update.state == "refused"
    assert "no step boundary" in update.reason
