"""The lifecycle of a command in the pure core: validation, reports in any order, silence, and a new hub."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.commands.lifecycle import GRACE_S
from rltop.collectors.contract import wire
from tests.support.hub_core import Hub, sent
from tests.support.hub_messages import Source


def ask_set(flag: str = "prefix_caching", value: str = "off", **about: Any) -> api.AskSet:
    return api.AskSet(about.pop("id", "q1"), flag, value, **about)


def update(command: str, state: str, engine: str = "e0", **about: Any) -> wire.CommandUpdate:
    return wire.CommandUpdate(command, engine, "prefix_caching", state, **about)


def applied(command: str, engine: str = "e0") -> wire.CommandUpdate:
    return update(command, "applied", engine, old="on", new="off", engine_step=41, policy_version=3, in_flight=7,
                  lost_requests=0, milliseconds=1.5)  # fmt: skip


def fleet(*engines: str) -> Hub:
    hub = Hub()
    for engine in engines:
        hub.engine(engine)
    hub.later()
    return hub


@pytest.mark.parametrize(
    ("question", "named"),
    [
        (ask_set("speed"), "prefix_caching, async_scheduling"),
        (ask_set(value="maybe"), "on or off"),
        (ask_set(engines=["e7"]), "e0"),
        (ask_set(engines=[]), "no engine named"),
        (ask_set(timeout_s=-1.0), "timeout"),
        (ask_set(timeout_s=float("nan")), "timeout"),
    ],
)
def test_an_invalid_request_is_rejected_with_the_valid_choices(question: api.AskSet, named: str) -> None:
    hub = fleet("e0")
    answer, orders = hub.ask(question)
    assert answer.command is None
    assert answer.error is not None
    assert named in answer.error
    assert not orders
    hub.later()
    assert not hub.picture.changes


def test_without_a_live_engine_a_switch_is_rejected() -> None:
    answer, _ = Hub().ask(ask_set())
    assert answer.error == "no engine is live, nothing to switch"


def test_a_command_goes_to_every_live_engine_and_each_closes_its_own() -> None:
    hub = fleet("e0", "e1")
    answer, orders = hub.ask(ask_set(who="ann", host="h", why="trial"))
    assert answer.command
    assert [order.to for order in orders] == ["e0#life-1", "e1#life-1"]
    assert {order.message for order in orders} == {
        wire.Command(answer.command, "prefix_caching", "off", hub.now + 30.0)
    }
    hub.say("e0", update(answer.command, "accepted"))
    hub.say("e0", update(answer.command, "draining"))
    hub.say("e1", update(answer.command, "refused", "e1", reason="started without it"))
    hub.later()
    changes = hub.picture.changes
    assert changes[f"{answer.command}@e0"].state == "draining"
    assert (changes[f"{answer.command}@e1"].state, changes[f"{answer.command}@e1"].reason) == (
        "refused", "started without it",
    )  # fmt: skip
    hub.say("e0", applied(answer.command))
    hub.later()
    done = hub.picture.changes[f"{answer.command}@e0"]
    assert (done.state, done.old, done.new, done.engine_step, done.in_flight, done.lost_requests) == (
        "applied", "on", "off", 41, 7, 0,
    )  # fmt: skip
    assert (done.who, done.host, done.why, done.closed) == ("ann", "h", "trial", hub.now)


@given(st.permutations(["accepted", "accepted", "draining", "applied", "applied", "refused"]))
def test_reports_in_any_order_and_number_never_move_a_change_backwards(states: list[str]) -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set())
    order = {"requested": 0, "accepted": 1, "draining": 2, "applied": 3, "refused": 3}
    seen = ["requested"]
    for state in states:
        hub.say("e0", update(answer.command or "", state))
        hub.later()
        seen.append(hub.change.state)
    assert [order[state] for state in seen] == sorted(order[state] for state in seen)
    first = next(state for state in states if order[state] == 3)
    assert hub.change.state == first
    assert sum("prefix_caching" in text and first in text for text in hub.texts) == 1


def test_the_same_question_twice_is_one_command() -> None:
    hub = fleet("e0")
    first, orders = hub.ask(ask_set())
    again, more = hub.ask(ask_set())
    assert (again.command, len(orders), more) == (first.command, 1, [])


def test_a_silent_engine_times_out_and_its_late_report_counts() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(timeout_s=10.0))
    hub.later(10.0 + GRACE_S)
    assert hub.change.state == "requested"
    hub.later(0.1)
    assert (hub.change.state, hub.change.reason) == ("timed_out", "no answer from engine e0")
    hub.say("e0", applied(answer.command or ""))
    hub.later()
    assert hub.change.state == "applied"
    hub.say("e0", update(answer.command or "", "refused"))
    hub.later()
    assert hub.change.state == "applied"


def test_a_hub_that_stalled_processes_queued_reports_before_it_times_changes_out() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set(timeout_s=10.0))
    hub.now += 100.0  # no tick, no message: its process was stopped
    hub.state.tick(hub.now)
    hub.say("e0", applied(answer.command or ""))
    hub.later(GRACE_S)
    assert [line.event for line in hub.lines] == ["requested", "applied"]
    hub.engine("e0")
    hub.ask(ask_set(id="q2", value="on", timeout_s=10.0))
    hub.now += 100.0
    hub.later(GRACE_S + 1.0)
    assert hub.lines[-1].event == "timed_out"


def test_a_command_to_a_silent_exited_or_unconnected_engine_is_refused_at_once() -> None:
    hub = fleet("e0", "e1", "e2")
    hub.say("e1", wire.Bye("e1", "life-1", 1))
    hub.later(6.0)
    hub.engine("e2")
    hub.later()
    answer, orders = hub.ask(ask_set(engines=["e0", "e1", "e2"]))
    (order,) = orders
    assert order.to == "e2#life-1"
    hub.undelivered(order)
    hub.later()
    changes = hub.picture.changes
    assert {key: change.state for key, change in changes.items()} == {
        f"{answer.command}@{engine}": "refused" for engine in ("e0", "e1", "e2")
    }
    assert "silent" in changes[f"{answer.command}@e0"].reason
    assert "exited" in changes[f"{answer.command}@e1"].reason
    assert "not connected" in changes[f"{answer.command}@e2"].reason


def test_engine_state_replaces_a_lost_report() -> None:
    hub = fleet("e0")
    answer, _ = hub.ask(ask_set())
    for _ in range(3):
        hub.engine("e0", commands=[applied(answer.command or "")])
        hub.later(1.0)
    assert hub.change.state == "applied"
    assert sum("applied" in text for text in hub.texts) == 1


def test_a_reconnecting_engine_is_resent_unacknowledged_commands() -> None:
    hub = fleet("e0")
    answer, (order,) = hub.ask(ask_set())
    again = hub.say("e0", wire.Register(wire.PROTO, "e0", "life-1", "engine"))
    assert sent(again, wire.Command) == [order.message]
    hub.say("e0", update(answer.command or "", "accepted"))
    again = hub.say("e0", wire.Register(wire.PROTO, "e0", "life-1", "engine"))
    assert sent(again, wire.Command) == []


def test_a_new_hub_learns_the_outcome_of_an_earlier_hubs_commands() -> None:
    old = fleet("e0")
    answer, _ = old.ask(ask_set())
    hub = Hub("hub-2")
    hub.say("e0", update(answer.command or "", "draining"))  # not closed: the engine will report the outcome
    hub.engine("e0", commands=[applied(answer.command or "")])
    hub.engine("e0", commands=[applied(answer.command or "")])
    hub.later()
    assert (hub.change.state, hub.change.old, hub.change.wanted) == ("applied", "on", "off")
    assert hub.change.why == "requested through an earlier hub"


def test_reports_for_another_engine_are_invalid() -> None:
    hub = fleet("e0", "e1")
    answer, _ = hub.ask(ask_set(engines=["e0"]))
    hub.say("e1", applied(answer.command or "", "e0"))
    hub.say("e1", wire.Bye("e0", "life-1", 99))
    hub.later()
    assert hub.change.state == "requested"
    assert hub.counters["invalid"] == 2
    assert hub.picture.engines["e0"].health == "live"


def test_a_restarted_engine_receives_commands_under_its_new_epoch() -> None:
    hub = fleet("e0")
    hub.sources["e0"] = Source("e0", "life-2")
    assert sent(hub.engine("e0"), wire.Welcome) == [wire.Welcome("hub-1")]
    _, (order,) = hub.ask(ask_set())
    assert order.to == "e0#life-2"
