"""Rollouts are old after UNUSED_STEPS steps that trained on later ones, in whatever order the hub received both."""

from __future__ import annotations

import random
from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.join.ageing import UNUSED_STEPS, RolloutAgeing
from rltop.backend.join.records import Record
from rltop.collectors.contract import wire

ENGINES = ("e0", "e1")


def written(engine: str, number: int) -> Record:
    about = wire.Rollout(f"{number}", 1, 1, "stop", [], "engine", has_logprobs=True)
    return Record(engine, about, b"", 1, np.array([number], "<i4"), np.array([-1], "<f4"), "life", seq=number)


def arriving(ageing: RolloutAgeing, engine: str, count: int) -> list[Record]:
    records = [written(engine, number) for number in range(count)]
    for record in records:
        ageing.add(record)
    return records


def numbers(records: list[Record], engine: str) -> list[int]:
    return [record.seq for record in records if record.engine == engine]


@given(seed=st.integers(0, 1000), lag=st.integers(0, UNUSED_STEPS - 1), steps=st.integers(1, 30))
def test_old_rollouts_do_not_depend_on_the_order_of_arrival(seed: int, lag: int, steps: int) -> None:
    """Each step trains on the rollout that each engine wrote ``lag`` steps before."""
    rng = random.Random(seed)
    ageing = RolloutAgeing()
    coming = {engine: deque(range(steps + lag)) for engine in ENGINES}
    here: dict[tuple[str, int], Record] = {}
    for step in range(steps):
        for engine, rest in coming.items():
            for _ in range(max(step + 1 - (steps + lag - len(rest)), rng.randrange(len(rest) + 1))):
                number = rest.popleft()
                here[engine, number] = written(engine, number)
                ageing.add(here[engine, number])
        old = list(ageing.step_done([here[engine, step] for engine in ENGINES], in_turn=rng.random() < 0.5))
        passed = step + 1 - UNUSED_STEPS
        assert sorted(record.seq for record in old) == ([passed - 1] * len(ENGINES) if passed > 0 else [])


def test_a_step_that_reuses_old_rollouts_ages_nothing() -> None:
    ageing = RolloutAgeing()
    records = arriving(ageing, "e0", 20)
    for _ in range(3 * UNUSED_STEPS):
        assert not list(ageing.step_done(records[:1], in_turn=True))


def test_a_rollout_of_an_unused_process_is_old_unused_steps_after_its_arrival() -> None:
    ageing = RolloutAgeing()
    used = arriving(ageing, "e0", 40)
    idle = arriving(ageing, "e1", 3)
    told = [numbers(list(ageing.step_done([used[step]], in_turn=True)), "e1") for step in range(UNUSED_STEPS + 3)]
    assert told == [[]] * UNUSED_STEPS + [[0, 1, 2], [], []]
    late = written("e1", 3)
    ageing.add(late)
    told = [numbers(list(ageing.step_done([used[20 + step]], in_turn=True)), "e1") for step in range(UNUSED_STEPS + 3)]
    assert told == [[]] * UNUSED_STEPS + [[3], [], []]
    assert idle


def test_steps_processed_out_of_order_do_not_age_unused_processes() -> None:
    ageing = RolloutAgeing()
    arriving(ageing, "e0", 3)
    for _ in range(3 * UNUSED_STEPS):
        assert not list(ageing.step_done([], in_turn=False))


def test_a_finished_process_is_removed() -> None:
    ageing = RolloutAgeing()
    records = arriving(ageing, "e0", 2)
    for _ in range(2 * UNUSED_STEPS):
        list(ageing.step_done(records[1:], in_turn=True))
    for _ in range(UNUSED_STEPS + 1):
        list(ageing.step_done([], in_turn=True))
    assert not ageing._processes


def test_an_evicted_rollout_is_not_reported_as_old() -> None:
    ageing = RolloutAgeing()
    records = arriving(ageing, "e0", 3)
    assert ageing.remove(records[0])
    assert not ageing.remove(records[0])
    old = [record for _ in range(UNUSED_STEPS + 1) for record in ageing.step_done([], in_turn=True)]
    assert old == records[1:]
    assert not ageing.remove(records[1])
