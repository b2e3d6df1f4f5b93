"""The other verbs and the timers on duck-typed engines: taken back by itself, kept, superseded, never twice."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.collectors.contract.actions import ACTIONS, BY_VERB, MAX_REVERT_S
from rltop.collectors.contract.wire import Command, CommandUpdate
from rltop.collectors.vllm.control.timers import REMEMBERED, FlagTimer, FlagTimers
from tests.collectors.vllm.test_engine_switches import Desk, Kinds, in_flight
from tests.support.engine_doubles import EngineCore, Outputs, PauseState, output
from tests.support.harness import switch_off, wait_for

SOON_S = 0.01


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", SimpleNamespace(EngineCoreRequestType=Kinds))


def send(desk: Desk, verb: str, id: str = "c", *, seconds: float = 60.0, **about: Any) -> list[CommandUpdate]:  # noqa: A002
    flag, value = about.pop("flag", ""), about.pop("value", "")
    desk.commands.receive(Command(id, flag, value, time.time() + seconds, verb, **about))
    return desk.commands.pop_updates()


def do(desk: Desk, verb: str, id: str = "c", **about: Any) -> CommandUpdate:  # noqa: A002
    """Send it, come to a boundary; how it ended."""
    return [*send(desk, verb, id, **about), *desk.boundary()][-1]


def off(desk: Desk, id: str = "c", **about: Any) -> CommandUpdate:  # noqa: A002
    return do(desk, "set", id, flag="prefix_caching", value="off", **about)


def caching(desk: Desk) -> bool:
    return bool(desk.engine.scheduler.kv_cache_manager.enable_caching)


def pause_state(desk: Desk) -> str:
    return str(desk.engine.scheduler.pause_state.name)


def when_due(desk: Desk, id: str = "c/revert") -> list[CommandUpdate]:  # noqa: A002
    """Once a second the agent checks; here until the timer's end was seen."""
    updates: list[CommandUpdate] = []

    def seen() -> bool:
        desk.commands.check()
        updates.extend(desk.commands.pop_updates())
        return any(update.id == id for update in updates)

    wait_for(seen, f"{id}")
    return updates


def test_the_engine_reverts_a_switch_with_a_timer() -> None:
    desk = Desk()
    before = time.time()
    update = off(desk, revert_s=SOON_S)
    assert (update.state, update.new, update.flag_epoch) == ("applied", "off", 1)
    assert update.reverts_at is not None
    assert update.reverts_at >= before + SOON_S
    assert [u.state for u in when_due(desk)] == ["accepted"]
    assert not caching(desk)  # only at a boundary
    (back,) = desk.boundary()
    assert (back.id, back.state, back.old, back.new) == ("c/revert", "applied", "off", "on")
    assert (back.reverts, back.flag_epoch, back.lost_requests) == ("c", 2, 0)
    assert caching(desk)
    assert desk.commands.timers() == []


def test_a_running_timer_is_part_of_the_state() -> None:
    desk = Desk()
    at = off(desk, revert_s=600.0).reverts_at
    (timer,) = desk.commands.timers()
    assert (timer.command, timer.verb, timer.flag, timer.back_to, timer.at) == ("c", "set", "prefix_caching", "on", at)


def test_a_revert_waits_for_an_open_weight_update_and_has_no_deadline() -> None:
    desk = Desk()
    off(desk, revert_s=SOON_S)
    desk.tap.on_rpc(None, "start_weight_update")
    when_due(desk)
    (waits,) = desk.boundary()
    assert (waits.state, waits.wanted) == ("draining", "on")
    desk.commands.check()
    assert not caching(desk)
    desk.tap.on_rpc(None, "finish_weight_update")
    assert [u.state for u in desk.boundary()] == ["applied"]
    assert caching(desk)


def test_a_kept_switch_stays_and_keeping_it_twice_succeeds() -> None:
    desk = Desk()
    off(desk, revert_s=600.0)
    (kept,) = send(desk, "keep", "k1", target="c")
    assert (kept.state, kept.flag, kept.old, kept.new, kept.reverts) == ("applied", "prefix_caching", "off", "off", "")
    assert desk.commands.timers() == []
    assert [u.reason for u in send(desk, "keep", "k2", target="c")] == ["already kept"]
    desk.commands.check()
    assert desk.boundary() == []
    assert not caching(desk)


