"""A taped run, played again, comes to the same as it did live, to the bit; and the split of the bench's runs."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from bench.fault_runs import HEALTHY_STEPS, RUNS, UNRECORDED, Run
from rltop.backend import api
from rltop.backend.demo.faults import BY_NAME, FAULTS
from rltop.backend.demo.options import DemoOptions
from rltop.collectors.contract import wire
from rltop.tui.cli.main import demo
from tests.support.fault_recordings import load, replay, seed_of
from tests.support.hub_core import Hub
from tests.support.tapes import calls, digest, played, taping
from tests.support.tapes import replay as replay_tape

RECORDED = "fault-lying-replica"


def taped(path: Path) -> Hub:
    """A recorded run, sent to a hub whose core writes a tape; with a viewer, a registration and malformed messages."""
    with path.open("wb") as file:
        hub = Hub.of(taping(file.write)("run", "epoch", 1000.0), 1000.0)
        hub.say("e0", wire.Register(wire.PROTO, "e0", hub.source("e0").epoch, "engine"))
        for engine in ("e0", "e1"):
            hub.engine(engine)
        hub.ask(api.AskSet("q", "prefix_caching", "off", who="me", why="to see it played again"))
        rows = [row for row in load(RECORDED) if row.step < 10]
        replay(rows, seed_of(RECORDED), hub)
        hub.state.data([b"nonsense"], hub.now)
        hub.state.note(hub.now, "warn", "clock", "the clock jumped")
        hub.later(30.0)
    return hub


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, Path]:
    path = tmp_path_factory.mktemp("tape") / "tape"
    return taped(path), path


def test_a_replay_shows_bitwise_equal_snapshots(live: tuple[Hub, Path]) -> None:
    hub, path = live
    again = replay_tape(path)
    assert len(again.steps) == 4
    assert digest(again.picture) == digest(hub.picture)
    assert api.encode(api.Answer("q", snapshot=again.picture)) == api.encode(api.Answer("q", snapshot=hub.picture))
    assert again.now == hub.now


def test_a_changed_message_changes_the_digest(live: tuple[Hub, Path], tmp_path: Path) -> None:
    hub, path = live
    tape = path.read_bytes()
    other = tmp_path / "tape"
    frame = next(call[1][0][-1] for call in calls(path) if call[0] == "data" and len(call[1][0][-1]) > 500)
    assert tape.count(frame) == 1
    other.write_bytes(tape.replace(frame, frame[:-5] + bytes([frame[-5] ^ 1]) + frame[-4:]))
    assert digest(replay_tape(other).picture) != digest(hub.picture)


def test_steps_are_seen_when_viewers_saw_them(live: tuple[Hub, Path]) -> None:
    _, path = live
    seen = [(numbers, len(hub.steps)) for hub, numbers in played(path)]
    assert [step for numbers, _ in seen for step in numbers] == [6, 7, 8, 9]
    assert [known for _, known in seen] == [1, 2, 3, 4]


@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_tape_contains_the_calls_before_the_cut(
    live: tuple[Hub, Path], tmp_path: Path, packed: bool
) -> None:
    _, path = live
    whole = list(calls(path))
    half = path.read_bytes()[: path.stat().st_size // 2]
    cut = tmp_path / ("tape.xz" if packed else "tape")
    cut.write_bytes(lzma.compress(half) if packed else half)
    found = list(calls(cut))
    assert 1 < len(found) < len(whole)
    assert found == whole[: len(found)]


def test_the_split_is_by_runs_and_no_seed_is_used_twice() -> None:
    assert len({run.seed for run in RUNS}) == len({run.name for run in RUNS}) == len(RUNS)
    for name in {"healthy", *(fault.name for fault in FAULTS)} - UNRECORDED:
        assert {run.part for run in RUNS if run.fault == name} >= {"tune", "score"}, name
    for part in ("tune", "score"):
        healthy = [run for run in RUNS if run.part == part and run.fault == "healthy"]
        assert len(healthy) * HEALTHY_STEPS >= 500
        assert len({(run.objective, run.engines, run.temperature) for run in healthy}) == 8


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_run_of_the_bench_can_be_asked_for_and_shows_its_fault_long_enough(run: Run) -> None:
    context = demo.make_context("demo", list(run.arguments))
    told = {key: value for key, value in context.params.items() if key not in ("headless", "settings", "fault")}
    options = DemoOptions(**told, fault=context.params["fault"] or "")
    known = BY_NAME["" if run.fault == "healthy" else run.fault]
    assert options.injected.name == known.name
    assert run.fault == "healthy" or run.steps - (run.at + known.first) >= 12
    assert run.part == ("tune" if run.seed < 200 else "score" if run.seed < 600 else "unseen")
