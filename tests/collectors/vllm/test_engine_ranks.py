"""Data-parallel ranks: each is an engine of its own, and a switch on one keeps it in step with the others."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.transport.error_boundary import ErrorBoundary
from rltop.collectors.vllm.agent import Agent
from tests.collectors.vllm.test_engine_switches import Desk, Kinds
from tests.support.engine_doubles import EngineCore, Outputs, output, request
from tests.support.harness import HubStandIn, wait_for


class Lockstep(EngineCore):
    """As ``DPEngineCoreProc``: each turn of its loop runs one forward, real or dummy, and then meets the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dp_group = object()
        self.forwards = 0

    def step_with_batch_queue(self) -> tuple[dict[int, Outputs] | None, bool]:
        """As vLLM's: to fill the queue comes before waiting for its oldest batch."""
        queue = self.batch_queue
        assert queue is not None
        assert len(queue) < self.batch_queue_size
        executed = False
        if self.scheduler.has_requests():
            self.scheduler.schedule()
            self.forwards += 1
            executed = True
            queue.appendleft({0: Outputs([output(name, [1]) for name in self.scheduler.requests])})
            if len(queue) < self.batch_queue_size:
                return None, True
        elif not queue:
            return None, False
        return queue.pop(), executed

    def turn(self, *messages: Any) -> None:
        """One turn of ``run_busy_loop``; the messages are those that came meanwhile."""
        for message in messages:
            self._handle_client_request(Kinds.WAKEUP, message)
        if not self._process_engine_step():
            self.forwards += 1  # execute_dummy_batch


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


CHANGES = [(flag.name, value) for flag in FLAGS for value in flag.values if flag.name != "lm_head_fp32"]


@given(st.lists(st.sampled_from([None, None, *CHANGES]), max_size=20), st.booleans())
def test_every_turn_of_a_rank_in_lockstep_runs_one_forward_whatever_is_switched(
    plan: list[tuple[str, str] | None], busy: bool
) -> None:
    engine = Lockstep()
    desk = Desk(engine)
    if busy:
        engine.scheduler.add_request(request("a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))
        for number, change in enumerate(plan):
            if change is None:
                engine.turn()
            else:
                desk.send(*change, f"c{number}")
                engine.turn("switch")
                (update,) = desk.commands.pop_updates()
                assert (update.state, update.new) == ("applied", change[1])
            assert engine.forwards == number + 1
    assert desk.guard.faults == {}


def test_in_lockstep_the_strict_form_is_refused_and_depth_1_is_not() -> None:
    desk = Desk(Lockstep())
    (update,) = desk.send("async_scheduling", "off", strict=True)
    assert (update.state, "lockstep (Lockstep)" in update.reason) == ("refused", True)
    desk.send("async_scheduling", "off", "depth")
    assert [(u.state, u.detail) for u in desk.boundary()] == [("applied", "depth 1")]


def test_each_rank_is_an_engine_of_its_own_and_is_switched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_ENGINE", "e0")
    with HubStandIn() as hub:
        engines, watchers = [], []
        for rank in (0, 1):
            engine = EngineCore()
            engine.vllm_config.parallel_config.data_parallel_size = 2
            engine.vllm_config.parallel_config.data_parallel_index = rank
            engines.append(engine)
            watchers.append(Agent(engine, hub.rundir, ErrorBoundary()))
        hub.command("e0/dp1", "prefix_caching", "off", "x")
        wait_for(lambda: [u for u in hub.updates if u.state == "accepted"], "accepted")
        for engine in engines:  # the answer to its registration wakes each of them
            while not engine.input_queue.empty():
                engine._handle_client_request(*engine.input_queue.get_nowait())
        update = hub.closed("x")
        assert (update.engine, update.state) == ("e0/dp1", "applied")
        assert [e.scheduler.kv_cache_manager.enable_caching for e in engines] == [True, False]
        for watcher in watchers:
            watcher.close()
        assert sorted(bye.source for bye in hub.byes) == ["e0/dp0", "e0/dp1"]
