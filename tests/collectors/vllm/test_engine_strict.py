"""The strict form of ``async_scheduling``: every place that reads the setting, or none."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.contract.wire import FlagState
from rltop.collectors.vllm.engine_core import SwitchError
from tests.collectors.vllm.test_engine_preconditions import put, runners
from tests.collectors.vllm.test_engine_switches import Desk, Kinds
from tests.support.engine_doubles import AsyncScheduler, EngineCore, Outputs, Scheduler, output, request

FLAG = "async_scheduling"


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


def running(desk: Desk) -> Any:
    """One request under way, of which the runners hold placeholders."""
    one = request("a")
    one.output_token_ids = [7, 8]
    desk.engine.scheduler.add_request(one)
    desk.engine.scheduler.running.append(one)
    for runner in runners(desk.engine):
        runner.requests["a"] = SimpleNamespace(output_token_ids=[-1, -1])
    return one


def everywhere(engine: EngineCore) -> list[Any]:
    """Every place that reads the setting."""
    return [
        type(engine.scheduler).__name__,
        engine.async_scheduling,
        engine.batch_queue_size,
        engine.batch_queue.maxlen if engine.batch_queue is not None else None,
        *(runner.use_async_scheduling for runner in runners(engine)),
    ]


AS_LAUNCHED = ["AsyncScheduler", True, 2, 2, True, True]
DEPTH_1 = ["AsyncScheduler", True, 1, 1, True, True]
STRICT = ["Scheduler", False, 1, 1, False, False]


def test_strict_off_changes_every_setting_and_on_restores_it() -> None:
    desk = Desk()
    one = running(desk)
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([output("a", [9])])})
    assert everywhere(desk.engine) == AS_LAUNCHED
    desk.send(FLAG, "off", strict=True)
    (update,) = desk.boundary()
    assert (update.state, update.old, update.new, update.detail, update.lost_requests) == (
        "applied", "on", "off", "strict", 0,
    )  # fmt: skip
    assert everywhere(desk.engine) == STRICT
    assert desk.board.states()[FLAG] == FlagState("off", True, "", "strict")
    assert desk.engine.scheduler.resets == [True]
    assert desk.engine.scheduler.waiting == [one]
    assert desk.engine.output_queue.qsize() == 1
    for runner in runners(desk.engine):
        assert runner.requests["a"].output_token_ids == [7, 8]
        assert vars(runner.input_batch) == dict.fromkeys(vars(runner.input_batch))
    desk.send(FLAG, "on", "back")
    assert desk.boundary()[0].new == "on"
    assert everywhere(desk.engine) == AS_LAUNCHED
    assert desk.engine.scheduler.resets == [True, True]
    assert desk.board.states()[FLAG] == FlagState("on", True, "", "")
    assert isinstance(desk.engine.scheduler, AsyncScheduler)


def test_depth_1_and_strict_are_forms_of_off_and_convert_into_each_other() -> None:
    desk = Desk()
    for number, (strict, detail, found) in enumerate([(False, "depth 1", DEPTH_1), (True, "strict", STRICT)]):
        desk.send(FLAG, "off", f"c{number}", strict=strict)
        (update,) = desk.boundary()
        assert (update.state, update.new, update.detail, update.reason) == ("applied", "off", detail, "")
        assert everywhere(desk.engine) == found
    desk.send(FLAG, "off", "again")
    assert desk.boundary()[0].reason == "already off"  # what is strictly off is off
    assert everywhere(desk.engine) == STRICT
    desk.board.flip(FLAG, "off")  # a revert to what it was
    assert everywhere(desk.engine) == DEPTH_1
    assert desk.engine.scheduler.resets == [True, True]  # into strict, and out of it
    desk.send(FLAG, "off", "still")
    assert desk.boundary()[0].reason == "already off"


def test_a_runner_without_such_a_setting_has_none_to_change() -> None:
    engine = EngineCore()
    for runner in runners(engine):
        del runner.use_async_scheduling
        del runner.input_batch
    desk = Desk(engine)
    desk.send(FLAG, "off", strict=True)
    assert desk.boundary()[0].detail == "strict"
    assert (type(engine.scheduler), engine.async_scheduling) == (Scheduler, False)
    desk.send(FLAG, "on", "back")
    assert desk.boundary()[0].new == "on"


class Stuck(SimpleNamespace):
    """A runner that takes no new setting."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "use_async_scheduling":
            raise RuntimeError("out of order")
        super().__setattr__(name, value)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_rejects_it_leaves_everything_as_launched(rank: int) -> None:
    desk = Desk()
    worker = desk.engine.model_executor.workers[rank]
    worker.model_runner = Stuck(**vars(worker.model_runner))
    desk.send(FLAG, "off", strict=True)
    (update,) = desk.boundary()
    assert update.state == "refused"
    assert f"rank {rank}: RuntimeError: out of order" in update.reason
    assert everywhere(desk.engine) == AS_LAUNCHED
    assert desk.board.states()[FLAG].value == "on"


@pytest.mark.parametrize(
    "change",
    [
        lambda engine: setattr(engine, "async_scheduling", False),
        lambda engine: setattr(engine.scheduler, "__class__", Scheduler),
        lambda engine: setattr(runners(engine)[0], "use_async_scheduling", False),
        put("use_async_scheduling", False),
    ],
)
def test_parts_that_differ_are_shown_as_mixed(change: Any) -> None:
    desk = Desk()
    change(desk.engine)
    desk.board.switches[FLAG].refresh()
    assert desk.board.states()[FLAG].value == "mixed"
    assert desk.board.states()[FLAG].detail == ""


def test_leaving_the_strict_form_has_the_same_preconditions() -> None:
    desk = Desk()
    desk.board.flip(FLAG, "off", strict=True)
    one = running(desk)
    one.status = "WAITING_FOR_REMOTE_KVS"
    state = desk.board.states()[FLAG]
    assert (state.switchable, state.detail) == (False, "strict")
    desk.send(FLAG, "on")
    assert not desk.boundary()
    assert everywhere(desk.engine) == STRICT


def test_a_flag_without_a_strict_form_refuses_it() -> None:
    desk = Desk()
    with pytest.raises(SwitchError, match="no strict form"):
        desk.board.flip("prefix_caching", "off", strict=True)
    assert desk.board.states()["prefix_caching"].value == "on"
