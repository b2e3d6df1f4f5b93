"""The state of a run in words, and what an open alarm marks on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from rltop.backend.api import Snapshot, Step, Trainer, is_over
from rltop.backend.diagnosis.causes import CAUSES
from rltop.tui.model.alarm_focus import MAX_LINES, alarm_at, focus
from rltop.tui.model.charts import CHARTS, MATCHED
from rltop.tui.model.fleet_table import FLEET
from rltop.tui.model.run_state import run_state
from rltop.tui.widgets.table import fit
from tests.support import pictures, verdicts
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle

pytestmark = pytest.mark.usefixtures("utc")


def over(shown: Snapshot) -> Snapshot:
    """The run with trainer and engines exited."""
    engines = {name: msgspec.structs.replace(engine, health="gone") for name, engine in shown.engines.items()}
    return msgspec.structs.replace(
        shown, engines=engines, trainer=msgspec.structs.replace(shown.trainer, health="gone")
    )


def of(snapshot: Snapshot | None, floor: float | None = 0.05, **facts: Any) -> str:
    state = run_state(snapshot, floor, **facts)
    return f"{state.sign} {state.text}"


def test_every_stage_of_a_run_has_its_words() -> None:
    started = pictures.no_steps()
    assert "hub" in of(None)
    assert of(pictures.picture(trainer=Trainer())) == "◌ waiting for engines and the trainer"
    assert of(pictures.picture()) == "◌ waiting for engines"
    assert of(msgspec.structs.replace(started, trainer=Trainer())) == "◌ waiting for the trainer"
    assert of(started) == "◌ waiting for the first training step"
    assert of(pictures.healthy()) == "✔ healthy: no alarm"
    assert of(pictures.healthy(), 1e-6) == "▲ no alarm, but the last step is above the floor"
    assert of(pictures.young(), None) == "· no alarm"
    assert of(pictures.troubled()) == "▲ e3 is silent, e7 has exited"
    assert of(over(pictures.healthy())) == "■ finished after step 39"
    assert of(over(verdicts.alarmed(engines=["e1"]))).startswith("■ finished after step 39, with an open alarm: a1 ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "✖ a1 stale-prefix-cache (C1) on all engines since step 14"),
        ({"engines": ["e1"]}, "✖ a1 stale-prefix-cache (C1) on e1 since step 14"),
        ({"engines": ["e1"], "sure": False}, "✖ a1 weights or inference path: B3 50 %, C1 50 % on e1 since step 14"),
        ({"acknowledged": "kim"}, "▲ a1 stale-prefix-cache (C1) on all engines since step 14, acknowledged by kim"),
    ],
)
def test_an_open_alarm_names_its_engines(changes: Mapping[str, Any], expected: str) -> None:
    assert of(verdicts.alarmed(**changes)) == expected


def test_the_gap_of_the_alarmed_engine_is_in_the_sentence() -> None:
    shown = verdicts.alarmed(engines=["e1"])
    last = shown.steps[39]
    shown.steps[39] = msgspec.structs.replace(last, engines=last.engines | {"e1": {"backend_abs_diff_mean": 0.5}})
    assert "gap 0.500, floor 0.0500" in run_state(shown, 0.05).details


def test_a_step_of_the_past_has_the_alarm_of_that_time() -> None:
    shown = verdicts.alarmed(raised_step=16, cleared=pictures.START + 200, cleared_step=30)

    def at(step: int) -> str:
        return of(shown, step=shown.steps[step])

    assert at(15).endswith("no alarm then")
    assert "a1" in at(16)
    assert "a1" in at(29)
    assert at(30).endswith("no alarm then")
    assert alarm_at(shown, None) is None


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.id)
def test_every_cause_marks_a_plot_that_exists(cause: Any) -> None:
    found = focus(verdicts.alarm(cause=cause.id), pictures.healthy())
    assert found is not None
    assert found.charts
    assert set(found.charts) <= {chart.id for chart in CHARTS}


@pytest.mark.parametrize(
    ("engines", "alarmed"), [(2, []), (2, ["e1"]), (3, ["e2"]), (12, ["e5", "e7", "e9"]), (64, [])]
)
def test_affected_engines_are_drawn_first(engines: int, alarmed: list[str]) -> None:
    found = focus(verdicts.alarm(engines=alarmed), pictures.healthy(engines=engines))
    assert found is not None
    assert len(found.lines) + found.more <= MAX_LINES
    assert found.lines[0] == (alarmed or ["e0"])[0]
    chart = MATCHED.by_engine(found.lines, found.more)
    assert [series.label for series in chart.series] == [*found.lines, *["all"] * found.more]


def test_a_family_of_causes_marks_the_version_matched_gap() -> None:
    found = focus(verdicts.alarm(cause="no-such-cause"), pictures.healthy())
    assert found is not None
    assert found.charts == ("matched",)


def test_the_series_of_an_engine_falls_back_to_tokens_of_lag_0() -> None:
    values = {"backend_abs_diff_mean": None, "lag0_abs_diff_mean": 0.25}
    step = Step(0, 0.0, 0, partial=False, values={}, engines={"e0": values})
    series = MATCHED.by_engine(["e0"], more=True).series
    assert [one.value(step) for one in series] == [0.25, None]
    assert series[0].shown_metric(step) == "lag0_abs_diff_mean"


@pytest.mark.parametrize("width", [50, 60, 70, 80, 100, 120, 160])
def test_state_gaps_and_flags_are_the_last_columns_to_go(width: int) -> None:
    titles = [column.title for column in fit(FLEET, width)]
    assert {"engine", "gap nats", "matched", "flags", "state"} <= set(titles)


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (160, 48), (220, 60)])
async def test_an_alarm_marks_its_engine_its_plot_and_the_sentence(size: tuple[int, int]) -> None:
    async with dashboard(HeldClient(verdicts.alarmed(engines=["e1"])), size) as (app, _):
        lines = screen_text(app).splitlines()
        assert "a1 stale-prefix-cache (C1) on e1 since step 14" in lines[1]
        assert any("◆" in line and "matched" in line and "e1" in line for line in lines)
        assert [line for line in lines if "◆e1" in line and "a1" in line]
        assert not [line for line in lines if "◆e0" in line]


async def test_a_finished_run_is_finished_even_without_its_hub() -> None:
    shown = over(pictures.healthy())
    assert is_over(shown)
    async with dashboard(HeldClient(shown, "lost", 12.0), (80, 24)) as (app, _):
        text = screen_text(app)
        assert "finished after step 39, and its hub has ended" in text
        for wrong in ("hub lost", "the run continues", "✖", "exited", "0/2"):
            assert wrong not in text


async def test_a_run_without_steps_says_in_the_middle_what_it_waits_for() -> None:
    async with dashboard(HeldClient(pictures.picture(trainer=Trainer())), (80, 24)) as (app, pilot):
        await settle(app, pilot)
        lines = screen_text(app).splitlines()
        (at,) = [y for y, line in enumerate(lines) if "has no training step yet" in line]
        assert 4 <= at <= 12
        assert "rltop attach sort" in "".join(lines)


@pytest.mark.parametrize("control", [True, False])
async def test_control_is_visible(control: bool) -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24), control=control) as (app, _):
        lines = screen_text(app).splitlines()
        assert ("control" in lines[0]) == control
        assert lines[-1].endswith("control" if control else "read-only")


async def test_a_step_of_the_past_shows_nothing_of_the_present() -> None:
    shown = verdicts.alarmed(raised_step=30, since_step=28)
    shown.events.append(pictures.event(60, "something new", "warn", at_step=38))
    shown.engines["e1"] = pictures.engine("e1", health="silent", tokens_per_s=None)
    async with dashboard(HeldClient(shown), (120, 36)) as (app, pilot):
        await pilot.press("number_sign", "1", "2", "enter")
        await settle(app, pilot)
        text = screen_text(app)
        assert "policy 13" in text.splitlines()[0]
        assert "step 12 of the past: no alarm then" in text.splitlines()[1]
        for present in ("step 39", "policy 40", "tok/s 3", "something new", "silent", "✖ a1"):
            assert present not in text, present