def test_a_command_that_cannot_be_kept_is_refused_with_the_reason() -> None:
    desk = Desk()
    (none,) = send(desk, "keep", "k1", target="nobody")
    assert (none.state, none.reason) == ("refused", "this engine has no timer of command nobody")
    off(desk, revert_s=SOON_S)
    when_due(desk)
    (late,) = send(desk, "keep", "k2", target="c")
    assert (late.state, late.reason) == ("refused", "the timer has expired: the revert is accepted")
    desk.boundary()
    (later,) = send(desk, "keep", "k3", target="c")
    assert (later.state, later.reason) == ("refused", "the timer has expired: the revert is applied")
    assert caching(desk)
    do(desk, "pause", "p")
    (paused,) = send(desk, "keep", "k4", target="p")
    assert paused.state == "refused"
    assert [timer.command for timer in desk.commands.timers()] == ["p"]


def test_another_command_on_the_flag_supersedes_the_timer() -> None:
    desk = Desk()
    off(desk, revert_s=600.0)
    send(desk, "set", "d", flag="prefix_caching", value="on")
    applied, superseded = desk.boundary()
    assert (applied.id, applied.state, applied.reverts_at) == ("d", "applied", None)
    assert (superseded.id, superseded.state, superseded.reverts) == ("c/revert", "superseded", "c")
    assert "d was applied to prefix_caching" in superseded.reason
    assert desk.commands.timers() == []


def test_setting_the_present_value_again_stops_the_timer() -> None:
    desk = Desk()
    off(desk, revert_s=600.0)
    send(desk, "set", "d", flag="prefix_caching", value="off")
    assert [(u.id, u.state) for u in desk.boundary()] == [("d", "applied"), ("c/revert", "superseded")]
    assert desk.commands.timers() == []
    assert not caching(desk)


def test_a_renewed_timer_reverts_to_the_value_before_all_timers() -> None:
    desk = Desk()
    off(desk, "c", revert_s=600.0)
    assert off(desk, "d", revert_s=SOON_S).id == "c/revert"
    assert [(timer.command, timer.back_to) for timer in desk.commands.timers()] == [("d", "on")]
    when_due(desk, "d/revert")
    assert [(u.id, u.state, u.new) for u in desk.boundary()] == [("d/revert", "applied", "on")]


def test_a_pause_renewed_as_it_ends_still_has_a_timer() -> None:
    desk = Desk()
    do(desk, "pause", "p", revert_s=SOON_S)
    send(desk, "pause", "q", revert_s=600.0)
    when_due(desk, "p/revert")
    renewed, superseded = desk.boundary()
    assert (renewed.id, renewed.state, renewed.reverts_at is None) == ("q", "applied", False)
    assert (superseded.id, superseded.state) == ("p/revert", "superseded")
    assert [(timer.command, timer.back_to) for timer in desk.commands.timers()] == [("q", "running")]
    assert do(desk, "resume", "r").id == "q/revert"
    assert pause_state(desk) == "UNPAUSED"


def test_a_switch_renewed_as_its_timer_ends_is_still_reverted() -> None:
    desk = Desk()
    off(desk, "c", revert_s=SOON_S)
    send(desk, "set", "d", flag="prefix_caching", value="off", revert_s=SOON_S)
    when_due(desk)
    desk.boundary()
    when_due(desk, "d/revert")
    assert [(u.id, u.state, u.new) for u in desk.boundary()] == [("d/revert", "applied", "on")]
    assert off(desk, "e").reverts_at is None
    assert do(desk, "set", "f", flag="prefix_caching", value="on").state == "applied"
    assert off(desk, "g", revert_s=600.0).reverts_at is not None  # nothing of the earlier timers is left
    assert [timer.back_to for timer in desk.commands.timers()] == ["on"]


