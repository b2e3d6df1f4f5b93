"""Weight updates: partial failures, and resets of the prefix cache."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rltop.collectors.transport.error_boundary import MAX_FAULTS, ErrorBoundary
from rltop.collectors.vllm.agent import Agent
from tests.collectors.vllm.test_engine_preconditions import finishing_in_a_pause, seeded_on_cpu, waiting
from tests.collectors.vllm.test_engine_switches import Desk, Kinds, in_flight
from tests.support.engine_doubles import EngineCore, Outputs, output, request
from tests.support.harness import HubStandIn, wait_for

WHOLE = ["start_weight_update", "update_weights", "finish_weight_update"]


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


def fails(desk: Desk, method: str) -> None:
    desk.engine.failing = {method}
    with pytest.raises(RuntimeError, match=f"no {method} today"):
        desk.engine.collective_rpc(method)
    desk.engine.failing = set()


# --- updates that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["update_weights", "finish_weight_update"])
def test_a_failed_update_is_closed_and_reported_as_partial(method: str) -> None:
    desk = Desk()
    desk.engine.collective_rpc("start_weight_update")
    desk.send("prefix_caching", "off")
    assert [u.state for u in desk.boundary()] == ["draining"]
    fails(desk, method)
    assert desk.tap.partial_update == f"{method} failed at engine step 0 (RuntimeError: no {method} today)"
    assert [u.state for u in desk.boundary()] == ["applied"]
    assert desk.tap.updates.count == 0
    for call in WHOLE:
        desk.engine.collective_rpc(call)
    assert (desk.tap.partial_update, desk.tap.updates.count, desk.tap.updates.version) == ("", 1, (1, "inferred"))


def test_an_update_that_fails_at_its_start_has_loaded_nothing() -> None:
    desk = Desk()
    fails(desk, "start_weight_update")
    assert (desk.tap.partial_update, desk.tap.update_open) == ("", False)


@pytest.mark.parametrize("method", ["reload_weights", "update_weights"])
def test_a_failed_update_in_one_call_is_reported_as_partial(method: str) -> None:
    desk = Desk()
    fails(desk, method)
    assert method in desk.tap.partial_update


def test_other_failed_calls_do_not_concern_the_weights() -> None:
    desk = Desk()
    desk.engine.collective_rpc("start_weight_update")
    fails(desk, "profile")
    assert (desk.tap.partial_update, desk.tap.update_open) == ("", True)


def test_a_partial_update_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLTOP_ENGINE", "e7")
    with HubStandIn() as hub:
        engine = EngineCore()
        watcher = Agent(engine, hub.rundir, ErrorBoundary())
        engine.failing = {"update_weights"}
        with pytest.raises(RuntimeError):
            engine.collective_rpc("update_weights")
        watcher.close()
        wait_for(lambda: hub.byes, "its goodbye")
        assert "update_weights failed" in hub.states()[-1].fingerprint["weights torn"]
        assert not hub.states()[-1].update_open


# --- update_clears_cache ------------------------------------------------------------------------------------------


def policy(desk: Desk, value: str) -> None:
    if value != "caller":
        desk.send("update_clears_cache", value, id=value)
        assert desk.boundary()[0].new == value
    assert desk.board.states()["update_clears_cache"].value == value


@pytest.mark.parametrize(
    ("value", "clear", "resets"),
    [("caller", True, 1), ("caller", False, 0), ("on", True, 1), ("on", False, 0), ("off", True, 0), ("off", False, 0)],
)
def test_only_off_changes_the_arguments_of_a_pause(value: str, clear: bool, resets: int) -> None:
    for call in ("positional", "named"):
        desk = Desk()
        policy(desk, value)
        if call == "named":
            told = desk.engine.pause_scheduler(mode="keep", clear_cache=clear)
        else:
            told = desk.engine.pause_scheduler("keep", clear)
        desk.boundary()
        assert told == f"paused keep {bool(resets)}" if value != "on" else f"paused keep {clear}"
        assert desk.engine.scheduler.resets == [True] * resets
        assert desk.board.core.policy.facts() == {"prefix cache resets": str(resets)}


@pytest.mark.parametrize(("value", "resets"), [("caller", 0), ("on", 1), ("off", 0)])
@pytest.mark.parametrize("calls", [WHOLE, ["reload_weights"], ["update_weights"]], ids=len)
def test_on_resets_after_an_update_paused_or_not_and_finishes_the_batches_first(
    value: str, resets: int, calls: list[str]
) -> None:
    desk = Desk()
    policy(desk, value)
    in_flight(desk.engine, "a")
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([output("a", [1])])})
    for call in calls:
        assert desk.engine.scheduler.resets == []
        desk.engine.collective_rpc(call)
        desk.boundary()
    assert desk.engine.scheduler.resets == [True] * resets
    assert len(desk.engine.batch_queue) == 1 - resets
    assert desk.engine.output_queue.qsize() == resets
    assert list(desk.engine.scheduler.requests) == ["a"]
    desk.boundary()
    assert desk.engine.scheduler.resets == [True] * resets


def test_on_resets_after_an_update_that_failed_as_well() -> None:
    desk = Desk()
    policy(desk, "on")
    fails(desk, "update_weights")
    desk.boundary()
    assert desk.engine.scheduler.resets == [True]


def test_off_leaves_explicit_resets_alone() -> None:
    desk = Desk()
    policy(desk, "off")
    assert desk.engine.reset_prefix_cache(reset_running_requests=True)
    assert desk.engine.scheduler.resets == [True]


def test_a_policy_set_before_the_boundary_takes_effect_at_the_next_update() -> None:
    desk = Desk()
    policy(desk, "on")
    desk.engine.collective_rpc("reload_weights")
    desk.board.flip("update_clears_cache", "off")
    desk.boundary()
    assert desk.engine.scheduler.resets == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (seeded_on_cpu, "seeds"),
        (waiting(status="WAITING_FOR_REMOTE_KVS"), "KV transfer"),
        (finishing_in_a_pause, "a pause lets 1 request finish"),
    ],
    ids=["seeds", "remote KV", "pause"],
)
def test_a_reset_that_a_running_request_would_not_survive_is_skipped_and_reported(change: Any, said: str) -> None:
    desk = Desk()
    policy(desk, "on")
    change(desk.engine)
    desk.engine.collective_rpc("reload_weights")
    desk.boundary()
    assert desk.engine.scheduler.resets == []
    assert said in desk.board.facts()["prefix cache not reset"]
    desk.engine.scheduler.requests.clear()
    desk.engine.scheduler.running.clear()
    desk.engine.collective_rpc("reload_weights")
    desk.boundary()
    assert desk.engine.scheduler.resets == [True]
    assert "prefix cache not reset" not in desk.board.facts()


def test_a_failed_reset_is_reported_and_the_boundary_stays_on() -> None:
    desk = Desk()
    policy(desk, "on")

    def fails(reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        raise RuntimeError("Failed to reset KV cache")

    vars(desk.engine.scheduler)["reset_prefix_cache"] = fails
    for _ in range(MAX_FAULTS + 1):
        desk.engine.collective_rpc("reload_weights")
        desk.boundary()
    assert desk.board.facts()["prefix cache not reset"] == "Failed to reset KV cache"
    assert desk.guard.faults == {}
    assert desk.board.states()["prefix_caching"].switchable


def test_the_engines_own_failure_before_a_reset_reaches_the_engine_unchanged() -> None:
    desk = Desk()
    policy(desk, "on")

    def dies() -> Any:
        raise RuntimeError("the model executor failed")

    desk.engine.step_fn = dies
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([])})
    desk.engine.collective_rpc("reload_weights")
    with pytest.raises(RuntimeError, match="the model executor failed"):
        desk.boundary()
    assert desk.engine.scheduler.resets == []
    assert desk.guard.faults == {}


def test_the_seeds_of_a_request_whose_prefill_fits_one_step_are_no_obstacle() -> None:
    desk = Desk()
    policy(desk, "on")
    desk.engine.vllm_config.device_config.device_type = "cpu"
    desk.engine.scheduler.running.append(request("a", [1] * 64, seed=3))
    desk.engine.collective_rpc("reload_weights")
    desk.boundary()
    assert desk.engine.scheduler.resets == [True]
