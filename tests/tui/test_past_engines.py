"""At an earlier step every view shows that step; values that were not stored are '-', never 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rltop.backend.api import Answer, AskPast, PastState, Snapshot, change_key, downsample
from rltop.backend.client.replay import SAMPLE, Replay
from rltop.backend.store.read import Reader
from rltop.tui.app import RltopApp
from rltop.tui.model.changes import Entry
from rltop.tui.model.events import last_before
from rltop.tui.model.fleet_table import Row, at_step, flags_at
from rltop.tui.model.past_engines import TIMEOUT_S, PastEngines
from rltop.tui.widgets.table import Table
from tests.support import pictures, stored
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, screen_text, settle

pytestmark = pytest.mark.usefixtures("utc")

SMALL, MIDDLE = (80, 24), (120, 40)


def asked(client: HeldClient) -> list[AskPast]:
    return [question for question in client.asked if isinstance(question, AskPast)]


def then(step: int) -> PastState:
    """What a store has of a step of ``pictures.healthy``: caching was on up to step 10."""
    kept = {
        name: pictures.engine(name, flags=pictures.flags("on" if step <= 10 else "off"), tokens_per_s=100.0 + step)
        for name in ("e0", "e1")
    }
    return PastState(pictures.step(step), kept)


def fleet(app: RltopApp) -> dict[str, list[str]]:
    """The lines of the table of engines, cell by cell, by engine."""
    lines = [re.sub("[⟦⟧●◌✖≠◆]", " ", line).split() for line in screen_text(app).splitlines()]
    return {line[0]: line for line in lines if line and re.fullmatch(r"e\d+", line[0])}


async def test_the_fleet_at_an_earlier_step_is_as_stored() -> None:
    client = HeldClient(pictures.healthy())
    async with dashboard(client, MIDDLE) as (app, pilot):
        assert fleet(app)["e0"][10] == "pc-"
        await pilot.press("number_sign", "5", "enter")
        await settle(app, pilot)
        (question,) = asked(client)
        assert question.step == 5
        client.answers[question.id] = Answer(question.id, past=then(5))
        await settle(app, pilot)
        gap = pictures.step(5).engines["e0"]["logp_abs_diff_mean"]
        assert gap is not None
        assert fleet(app)["e0"][:3] == ["e0", "105", "16"]
        assert fleet(app)["e0"][8:11:2] == [f"{gap:.4f}", "default"]
        await pilot.press("end")
        await settle(app, pilot)
        assert fleet(app)["e0"][1] == "312"


async def test_without_a_store_only_the_values_of_the_step_are_known() -> None:
    client = HeldClient(pictures.healthy())
    async with dashboard(client, MIDDLE) as (app, pilot):
        await pilot.press("number_sign", "5", "enter")
        await settle(app, pilot)
        (question,) = asked(client)
        client.answers[question.id] = Answer(question.id, error="only a store has engines of the past")
        await settle(app, pilot)
        line = fleet(app)["e0"]
        assert line[1:5] == ["-"] * 4
        assert line[5] == "62%"
        assert line[10] == "default"
        await pilot.press("enter")
        assert any("the facts of e0 at this step are not stored" in note.message for note in app._notifications)
        assert asked(client) == [question]


async def test_unknown_engine_values_of_an_old_step_are_never_zero() -> None:
    shown = pictures.healthy()
    shown.steps = {n: downsample.headline(step) if n < 20 else step for n, step in shown.steps.items()}
    shown.changes = {}
    async with dashboard(HeldClient(shown), MIDDLE) as (app, pilot):
        await pilot.press("home")
        await settle(app, pilot)
        assert fleet(app)["e0"][1:11] == ["-"] * 10
        client = app.client
        assert isinstance(client, HeldClient)
        (question,) = asked(client)
        client.answers[question.id] = Answer(question.id, past=then(0))
        await settle(app, pilot)
        assert fleet(app)["e0"][8] != "-"


def test_without_a_store_flags_follow_from_the_switches() -> None:
    changes = [
        pictures.applied("e0", "prefix_caching", "off", command="c1", at_step=10),
        pictures.applied("e0", "prefix_caching", "on", command="c2", at_step=20),
        pictures.applied("e0", "logprobs_mode", "raw", command="c3", at_step=30, old="processed"),
    ]
    at = [flags_at(changes, pictures.step(n).closed) for n in (5, 15, 25, 35)]
    assert [flags["prefix_caching"] for flags in at] == ["on", "off", "on", "on"]
    assert [flags["logprobs_mode"] for flags in at] == ["processed"] * 3 + ["raw"]


def test_an_engine_that_connected_later_is_not_listed_if_the_store_knows_the_fleet() -> None:
    shown = pictures.healthy(engines=3)
    step = msgspec.structs.replace(pictures.step(5), engines={})
    assert [row.id for row in at_step(shown, step, None)] == ["e0", "e1", "e2"]
    assert [row.id for row in at_step(shown, step, then(5))] == ["e0", "e1"]


def test_a_key_held_down_has_one_question_in_flight() -> None:
    shown, pasts = pictures.healthy(), PastEngines()
    first = pasts.question(shown, 30, 0.0)
    assert first is not None
    assert [pasts.question(shown, step, 0.1) for step in (29, 28, 27)] == [None] * 3
    assert pasts.take_answers({first.id: Answer(first.id, past=then(30))})
    second = pasts.question(shown, 27, 0.2)
    assert second is not None
    assert second.step == 27
    assert pasts.question(shown, 26, 0.2 + TIMEOUT_S) is None
    third = pasts.question(shown, 26, 0.3 + TIMEOUT_S)
    assert third is not None
    assert not pasts.take_answers({second.id: Answer(second.id, past=then(27))})
    assert pasts.cached(30) == then(30)
    pasts.question(msgspec.structs.replace(shown, epoch="another"), None, 9.0)
    assert pasts.cached(30) is None


async def test_events_and_the_log_of_changes_scroll_to_the_time_of_the_step() -> None:
    shown = pictures.healthy()
    shown.events = [pictures.event(n, f"thing {n}", at_step=n) for n in range(40)]
    later = pictures.applied("e0", "prefix_caching", "on", command="c2", at_step=30)
    shown.changes |= {change_key(later): later}
    client = HeldClient(shown)
    async with dashboard(client, MIDDLE) as (app, pilot):
        await pilot.press("number_sign", "2", "0", "enter")
        await settle(app, pilot)
        lines = screen_text(app).splitlines()
        head = next(at for at, line in enumerate(lines) if line.startswith("time"))
        assert lines[head + 1].endswith("thing 19")
        shown.events.append(pictures.event(40, "thing 40", at_step=40))
        client.changed = True
        await settle(app, pilot)
        assert screen_text(app).splitlines()[head + 1].endswith("thing 19")
        await pilot.press("at")
        await settle(app, pilot)
        journal: Table[Entry] = app.query_one("#journal", Table)
        assert [entry.change.command for entry in (journal.selected,) if entry] == ["c1"]
        await pilot.press("end")
        await settle(app, pilot)
        assert [entry.change.command for entry in (journal.selected,) if entry] == ["c2"]
        await pilot.press("1")
        await settle(app, pilot)
        assert screen_text(app).splitlines()[head + 1].endswith("thing 40")


def test_steps_closed_at_the_same_time_are_ordered_by_number() -> None:
    events = [pictures.event(n, "thing", at_step=n) for n in range(9, -1, -1)]
    late = max(event.time for event in events)
    assert last_before(events, 4, late) is events[6]
    assert last_before(events, 4, events[8].time) is events[8]
    assert last_before(events, 0, late) is events[-1]
    assert last_before(events, None, late) is None
    assert last_before([], 3, late) is None


@pytest.mark.parametrize("keys", [("space",), ("left_square_bracket",), ("space", "left_square_bracket")])
async def test_control_shows_the_run_now_and_says_so(keys: tuple[str, ...]) -> None:
    shown = pictures.switched()
    client = HeldClient(shown)
    async with dashboard(client, MIDDLE, control=True) as (app, pilot):
        await pilot.press(*keys, "4")
        await settle(app, pilot)
        assert "this view is live" in screen_text(app)
        done = pictures.applied("e0", "prefix_caching", "off", command="c3", at_step=39, engine_step=777)
        shown.changes[change_key(done)] = done
        client.changed = True
        await settle(app, pilot)
        assert " 777 " in screen_text(app)
        await pilot.press("1")
        await settle(app, pilot)
        assert "this view is live" not in screen_text(app)


@pytest.fixture
def replay() -> Iterator[Replay]:
    replay = Replay(Reader(SAMPLE), speed=float("inf"))
    yield replay
    replay.close()


async def test_a_replay_has_the_fleet_of_every_step(replay: Replay) -> None:
    app = RltopApp(replay, "sort")
    async with app.run_test(size=MIDDLE) as pilot:
        await settle(app, pilot)
        flags = []
        for _ in range(8):
            await pilot.press("N")
            await settle(app, pilot)
            table: Table[Row] = app.query_one("#overview #fleet", Table)
            assert all(row.engine is not None and row.engine.health == "live" for row in table.items)
            flags.append((app.state.viewport.cursor, fleet(app)["e0"][10]))
    assert flags == [
        (55, "default"), (47, "default"), (35, "lm=r"), (33, "lm=r"),
        (27, "default"), (21, "as-"), (17, "default"), (9, "pc-"),
    ]  # fmt: skip


def test_a_store_restores_the_run_at_every_step(tmp_path: Path) -> None:
    made = list(stored.frames(30))
    store = stored.store(tmp_path, made)
    with Reader(store) as reader:
        shown = Snapshot("run", "hub-1", 0, made[0].time, made[0].time)
        for frame in made:
            shown.apply(frame)
            (step,) = frame.steps
            past = reader.past(step.step)
            assert stored.bits(past.step) == stored.bits(step)
            assert stored.bits(past.engines) == stored.bits(shown.engines)
        with pytest.raises(ValueError, match="step 30 is not stored"):
            reader.past(30)
        with pytest.raises(ValueError, match="step 20 is not stored"):
            reader.past(20, until=5)


@pytest.mark.parametrize(
    ("name", "size", "keys"),
    [
        ("reading-fleet-80", SMALL, ("left_curly_bracket",)),
        ("reading-fleet-120", MIDDLE, ("N",)),
        ("zoomed-axis-120", MIDDLE, ("home", "plus", "plus")),
        ("reading-control-120", MIDDLE, ("N", "4")),
    ],
)
async def test_screen(name: str, size: tuple[int, int], keys: tuple[str, ...]) -> None:
    client = HeldClient(pictures.healthy())
    assert client.view is not None
    client.view.events += [pictures.event(40, "e1 is silent", "warn", at_step=25, on="e1")]
    client.view.events[-1] = msgspec.structs.replace(client.view.events[-1], kind="engine")
    async with dashboard(client, size) as (app, pilot):
        await pilot.press(*keys)
        await settle(app, pilot)
        for question in asked(client):
            client.answers[question.id] = Answer(question.id, past=then(question.step))
        await settle(app, pilot)
        assert_as_saved(app, name)