def test_a_revert_with_an_obstacle_is_retried_until_it_succeeds() -> None:
    desk = Desk()
    off(desk, revert_s=SOON_S)
    desk.engine.scheduler.connector = object()
    when_due(desk)
    (waiting,) = desk.boundary()
    assert (waiting.state, "KV connector" in waiting.reason) == ("draining", True)
    assert desk.boundary() == []  # neither said nor tried again at once
    desk.engine.scheduler.connector = None

    def tried() -> list[CommandUpdate]:
        desk.commands.check()
        return desk.boundary()

    updates = wait_for(tried, "the revert is tried again")
    assert [(u.id, u.state, u.new) for u in updates] == [("c/revert", "applied", "on")]


def test_a_flag_with_mixed_values_is_not_switched_with_a_timer() -> None:
    desk = Desk()
    desk.engine.async_scheduling = False
    refused = do(desk, "set", flag="async_scheduling", value="on", revert_s=600.0)
    assert refused.state == "refused"
    assert "reads mixed, to which it can't be reverted" in refused.reason


def test_a_switch_back_to_the_previous_value_needs_no_timer() -> None:
    desk = Desk()
    off(desk, "c", revert_s=600.0)
    send(desk, "set", "d", flag="prefix_caching", value="on", revert_s=600.0)
    applied, superseded = desk.boundary()
    assert (applied.new, applied.reverts_at, superseded.state) == ("on", None, "superseded")
    assert desk.commands.timers() == []


def test_a_flag_changed_since_is_not_reverted() -> None:
    desk = Desk()
    off(desk, revert_s=SOON_S)
    desk.engine.scheduler.kv_cache_manager.enable_caching = True
    when_due(desk)
    (left,) = desk.boundary()
    assert (left.state, left.old, left.new) == ("superseded", "on", "on")
    assert "reads on, not off" in left.reason
    assert desk.tap.flag_epoch == 1


def test_an_undo_reverts_only_the_change_of_its_command() -> None:
    desk = Desk()
    off(desk, "c", revert_s=600.0)
    send(desk, "set", "u", flag="prefix_caching", value="on", target="c")
    undone, timer = desk.boundary()
    assert (undone.state, undone.new, undone.reverts) == ("applied", "on", "c")
    assert (timer.id, timer.state) == ("c/revert", "superseded")
    again = do(desk, "set", "v", flag="prefix_caching", value="off", target="c")
    assert again.state == "superseded"
    assert "last set by u, not by c" in again.reason
    assert caching(desk)


def scheduling(desk: Desk) -> tuple[str | None, str]:
    state = desk.board.states()["async_scheduling"]
    return state.value, state.detail


def test_a_revert_and_an_undo_restore_the_form_too() -> None:
    desk = Desk()
    strict = do(desk, "set", "s", flag="async_scheduling", value="off", strict=True)
    assert (strict.state, strict.new, strict.detail) == ("applied", "off", "strict"), strict
    do(desk, "set", "t", flag="async_scheduling", value="on", revert_s=SOON_S)
    assert scheduling(desk) == ("on", "")
    when_due(desk, "t/revert")
    assert [(u.state, u.detail) for u in desk.boundary()] == [("applied", "strict")]
    do(desk, "set", "v", flag="async_scheduling", value="on")
    undone = do(desk, "set", "u", flag="async_scheduling", value="off", target="v")
    assert (undone.state, scheduling(desk)) == ("applied", ("off", "strict"))
    assert do(desk, "set", "w", flag="async_scheduling", value="off", strict=True).reason == "already off"


