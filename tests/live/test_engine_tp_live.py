"""A real engine of two ranks, its tensors cut between them or its layers: every switch under load, and its digests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rltop.collectors.contract.flags import BY_NAME
from tests.support.harness import HubStandIn, wait_for
from tests.support.live_engine import ENVIRONMENT, ON_CPU, LiveEngine
from tests.support.parallel import SIZES, update_and_compare
from tests.support.switchboard import AT_LEAST, ENGINE, Walk, fresh

pytestmark = [pytest.mark.engine if ON_CPU else pytest.mark.gpu, pytest.mark.timeout(420), pytest.mark.own_engine]

TIMES = 4
"""Switches of each flag: two processes exchange every layer's sums by sockets here."""

COMPILED = {"enforce_eager": False, "compilation_config": {"mode": 3, "backend": "eager"}, "async_scheduling": False}
"""A pipeline on the CPU: eager, vLLM 0.32 never makes the tensors that a stage receives; V1's runner is not async."""


@contextmanager
def booted(monkeypatch: pytest.MonkeyPatch, **launch: Any) -> Iterator[tuple[LiveEngine, HubStandIn]]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with HubStandIn() as hub:
        monkeypatch.setenv("RLTOP_HUB", str(hub.rundir.path))
        monkeypatch.setenv("RLTOP_ENGINE", ENGINE)
        engine = LiveEngine(**launch)
        try:
            yield engine, hub
        finally:
            engine.close()
        wait_for(lambda: [bye for bye in hub.byes if bye.source == ENGINE], "the collector says goodbye")
        assert all(record.faults == {} for record in hub.health())


def check_weights(engine: LiveEngine, hub: HubStandIn, folder: Path, ranks: int) -> None:
    right, wrong = update_and_compare(engine, hub, ENGINE, folder)
    assert right.verdict == "agree", right
    (note,) = [note for note in right.notes if "match the trainer's of this version" in note]
    same, total = (int(word) for word in note.removeprefix(f"{ENGINE}: ").split(" ")[:3:2])
    assert same == total >= 3 * ranks
    assert wrong.verdict == "not_the_trainer", wrong
    assert "model.layers.1.mlp.down_proj.weight" in wrong.text


def test_tensor_parallel_ranks_are_switched_alike_under_load_and_hold_the_trainers_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with booted(monkeypatch, **SIZES["tp2"]) as (engine, hub):
        rows = Walk(engine, hub, times=TIMES).run()
        assert {row.flag for row in rows} == set(BY_NAME)
        assert min(count for row in rows for count in row.in_flight) >= AT_LEAST
        check_weights(engine, hub, tmp_path / "weights", 2)


def test_of_a_pipeline_the_last_stage_alone_is_read_and_written_where_others_have_no_such_object(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with booted(monkeypatch, **SIZES["pp2"], **(COMPILED if ON_CPU else {})) as (engine, hub):
        state = fresh(hub)
        assert {state.flags[name].value for name in ("logprobs_mode", "lm_head_fp32")} == {"raw", "off"}
        flags = tuple(name for name, flag in state.flags.items() if flag.switchable)
        assert set(BY_NAME) - set(flags) == ({"async_scheduling"} if ON_CPU else set())
        rows = Walk(engine, hub, flags, strict=False, times=TIMES).run()
        assert {row.flag for row in rows} == set(flags)
        assert min(count for row in rows for count in row.in_flight) >= AT_LEAST
        check_weights(engine, hub, tmp_path / "weights", 2)
