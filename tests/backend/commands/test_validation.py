"""Requests: validation, choice of engines, keep, undo and reverts. The pure core, with simulated engines."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend import api
from rltop.backend.commands.validation import RejectedError, choose_engines
from rltop.backend.text import status
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB, MAX_REVERT_S
from tests.backend.commands.test_lifecycle import applied, ask_set, fleet, update
from tests.support.hub_core import Hub


def ask(hub: Hub, question: api.Question) -> tuple[str, dict[str, wire.Command]]:
    """The new command's id, and the commands sent, by engine."""
    answer, orders = hub.ask(question)
    assert answer.command, answer.error
    sent = {order.to.partition("#")[0]: order.message for order in orders}
    return answer.command, {engine: order for engine, order in sent.items() if isinstance(order, wire.Command)}


def refused(hub: Hub, question: api.Question) -> str:
    answer, orders = hub.ask(question)
    assert (answer.command, orders) == (None, [])
    assert answer.error
    return answer.error


def act(verb: str, id: str = "a1", **about: Any) -> api.AskAct:  # noqa: A002
    return api.AskAct(id, verb, **about)


def switch(hub: Hub, engines: str = "e0", **about: Any) -> str:
    """A switch that every engine applies."""
    command, orders = ask(hub, ask_set(id=f"q{len(hub.lines)}", **about))
    for engine in orders:
        hub.say(engine, applied(command, engine))
    hub.later()
    return command


@pytest.mark.parametrize(
    ("question", "named"),
    [
        (ask_set(strict=True), "has no strict form"),
        (ask_set(revert_s=0.0), "a timer of 0 s"),
        (ask_set(revert_s=float("nan")), "a timer of nan s"),
        (ask_set(revert_s=MAX_REVERT_S + 1), "at most"),
        (ask_set(fraction=0.0), "a fraction of 0.0"),
        (ask_set(fraction=1.5), "at most 1"),
        (ask_set(fraction=0.5, engines=["e0"]), "not both"),
        (act("explode"), "flush_cache, pause, resume"),
        (act("flush_cache", revert_s=10.0), "has no timer"),
        (act("pause", revert_s=BY_VERB["pause"].max_guard_s + 1), "at most 600"),
        (act("pause", timeout_s=0.0), "timeout"),
        (api.AskKeep("k", "unknown"), "no command 'unknown'"),
        (api.AskUndo("u", "unknown"), "no command 'unknown'"),
    ],
)
def test_an_invalid_request_is_rejected_with_the_valid_choices(question: api.Question, named: str) -> None:
    hub = fleet("e0", "e1")
    assert named in refused(hub, question)
    assert hub.lines == []


def test_a_fraction_of_one_engine_is_rejected() -> None:
    assert "only e0 is live" in refused(fleet("e0"), ask_set(fraction=0.5))


class Names:
    def __init__(self, live: list[str]) -> None:
        self.live = live

    def health(self, engine: str) -> str:
        return "live" if engine in self.live else "unknown"

    def reads(self, engine: str, subject: str) -> str | None:
        return None

    def timers(self, engine: str) -> list[wire.Timer]:
        return []


@given(st.integers(2, 40), st.floats(0.001, 0.999), st.randoms())
def test_a_fraction_takes_and_leaves_at_least_one_engine_and_is_deterministic(
    count: int, fraction: float, order: Any
) -> None:
    names = [f"e{number}" for number in range(count)]
    chosen = choose_engines(None, fraction, Names(names))
    assert 1 <= len(chosen) < count
    assert abs(len(chosen) - fraction * count) <= 1
    order.shuffle(names)
    assert choose_engines(None, fraction, Names(names)) == chosen


def test_the_ranks_of_an_engine_are_switched_together() -> None:
    ranks = Names(["e0/dp0", "e0/dp1", "e1/dp0", "e1/dp1"])
    assert choose_engines(None, 0.5, ranks) == ["e0/dp0", "e0/dp1"]
    assert choose_engines(["e1"], None, ranks) == ["e1/dp0", "e1/dp1"]
    assert choose_engines(["e1/dp1"], None, ranks) == ["e1/dp1"]
    with pytest.raises(RejectedError, match="only e0 is live"):
        choose_engines(None, 0.5, Names(["e0/dp0", "e0/dp1"]))


def test_a_timed_canary_is_sent_to_the_chosen_engines_alone() -> None:
    hub = fleet("e1", "e0")
    command, orders = ask(hub, ask_set(fraction=0.5, revert_s=600.0, who="ann", host="h", why="trial"))
    assert orders == {"e0": wire.Command(command, "prefix_caching", "off", hub.now + 30.0, revert_s=600.0)}
    hub.later()
    assert (hub.change.revert_s, hub.change.why) == (600.0, "trial")
    assert "prefix_caching off for 10m requested on e0 by ann@h: trial" in hub.texts