@pytest.mark.parametrize("lenient", [False, True])
def test_a_strict_form_with_a_timer_reverts_to_the_plain_one(lenient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    if lenient:  # what is strictly off may do for off where a person asks, never where something is taken back
        job = desk.commands._jobs["async_scheduling"]
        monkeypatch.setattr(job, "stands", lambda value, *, strict: job.read() == value and not strict)
    do(desk, "set", "p", flag="async_scheduling", value="off")
    assert scheduling(desk) == ("off", "depth 1")
    timed = do(desk, "set", "s", flag="async_scheduling", value="off", strict=True, revert_s=SOON_S)
    assert (timed.old, timed.new, timed.detail, timed.reverts_at is None) == ("off", "off", "strict", False)
    when_due(desk, "s/revert")
    (back,) = desk.boundary()
    assert (back.state, back.new, back.detail) == ("applied", "off", "depth 1"), back


def test_a_pause_keeps_every_request_and_ends_by_itself() -> None:
    desk = Desk()
    in_flight(desk.engine, "a", "b")
    assert desk.engine.batch_queue is not None
    desk.engine.batch_queue.append({0: Outputs([output("a", [1]), output("b", [1])])})
    paused = do(desk, "pause", revert_s=SOON_S)
    assert (paused.state, paused.old, paused.new) == ("applied", "running", "paused")
    assert (paused.in_flight, paused.lost_requests, paused.flag_epoch) == (2, 0, None)
    assert pause_state(desk) == "PAUSED_ALL"
    assert not desk.engine.batch_queue
    when_due(desk)
    (back,) = desk.boundary()
    assert (back.verb, back.state, back.new, back.reverts) == ("resume", "applied", "running", "c")
    assert pause_state(desk) == "UNPAUSED"


def test_a_pause_always_has_a_guard_timer_and_a_second_one_renews_it() -> None:
    desk = Desk()
    guard_s = BY_VERB["pause"].guard_s
    assert guard_s is not None
    before = time.time()
    at = do(desk, "pause", "p").reverts_at
    assert at is not None
    assert before + guard_s <= at <= time.time() + guard_s
    send(desk, "pause", "q", revert_s=300.0)
    again, superseded = desk.boundary()
    assert (again.reason, superseded.id) == ("already paused", "p/revert")
    (timer,) = desk.commands.timers()
    assert (timer.command, timer.back_to) == ("q", "running")
    assert do(desk, "resume", "r").id == "q/revert"
    assert pause_state(desk) == "UNPAUSED"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), BY_VERB["pause"].max_guard_s + 1])
def test_an_invalid_timer_is_refused(seconds: float) -> None:
    desk = Desk()
    assert do(desk, "pause", revert_s=seconds).state == "refused"
    assert off(desk, "d", revert_s=seconds if seconds <= 0 else MAX_REVERT_S + 1).state == "refused"
    assert pause_state(desk) == "UNPAUSED"
    assert caching(desk)


def test_a_pause_by_another_caller_is_never_ended() -> None:
    desk = Desk()
    desk.engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    refused = do(desk, "resume")
    assert refused.state == "refused"
    assert "has to resume it" in refused.reason
    assert pause_state(desk) == "PAUSED_ALL"


def test_a_pause_waits_for_the_end_of_another_callers_pause() -> None:
    desk = Desk()
    desk.engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    waiting = do(desk, "pause")
    assert (waiting.state, "resume it" in waiting.reason) == ("draining", True)
    desk.engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert [(u.state, u.new) for u in desk.boundary()] == [("applied", "paused")]


@pytest.mark.parametrize("theirs", [PauseState.PAUSED_ALL, PauseState.UNPAUSED])
def test_a_pause_taken_over_by_another_caller_supersedes_the_timer(theirs: PauseState) -> None:
    desk = Desk()
    do(desk, "pause", revert_s=600.0)
    desk.engine.scheduler.set_pause_state(theirs)
    desk.commands.check()
    (left,) = desk.commands.pop_updates()
    assert (left.id, left.state) == ("c/revert", "superseded")
    assert desk.commands.timers() == []
    assert pause_state(desk) == theirs.name


def test_a_pause_does_not_end_while_a_weight_update_is_open() -> None:
    desk = Desk()
    do(desk, "pause", revert_s=SOON_S)
    desk.tap.on_rpc(None, "start_weight_update")
    when_due(desk)
    assert [u.state for u in desk.boundary()] == ["draining"]
    assert pause_state(desk) == "PAUSED_ALL"
    desk.tap.on_rpc(None, "finish_weight_update")
    assert [u.new for u in desk.boundary()] == ["running"]


