"""Two data-parallel ranks of a real engine: each is an engine of its own, and both are switched under load."""

from __future__ import annotations

import pytest

from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ENVIRONMENT, LiveEngine
from tests.support.parallel import SIZES, kill_mid_switch, switch_together
from tests.support.receiver import run_directory

pytestmark = [pytest.mark.engine, pytest.mark.own_engine]

RANKS = ("e0/dp0", "e0/dp1")
IN_FLIGHT = 18
"""Of each rank at every switch: vLLM spreads requests by counts that are up to 100 ms old."""


def test_each_data_parallel_rank_is_an_engine_of_its_own_and_keeps_its_requests_through_every_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with HubStandIn() as hub:
        monkeypatch.setenv("RLTOP_HUB", str(hub.rundir.path))
        monkeypatch.setenv("RLTOP_ENGINE", "e0")
        engine = LiveEngine(**SIZES["dp2"])
        try:
            wait_for(lambda: all(hub.knows(rank) for rank in RANKS), "both ranks register")
            updates = switch_together(engine, hub, RANKS)
            in_flight = [update.in_flight or 0 for update in updates]
            assert min(in_flight) >= IN_FLIGHT, in_flight
            assert {state.engine for state in hub.states() if state.generated_tokens} == set(RANKS)
        finally:
            engine.close()
        wait_for(lambda: {bye.source for bye in hub.byes} == set(RANKS), "both ranks say goodbye")
        assert all(record.faults == {} for record in hub.health())


def test_a_rank_that_dies_in_the_middle_of_a_switch_holds_up_nobody_and_the_log_says_what_each_came_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with run_directory() as rundir:
        monkeypatch.setenv("RLTOP_HUB", str(rundir.path))
        monkeypatch.setenv("RLTOP_ENGINE", "e0")
        engine = LiveEngine(**SIZES["dp2"])
        try:
            found = kill_mid_switch(engine, rundir, RANKS)
        finally:
            engine.close()
    assert found.states == {RANKS[0]: "applied", RANKS[1]: "timed_out"}, found
    assert found.bad_lines == 0
    assert sorted(found.events) == sorted(
        [f"{rank} requested" for rank in RANKS] + [f"{RANKS[0]} applied", f"{RANKS[1]} timed_out", "all half_switched"]
    ), found