def test_an_action_has_the_lifecycle_of_a_switch() -> None:
    hub = fleet("e0")
    command, orders = ask(hub, act("pause", revert_s=30.0))
    assert orders == {"e0": wire.Command(command, "", "", hub.now + 30.0, "pause", revert_s=30.0)}
    about: dict[str, Any] = {"old": "running", "new": "paused", "engine_step": 4, "in_flight": 2, "lost_requests": 0}
    at = hub.now + 30.0
    hub.say("e0", wire.CommandUpdate(command, "e0", "", "applied", verb="pause", reverts_at=at, **about))
    hub.later()
    assert (hub.change.state, hub.change.wanted, hub.change.reverts_at) == ("applied", "paused", hub.now + 30.0)
    assert "pause running → paused applied at engine step 4, 2 in flight, 0 lost" in hub.texts
    back, orders = ask(hub, api.AskUndo("u", command))
    assert orders == {"e0": wire.Command(back, "", "", hub.now + 30.0, "resume", target=command)}


def test_a_second_switch_of_the_same_flag_is_rejected_while_one_is_open() -> None:
    hub = fleet("e0", "e1")
    command, _ = ask(hub, ask_set(engines=["e0"], who="ann", host="h"))
    error = refused(hub, ask_set(id="q2", value="on"))
    assert f"prefix_caching of e0 is being changed: {command} by ann@h is requested" in error
    ask(hub, ask_set(id="q3", flag="async_scheduling"))
    ask(hub, ask_set(id="q4", value="on", engines=["e1"]))
    hub.say("e0", applied(command))
    ask(hub, ask_set(id="q5", value="on", engines=["e0"]))


def test_undo_restores_only_the_engines_that_were_changed() -> None:
    hub = fleet("e0", "e1", "e2")
    command, _ = ask(hub, ask_set())
    assert "still in progress on e0" in refused(hub, api.AskUndo("u0", command))
    hub.say("e0", applied(command))
    hub.say("e1", update(command, "applied", "e1", old="off", new="off", reason="already off"))
    hub.say("e2", update(command, "refused", "e2", old="on", new="on", reason="started without it"))
    hub.later()
    undo, orders = ask(hub, api.AskUndo("u1", command[:8]))
    assert orders == {"e0": wire.Command(undo, "prefix_caching", "on", hub.now + 30.0, target=command)}
    hub.say("e0", update(undo, "applied", old="off", new="on", reverts=command))
    hub.later()
    assert hub.picture.changes[f"{undo}@e0"].reverts == command
    assert hub.lines[-1].event == "undone"
    nothing = switch(hub, engines="e1")
    hub.say("e0", update(nothing, "applied", old="on", new="on"))
    again, _ = ask(hub, api.AskUndo("u2", undo))
    hub.say("e0", update(again, "superseded", old="on", new="on", reason="left alone", reverts=undo))
    hub.later()
    assert "changed nothing that can be undone: e0 superseded (left alone)" in refused(hub, api.AskUndo("u3", again))


def test_a_change_of_form_without_a_change_of_value_can_be_undone() -> None:
    hub = fleet("e0")
    command, _ = ask(hub, ask_set(flag="async_scheduling", strict=True))
    strict = wire.CommandUpdate(command, "e0", "async_scheduling", "applied", old="off", new="off", detail="strict",
                                flag_epoch=3)  # fmt: skip
    hub.say("e0", strict)
    undo, orders = ask(hub, api.AskUndo("u", command))
    assert orders == {"e0": wire.Command(undo, "async_scheduling", "off", hub.now + 30.0, target=command)}


def test_a_half_switched_fleet_is_reported_with_the_command_that_resolves_it() -> None:
    hub = fleet("e0", "e1", "e2")
    command, _ = ask(hub, ask_set())
    hub.say("e0", applied(command))
    hub.say("e1", update(command, "refused", "e1", old="on", new="on", reason="started without it"))
    assert not any("half" in text for text in hub.texts)
    hub.say("e2", applied(command, "e2"))
    hub.later()
    text = (
        "prefix_caching is half switched: off on e0, e2; on on e1 (e1 refused: started without it). "
        f"`rltop undo {command}` reverts e0, e2"
    )
    (event,) = [event for event in hub.picture.events if "half" in event.text]
    assert (event.severity, event.text) == ("warn", text)
    (line,) = [line for line in hub.lines if line.event == "half_switched"]
    assert (line.command, line.engine, line.reason) == (command, "", text)


@pytest.mark.parametrize("answers", [("applied", "applied"), ("refused", "refused")])
def test_a_uniform_fleet_is_not_half_switched(answers: tuple[str, str]) -> None:
    hub = fleet("e0", "e1")
    command, _ = ask(hub, ask_set())
    for engine, state in zip(("e0", "e1"), answers, strict=True):
        hub.say(engine, applied(command, engine) if state == "applied" else update(command, state, engine))
    hub.later()
    assert not any("half" in text for text in hub.texts)