def test_generation_that_cannot_be_paused_safely_is_refused_with_the_reason() -> None:
    engine = EngineCore()
    vars(engine)["dp_group"] = object()
    assert "only together" in do(Desk(engine), "pause").reason
    engine = EngineCore()
    del engine.scheduler.pause_state
    assert "no pause" in do(Desk(engine), "pause").reason
    desk = Desk()
    vars(desk.engine.scheduler)["set_pause_state"] = lambda other: None
    assert "who paused generation" in do(desk, "pause").reason


def test_a_pause_without_effect_is_undone() -> None:
    desk = Desk()
    state = PauseState.UNPAUSED
    kind = type("Deaf", (type(desk.engine.scheduler),), {"pause_state": property(lambda _: state, lambda *_: None)})
    desk.engine.scheduler.__class__ = kind
    refused = do(desk, "pause")
    assert (refused.state, "reads running" in refused.reason) == ("refused", True)
    assert desk.guard.faults == {}


def test_a_flush_evicts_unused_blocks_and_reports_the_rest() -> None:
    desk = Desk()
    flushed = do(desk, "flush_cache")
    assert (flushed.state, flushed.old, flushed.new) == ("applied", "7 blocks", "3 blocks")
    assert flushed.reason == "4 blocks evicted, 3 in use stay and can be hit until their requests end"
    assert desk.engine.scheduler.kv_cache_manager.block_pool.evicted == [0, 2, 4, 6]
    assert caching(desk)
    assert desk.tap.flag_epoch == 0
    desk.engine.scheduler.connector = object()
    assert "connector" in do(desk, "flush_cache", "d").reason


def test_without_step_outputs_a_pause_is_refused_but_a_resume_is_not() -> None:
    desk = Desk()
    in_flight(desk.engine, "a")
    do(desk, "pause", "p", revert_s=SOON_S)
    switch_off(desk.guard, "step")
    when_due(desk, "p/revert")
    (back,) = desk.boundary()
    assert (back.state, back.new, back.lost_requests) == ("applied", "running", None)  # nobody counted
    assert "lost requests could not be counted" in do(desk, "pause", "q").reason


def test_an_unknown_verb_is_refused_with_the_known_ones() -> None:
    (refused,) = send(Desk(), "explode")
    assert refused.state == "refused"
    for action in ACTIONS:
        assert action.verb in refused.reason


def test_pending_updates_are_repeated_for_a_new_hub() -> None:
    desk = Desk()
    desk.tap.on_rpc(None, "start_weight_update")
    off(desk)
    desk.commands.resend_pending()
    assert [(u.id, u.state) for u in desk.commands.pop_updates()] == [("c", "draining")]


def timer(command: str, subject: str, due: float) -> FlagTimer:
    return FlagTimer(command, subject, "set", subject, "on", False, due, due)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), max_size=20), st.floats(0, 10))
def test_a_timer_ends_once(starts: list[tuple[str, float]], now: float) -> None:
    timers = FlagTimers()
    for number, (subject, due) in enumerate(starts):
        if earlier := timers.latest(subject):
            assert timers.stop(earlier)
        timers.start(timer(f"c{number}", subject, due))
    running = timers.running()
    assert [one.due for one in running] == sorted(one.due for one in running)
    over = timers.pop_due(now)
    assert [one for one in running if one.due <= now] == over
    for one in over:
        assert not timers.stop(one)
        assert not timers.keep(one)
        assert not timers.was_kept(one.command)
    for one in timers.running():
        assert timers.keep(one)
        assert timers.was_kept(one.command)
    assert timers.running() == []
    assert timers.as_wire() == []


def test_kept_commands_are_remembered_within_a_bound() -> None:
    timers = FlagTimers()
    for number in range(REMEMBERED + 1):
        one = timer(f"c{number}", "a", 1.0)
        timers.start(one)
        timers.keep(one)
    assert not timers.was_kept("c0")
    assert timers.was_kept(f"c{REMEMBERED}")
