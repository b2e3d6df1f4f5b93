"""Two data-parallel ranks of a real engine: each is an engine of its own, and both are switched under load."""

from __future__ import annotations

import pytest

from tests.harness import HubStandIn, wait_for
from tests.live_engine import ENVIRONMENT, LiveEngine, result
from tests.switchboard import check_equal, prompt

pytestmark = pytest.mark.engine

RANKS = ("e0/dp0", "e0/dp1")
REQUESTS = 72
TOKENS = 480
SWITCHES = (
    ("async_scheduling", "off", "depth 1"),
    ("async_scheduling", "off", "strict"),
    ("async_scheduling", "on", ""),
    ("prefix_caching", "off", ""),
    ("logprobs_mode", "processed", ""),
    ("prefix_caching", "on", ""),
)


def test_each_data_parallel_rank_is_an_engine_of_its_own_and_keeps_its_requests_through_every_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with HubStandIn() as hub:
        monkeypatch.setenv("RLTOP_HUB", str(hub.rundir.path))
        monkeypatch.setenv("RLTOP_ENGINE", "e0")
        engine = LiveEngine(data_parallel_size=len(RANKS))
        try:
            wait_for(lambda: all(hub.knows(rank) for rank in RANKS), "both ranks register")
            names = [f"r{i}" for i in range(REQUESTS)]
            warm = [engine.generate(f"warm{i}", prompt(i), 20, seed=None) for i in range(16)]
            for work in warm:
                result(work)
            # Without seeds: strict preempts, and on the CPU vLLM can't recompute a seeded request in chunks.
            running = [engine.generate(name, prompt(i), TOKENS, seed=None) for i, name in enumerate(names)]
            engine.wait_running(names, 1)
            in_flight = []
            for number, (flag, value, form) in enumerate(SWITCHES):
                for rank in RANKS:
                    hub.command(rank, flag, value, f"{number}@{rank}", strict=form == "strict")
                for rank in RANKS:
                    update = hub.closed(f"{number}@{rank}")
                    assert (update.engine, update.state) == (rank, "applied"), update
                    assert (update.new, update.detail, update.lost_requests) == (value, form, 0)
                    in_flight.append(update.in_flight or 0)
            assert min(in_flight) >= REQUESTS // len(RANKS) // 2, in_flight
            for name, work in zip(names, running, strict=True):
                assert check_equal(hub, name, result(work)).size == TOKENS
            assert {state.engine for state in hub.states() if state.generated_tokens} == set(RANKS)
        finally:
            engine.close()
        wait_for(lambda: {bye.source for bye in hub.byes} == set(RANKS), "both ranks say goodbye")
        assert all(record.faults == {} for record in hub.health())