def timer(command: str, at: float = 2000.0) -> wire.Timer:
    return wire.Timer(command, "set", "prefix_caching", "on", at)


def test_keep_is_sent_to_the_engines_with_a_timer_and_records_who_kept_it() -> None:
    hub = fleet("e0", "e1")
    command, _ = ask(hub, ask_set(revert_s=600.0))
    for engine in ("e0", "e1"):
        at = hub.now + 600.0 if engine == "e0" else None
        hub.say(engine, update(command, "applied", engine, old="on", new="off", reverts_at=at))
    hub.engine("e0", timers=[timer(command)])
    hub.later()
    assert hub.picture.engines["e0"].timers == [timer(command)]
    keep, orders = ask(hub, api.AskKeep("k", command, who="bob", host="h"))
    assert orders == {"e0": wire.Command(keep, "", "", hub.now + 30.0, "keep", target=command)}
    hub.say("e0", wire.CommandUpdate(keep, "e0", "prefix_caching", "applied", old="off", new="off", verb="keep"))
    hub.later()
    kept = hub.picture.changes[f"{command}@e0"]
    assert (kept.kept_by, kept.reverts_at, kept.state) == ("bob", None, "applied")
    assert hub.lines[-1].event == "kept"
    _, orders = ask(
        hub, api.AskKeep("k2", command, who="ann", host="h")
    )  # no error: the engine answers that it is kept already
    assert list(orders) == ["e0"]


def test_a_command_without_a_timer_cannot_be_kept() -> None:
    hub = fleet("e0")
    command = switch(hub)
    hub.engine("e0", timers=[timer("other")])
    assert refused(hub, api.AskKeep("k", command)) == f"{command} has no timer; commands that have one: other"
    _, orders = ask(hub, api.AskKeep("k2", "other"))  # of an earlier hub, in no log, but known to the engine
    assert list(orders) == ["e0"]


@pytest.mark.parametrize("said", [{"wanted": "on"}, {}], ids=["said", "an older collector"])
def test_a_waiting_revert_is_shown_with_the_value_that_it_restores(said: dict[str, str]) -> None:
    hub = fleet("e0")
    command, _ = ask(hub, ask_set(revert_s=600.0))
    hub.say("e0", update(command, "applied", old="on", new="off", reverts_at=hub.now + 600.0))
    hub.say("e0", update(f"{command}/revert", "draining", reverts=command, reason="an update is open", **said))
    hub.later()
    revert = hub.picture.changes[f"{command}/revert@e0"]
    assert status.change_text(revert) == "e0: prefix_caching off → on, draining (an update is open)"
    assert status.change_json(revert)["to"] == "on"


def test_an_engines_own_revert_is_tracked_with_who_and_why() -> None:
    hub = fleet("e0")
    command, _ = ask(hub, ask_set(revert_s=600.0, who="ann", host="h"))
    hub.say("e0", update(command, "applied", old="on", new="off", reverts_at=hub.now + 600.0))
    own = {"old": "off", "new": "on", "reverts": command}
    hub.say("e0", update(f"{command}/revert", "draining", reverts=command))
    hub.later()
    revert = hub.picture.changes[f"{command}/revert@e0"]
    assert (revert.state, revert.who, revert.why, revert.reverts) == (
        "draining",
        "ann",
        "its timer expired after 600 s",
        command,
    )
    assert "is draining" in refused(hub, ask_set(id="q9"))
    hub.say("e0", update(f"{command}/revert", "applied", **own))
    hub.later()
    assert hub.lines[-1].event == "reverted"
    assert "prefix_caching off → on reverted" in hub.texts[-1]


def test_a_revert_that_failed_is_an_error() -> None:
    hub = fleet("e0")
    command = switch(hub, revert_s=600.0)
    hub.say("e0", update(f"{command}/revert", "refused", old="off", new="off", reason="no worker", reverts=command))
    hub.later()
    assert hub.picture.events[-1].severity == "error"


def test_open_changes_of_an_ended_engine_time_out() -> None:
    hub = fleet("e0", "e1")
    command, _ = ask(hub, ask_set())
    hub.say("e0", update(command, "draining"))
    hub.sources["e0"].epoch = "life-2"
    hub.sources["e0"].seq = 0
    hub.engine("e0")
    hub.say("e1", wire.Bye("e1", "life-1", 1))
    hub.later()
    found = {change.engine: (change.state, change.reason) for change in hub.picture.changes.values()}
    assert found == {
        "e0": ("timed_out", "engine e0 was restarted before the command was closed"),
        "e1": ("timed_out", "engine e1 disconnected before the command was closed"),
    }
