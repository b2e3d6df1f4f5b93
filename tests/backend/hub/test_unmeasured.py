"""Each step that nobody measured is told once, and none that somebody did or will."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.steps.unmeasured import LOST, NO_HUB, Holes


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_every_missing_step_is_reported_once_in_any_order_of_closes(comes: list[bool], width: int, seed: int) -> None:
    rng, holes = random.Random(seed), Holes(9)
    holes.messages_lost()
    waiting = [10 + place for place, there in enumerate(comes) if there]
    expected = {10 + place for place, there in enumerate(comes) if not there and 10 + place < max(waiting, default=0)}
    told: list[int] = []
    still_open: list[int] = []
    while waiting or still_open:
        while waiting and len(still_open) < width:  # they begin in order, and some are open at a time
            still_open.append(waiting.pop(0))
        step = still_open.pop(rng.randrange(len(still_open)))
        for first, last, _ in holes.step_done(step, still_open):
            told += range(first, last + 1)
    assert sorted(told) == sorted(expected)
    assert len(told) == len(set(told))


def test_steps_may_be_numbered_freely_while_nothing_is_lost() -> None:
    holes = Holes()
    assert [holes.step_done(step, []) for step in (3, 10, 20)] == [[], [], []]
    holes.messages_lost()
    assert holes.step_done(22, []) == [(21, 21, LOST)]
    holes.new_epoch()
    assert holes.step_done(5, []) == []
    assert holes.step_done(9, []) == []


def test_the_first_step_of_a_new_hub_reports_the_time_without_a_hub() -> None:
    holes = Holes(4)
    assert holes.step_done(8, []) == [(5, 7, NO_HUB)]
    assert holes.step_done(10, []) == []
    assert Holes(4).step_done(8, [6]) == [(5, 5, NO_HUB)]
