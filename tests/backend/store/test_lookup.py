"""Sequences and shapes of steps that only the store has: of a killed hub, or evicted from memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rltop.backend import api
from rltop.backend.client.live import Client, CommandError
from rltop.backend.gaps.sampling import KINDS
from rltop.backend.store.lookup import MAX_WAITING, StoreLookup
from rltop.backend.store.read import NAME
from rltop.collectors.contract.rundir import RunDir
from tests.backend.hub.test_hub_process import Collector, close_step, collector, end, see, start_hub
from tests.backend.hub.test_steps import World
from tests.support import stored
from tests.support.harness import PATIENT_S
from tests.support.hub_core import Hub
from tests.support.hub_messages import rollouts, sequences
from tests.support.receiver import run_directory, wait_until


@pytest.fixture
def rundir() -> Iterator[RunDir]:
    with run_directory() as found:
        yield found


@contextlib.contextmanager
def hub_of(rundir: RunDir) -> Iterator[Client]:
    """A hub in a process of its own, killed at the end."""
    process = start_hub(rundir)
    try:
        with Client(rundir) as client:
            yield client
    finally:
        end(process)


def play(trainer: Collector, e0: Collector, step: int) -> None:
    world = World(5 + step)
    e0.send(*rollouts([one for one in world.written if one.engine == "e0"]))
    body, arrays = sequences(world.trained, policy_version=world.policy)
    trainer.send(msgspec.structs.replace(body, step=step), arrays)
    close_step(trainer, step)


def told(client: Client, step: int) -> list[bytes]:
    """All that is kept of a step, as bytes, but for which other steps there are."""
    found = [
        client.samples(api.AskSamples(api.new_id(), step, kind, engine)) for kind in KINDS for engine in (None, "e0")
    ]
    assert all(samples.sequences or samples.tokens for samples in found)
    plain = [msgspec.structs.replace(samples, steps=[]) for samples in found]
    return [msgspec.msgpack.encode(one) for one in (*plain, shape(client, step, step))]


def shape(client: Client, first: int | None, last: int | None) -> object:
    answer = client._answer(api.AskMismatch("m", first, last))
    assert answer.mismatch is not None, answer.error
    return answer.mismatch


def test_the_next_hub_answers_about_a_killed_hubs_steps(rundir: RunDir) -> None:
    with collector(rundir, "trainer/0") as trainer, collector(rundir, "e0") as e0:
        with hub_of(rundir) as client:
            for step in range(2):
                play(trainer, e0, step)
            see(client, lambda v: 1 in v.steps)
            before = [told(client, step) for step in range(2)]
            both = shape(client, None, 1)
        with hub_of(rundir) as client:
            see(client, lambda v: 1 in v.steps)
            assert [told(client, step) for step in range(2)] == before
            assert shape(client, None, 1) == both
            assert (
                client.samples(api.AskSamples(api.new_id(), kind="worst")).step == 1
            )  # of no step of its own: the last that is stored
            see(client, lambda v: v.trainer.health == "live")
            play(trainer, e0, 2)
            see(client, lambda v: 2 in v.steps)
            assert told(client, 0) == before[0]
            assert client.samples(api.AskSamples(api.new_id(), kind="worst")).step == 2
            whole = client._answer(api.AskMismatch("m", None, None)).mismatch
            assert whole is not None and (whole.first, whole.last, whole.steps) == (0, 2, 3)
            assert whole.profiles[0].spreads["e0"] != [None] * len(whole.profiles[0].labels)
            with pytest.raises(CommandError, match=r"no sample of step 9 is stored; there are 3 steps from 0 to 2"):
                client.samples(api.AskSamples(api.new_id(), 9, "worst"))


def test_a_hub_without_a_store_answers_from_memory(tmp_path: Path) -> None:
    answers: list[tuple[bytes, api.Answer]] = []
    lookup = StoreLookup(tmp_path / NAME, lambda viewer, answer: answers.append((viewer, answer)))
    lookup.end()  # never asked: nothing to end
    lookup.put(b"a", api.AskSamples("q", 3, "worst"), api.Answer("q", error="not in memory"))
    wait_until(lambda: answers)
    lookup.end()
    assert answers == [(b"a", api.Answer("q", error="not in memory"))]
    assert not lookup.is_alive()


def test_questions_beyond_the_queue_bound_are_answered_at_once(tmp_path: Path) -> None:
    answers: list[bytes] = []
    go = threading.Event()

    def reply(viewer: bytes, _: api.Answer) -> None:
        answers.append(viewer)
        if viewer == b"slow":
            assert go.wait(PATIENT_S)

    lookup = StoreLookup(tmp_path / NAME, reply)
    question, otherwise = api.AskMismatch("q"), api.Answer("q", error="not in memory")
    lookup.put(b"slow", question, otherwise)
    wait_until(lambda: answers == [b"slow"])
    for _ in range(MAX_WAITING):
        lookup.put(b"waits", question, otherwise)
    lookup.put(b"too many", question, otherwise)
    assert answers == [b"slow", b"too many"]
    go.set()
    lookup.end()
    assert not lookup.is_alive()


def test_memory_answers_first_and_the_store_the_rest() -> None:
    first = Hub("hub-1")
    world = World(3)
    world.play(first)
    first.later(10.0)
    assert asked(first, api.AskSamples("q", 0, "worst")) == "Reply"
    assert asked(first, api.AskSamples("q", 1, "worst")) == "AnswerFromStore"
    assert asked(first, api.AskMismatch("q")) == "Reply"
    second = Hub("hub-2", first.picture)
    assert asked(second, api.AskSamples("q", None, "worst")) == "AnswerFromStore"
    assert asked(second, api.AskMismatch("q", 0, 5)) == "AnswerFromStore"
    assert asked(second, api.AskMismatch("q", 1, 5)) == "Reply"
    assert asked(first, api.AskPast("q", 0)) == "AnswerFromStore"


def test_the_store_answers_with_the_engines_at_a_step(tmp_path: Path) -> None:
    answers: list[api.Answer] = []
    lookup = StoreLookup(stored.store(tmp_path, stored.frames(9)), lambda _, answer: answers.append(answer))
    otherwise = api.Answer("q", error="not in memory")
    for step in (4, 9):
        lookup.put(b"a", api.AskPast("q", step), otherwise)
    wait_until(lambda: len(answers) == 2)
    lookup.end()
    found, none = answers
    assert found.past is not None
    assert (found.past.step.step, set(found.past.engines)) == (4, set(stored.ENGINES))
    assert none.error == "step 9 is not stored"


def asked(hub: Hub, question: api.Question) -> str:
    (effect,) = hub.state.ask(b"viewer", api.encode(question), hub.now)
    return type(effect).__name__
