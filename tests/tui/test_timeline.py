"""The marks of the timeline: switches, starts, losses, update trouble, gaps, alarms."""

from __future__ import annotations

import msgspec
import pytest

from rltop.backend.api import Event, Snapshot, change_key
from rltop.backend.api.alarm import Alarm
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import KINDS, first_step_after, markers, marks, marks_before, next_mark, updates
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle

EVENTS: tuple[tuple[str, str, str, str | None, str], ...] = (
    ("engine", "info", "e0 appeared", "e0", "↻e0"),
    ("engine", "warn", "e0 restarted", "e0", "↻e0"),
    ("engine", "info", "e0 is back", "e0", "↻e0"),
    ("engine", "warn", "e0 is silent", "e0", "✖e0"),
    ("engine", "info", "e0 said goodbye", "e0", "✖e0"),
    ("engine", "info", "e0 connected", "e0", "↻e0"),
    ("engine", "info", "e0 disconnected", "e0", "✖e0"),
    ("trainer", "warn", "trainer/0 restarted", None, "↻trainer"),
    ("hub", "info", "a new hub goes on from 12 stored steps", None, "↻hub"),
    ("skew", "warn", "live engines differ by 3 policy versions", None, "◇skew"),
    ("facts", "warn", "logprobs_mode: e0, e1 have raw", None, "≢facts"),
    ("gap", "warn", "steps 8 to 9 were not measured: there was no hub", None, "∅gap"),
    ("lost", "warn", "3 messages of e0 were lost on the way", None, "∅lost"),
)
"""Kind, severity, text and engine of an event as the hub emits it or an older store has it, and its mark."""


def run(*events: Event, steps: int = 20) -> tuple[Snapshot, StepColumns]:
    shown, found = (
        pictures.picture(steps={n: pictures.step(n) for n in range(steps)}, events=list(events)),
        StepColumns(),
    )
    found.update(shown.steps)
    return shown, found


def event(kind: str, severity: str, text: str, engine: str | None, step: int | None = 7) -> Event:
    return Event(1, pictures.START, severity, kind, text, step, engine)


@pytest.mark.parametrize(("kind", "severity", "text", "engine", "mark"), EVENTS)
def test_events_are_marked_by_kind(kind: str, severity: str, text: str, engine: str | None, mark: str) -> None:
    shown, history = run(event(kind, severity, text, engine))
    (found,) = marks(shown, history)
    assert found.text == mark
    (marker,) = markers([found], history, "step")
    assert marker.x == 7.5
    assert first_step_after(found, history) == 8


def test_no_line_crosses_steps_that_are_missing_or_incomplete() -> None:
    replace = msgspec.structs.replace
    steps = {n: pictures.step(n) for n in (0, 1, 2, 3, 4, 5, 6, 9, 10)}
    steps[2], steps[5] = replace(steps[2], partial=True), replace(steps[5], lost={"e0": 1})
    history = StepColumns()
    history.update(steps)
    assert history.linked().tolist() == [True, False, False, True, False, False, False, True]


def test_every_kind_of_mark_has_its_own_sign_and_is_tested() -> None:
    assert len({kind.sign for kind in KINDS}) == len(KINDS)
    assert {kind.sign for kind in KINDS} - {"▲", "◆"} == {mark[0] for *_, mark in EVENTS}


def test_the_start_of_a_run_and_plain_information_are_not_marked() -> None:
    shown, history = run(
        event("engine", "info", "e0 appeared", "e0", step=None),
        event("facts", "info", "logprobs_mode no longer differs from training", None),
        event("flag", "info", "prefix_caching off asked of all engines", None),
        event("join", "warn", "12 rows are not joined", None),
    )
    assert marks(shown, history) == ()
    assert marks(pictures.no_steps(), StepColumns()) == ()


def test_the_same_event_on_many_engines_is_one_mark() -> None:
    shown, history = run(*(event("engine", "warn", f"e{i} is silent", f"e{i}") for i in range(5)))
    assert [mark.text for mark in marks(shown, history)] == ["✖e0+4"]


def test_the_cursor_goes_from_mark_to_mark_in_both_directions() -> None:
    shown, history = run(*(event("engine", "warn", "e0 restarted", "e0", step=step) for step in (3, 9, 9, 14, 19)))
    one = pictures.applied("e0", "prefix_caching", "off", command="c", at_step=9)
    shown.changes = {change_key(one): one}
    found = marks(shown, history)
    seen, at = [], next_mark(found, history, None, forward=False)
    while at is not None:
        seen.append(at)
        at = next_mark(found, history, at, forward=False)
    assert seen == [15, 10, 4]
    forward = [next_mark(found, history, step, forward=True) for step in (0, 4, 10, 15)]
    assert forward == [4, 10, 15, 19]
    assert next_mark(found, history, None, forward=True) is None
    assert marks_before(found, history, 10) == "▲pc- ↻e0"


def test_weight_updates_are_notches_where_they_are_rare() -> None:
    shown, history = run()
    assert updates(history, "step") == ()
    history.update({n: msgspec.structs.replace(step, policy_version=n // 5) for n, step in shown.steps.items()})
    assert updates(history, "step") == (5.0, 10.0, 15.0)


def alarm(name: str, raised: int, cleared: int | None = None) -> Alarm:
    return Alarm(
        id=name, cause="torn-weights", code="W1", layer="weights", title="torn weights", sure=True, raised=0.0,
        raised_step=raised, cleared_step=cleared,
    )  # fmt: skip


def test_an_alarm_is_marked_where_it_was_raised_and_where_it_cleared() -> None:
    shown, history = run(event("alarm", "info", "alarm a1 acknowledged by ada", None))
    shown.alarms = {"a1": alarm("a1", 4, 9), "a2": alarm("a2", 15)}
    assert [(mark.step, mark.text) for mark in marks(shown, history)] == [(4, "◆a1"), (9, "◆a1✔"), (15, "◆a2")]


async def test_keys_go_from_mark_to_mark_and_the_header_names_it() -> None:
    client = HeldClient(pictures.healthy())
    assert client.view is not None
    client.view.alarms = {"a1": alarm("a1", 30)}
    async with dashboard(client, (120, 40)) as (app, pilot):
        for key, said in (("N", "reading step 31 ◆a1"), ("N", "reading step 11 ▲pc-"), ("n", "reading step 31 ◆")):
            await pilot.press(key)
            await settle(app, pilot)
            assert said in screen_text(app)
        await pilot.press("home", "N")
        await settle(app, pilot)
        assert "reading step 0" in screen_text(app)
        assert [note.message for note in app._notifications] == ["no mark before this step"]


@pytest.mark.parametrize("keys", [("#", "2", "1", "enter"), ("colon", "2", "1", "enter")])
async def test_the_cursor_goes_to_an_entered_step(keys: tuple[str, ...]) -> None:
    async with dashboard(HeldClient(pictures.healthy()), (120, 40)) as (app, pilot):
        for key in keys:
            if key == "enter":
                await pilot.pause(0.3)
            await pilot.press("number_sign" if key == "#" else key)
        for _ in range(100):
            await settle(app, pilot)
            if app.state.viewport.cursor == 21:
                break
        assert "reading step 21" in screen_text(app)
