"""The supervisor's memory of a run: steps and flag changes outlive hubs, and every setting is sent once it is due."""

from __future__ import annotations

from typing import cast

from rltop.backend.api import Answer, AskSet, Change, Question, Snapshot, Step, change_key
from rltop.backend.client.live import Client
from rltop.backend.demo.observed import Follower
from rltop.backend.demo.options import parse_setting


class ScriptedHub:
    """What a ``Client`` shows, as the test says. ``questions`` are those that a hub got."""

    def __init__(self) -> None:
        self.view: Snapshot | None = None
        self.state = "connecting"
        self.answers: dict[str, Answer] = {}
        self.questions: list[AskSet] = []
        self.reachable = True

    def poll(self, timeout_s: float) -> bool:
        return True

    def ask(self, question: Question) -> None:
        assert isinstance(question, AskSet)
        if self.reachable:
            self.questions.append(question)
        else:
            self.answers[question.id] = Answer(question.id, error="no hub answers")

    def start(self, epoch: str) -> None:
        self.view, self.state = Snapshot("run", epoch, 0, 0.0, 0.0), "live"

    def close_step(self, number: int) -> None:
        assert self.view is not None
        self.view.steps[number] = Step(number, 0.0, None, False, {})

    def answer(self, command: str | None = None, error: str | None = None) -> None:
        question = self.questions[-1].id
        self.answers[question] = Answer(question, error, command=command)

    def show(self, state: str, engine: str = "e0", reason: str = "") -> None:
        assert self.view is not None
        change = Change("c1", engine, "prefix_caching", "off", state, 0.0, reason=reason)
        self.view.changes[change_key(change)] = change


def follow(*settings: str) -> tuple[ScriptedHub, Follower]:
    hub = ScriptedHub()
    return hub, Follower(cast(Client, hub), [parse_setting(text) for text in settings])


def test_steps_are_returned_once_and_kept_across_hubs() -> None:
    hub, follower = follow()
    assert follower.poll(0.0) == []
    hub.start("a")
    hub.close_step(0)
    hub.close_step(1)
    assert [step.step for step in follower.poll(0.0)] == [0, 1]
    assert follower.poll(0.0) == []
    hub.start("b")
    hub.close_step(4)
    assert [step.step for step in follower.poll(0.0)] == [4]
    assert follower.missing(6) == [2, 3, 5]
    picture = follower.picture()
    assert picture is not None
    assert list(picture.steps) == [0, 1, 4]


def test_a_setting_is_sent_when_its_step_closes_and_once() -> None:
    hub, follower = follow("2:prefix_caching=off")
    hub.start("a")
    hub.close_step(1)
    follower.poll(0.0)
    assert hub.questions == []
    hub.close_step(2)
    follower.poll(0.0)
    follower.poll(0.0)
    [question] = hub.questions
    assert (question.flag, question.value, question.engines) == ("prefix_caching", "off", None)


def test_a_setting_is_settled_when_every_engine_has_closed_it() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    follower.poll(0.0)
    hub.answer(command="c1")
    hub.show("accepted", "e0")
    hub.show("applied", "e1")
    follower.poll(0.0)
    assert follower.unsettled() == ["0:prefix_caching=off"]
    hub.show("applied", "e0")
    follower.poll(0.0)
    assert follower.unsettled() == []
    assert follower.failures() == []


def test_a_refusal_is_reported_with_engine_and_reason() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    follower.poll(0.0)
    hub.answer(command="c1")
    hub.show("refused", reason="started without it")
    follower.poll(0.0)
    assert follower.unsettled() == []
    assert follower.failures() == ["--set 0:prefix_caching=off: refused on e0: started without it"]


def test_a_setting_that_the_hub_rejects_is_a_failure() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    follower.poll(0.0)
    hub.answer(error="no live engine")
    follower.poll(0.0)
    follower.poll(0.0)
    assert len(hub.questions) == 1
    assert follower.failures() == ["--set 0:prefix_caching=off: no live engine"]


def test_an_unsent_setting_is_retried() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    hub.reachable = False
    follower.poll(0.0)
    assert hub.questions == []
    assert follower.failures() == ["--set 0:prefix_caching=off: no outcome was reported"]
    hub.reachable = True
    follower.poll(0.0)
    assert len(hub.questions) == 1


def test_an_unanswered_setting_is_sent_to_the_next_hub_and_an_accepted_one_is_not() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    follower.poll(0.0)
    hub.start("b")
    follower.poll(0.0)
    assert len(hub.questions) == 2
    hub.answer(command="c1")
    follower.poll(0.0)
    hub.start("c")
    follower.poll(0.0)
    assert len(hub.questions) == 2


def test_nothing_is_sent_while_the_hub_is_lost() -> None:
    hub, follower = follow("0:prefix_caching=off")
    hub.start("a")
    hub.close_step(0)
    hub.state = "lost"
    follower.poll(0.0)
    assert hub.questions == []
