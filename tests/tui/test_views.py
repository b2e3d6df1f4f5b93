"""The tab bar, the way back, the Fleet, Events and Log views, and the list of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.api import Snapshot
from rltop.tui.app import RltopApp
from rltop.tui.dialogs.run_picker import LiveRun
from rltop.tui.views.log_view import TAIL_BYTES, tail
from rltop.tui.views.registry import VIEWS
from rltop.tui.views.tab_bar import tabs
from tests.support import pictures, verdicts
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, screen_text, settle

pytestmark = pytest.mark.usefixtures("utc")

SIZES = [(80, 24), (120, 36), (160, 48), (220, 60)]
TITLES = [entry.title for entry in VIEWS]


def current(app: RltopApp) -> str:
    return TITLES[[entry.id for entry in VIEWS].index(str(app._current.id))]


@given(st.integers(0, len(TITLES) - 1), st.sampled_from(["", *TITLES]), st.integers(30, 240))
def test_the_tab_bar_always_names_the_current_view(index: int, back: str, width: int) -> None:
    line, ends = tabs(TITLES, index, back, width)
    assert line.cell_length == width
    assert f"{index + 1} {TITLES[index]}" in line.text
    assert ends == sorted(ends) and len(ends) == len(TITLES)
    assert width < 40 or all(str(number) in line.text for number in range(1, len(TITLES) + 1))


async def test_all_tabs_fit_80_columns_and_a_click_opens_one() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, pilot):
        line = screen_text(app).splitlines()[2]
        assert all(title in line for title in TITLES)
        await pilot.click("#tabs", offset=(line.replace("⟦", "").replace("⟧", "").index("Control"), 0))
        await settle(app, pilot)
        assert current(app) == "Control"


async def test_esc_returns_one_view_and_the_tab_bar_says_where_to() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (120, 36)) as (app, pilot):
        for key, back in (("5", "Overview"), ("2", "Fleet"), ("6", "Gap")):
            await pilot.press(key)
            await settle(app, pilot)
            assert screen_text(app).splitlines()[2].endswith(f"esc: {back}")
        for expected in ("Gap", "Fleet", "Overview", "Overview"):
            await pilot.press("escape")
            await settle(app, pilot)
            assert current(app) == expected
        assert "esc:" not in screen_text(app).splitlines()[2]


async def test_going_back_and_forth_does_not_grow_the_way_back() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, pilot):
        for _ in range(10):
            await pilot.press("2", "3")
        await pilot.press("escape", "escape", "escape")
        assert current(app) == "Overview"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [str(number) for number in range(1, len(VIEWS) + 1)])
async def test_every_view_fits_every_size(key: str, size: tuple[int, int]) -> None:
    async with dashboard(HeldClient(verdicts.alarmed(engines=["e1"])), size, control=True) as (app, pilot):
        await pilot.press(key)
        await settle(app, pilot)
        lines = screen_text(app).splitlines()
        assert len(lines) == size[1]
        assert f"⟦ {key} {TITLES[int(key) - 1]} ⟧" in lines[2]
        assert "a1 stale-prefix-cache" in lines[1]
        assert "q detach" in lines[-1]


@pytest.mark.parametrize(
    ("name", "picture", "size", "keys"),
    [
        ("fleet-80", pictures.troubled, (80, 24), ("5",)),
        ("fleet-120", pictures.troubled, (120, 36), ("5", "j")),
        ("fleet-220", pictures.healthy, (220, 60), ("5", "j")),
        ("events-80", pictures.switched, (80, 24), ("6",)),
        ("events-120", pictures.switched, (120, 36), ("6", "tab")),
    ],
)
async def test_screen(name: str, picture: Callable[[], Snapshot], size: tuple[int, int], keys: tuple[str, ...]) -> None:
    async with dashboard(HeldClient(picture()), size) as (app, pilot):
        await pilot.press(*keys)
        await settle(app, pilot)
        assert_as_saved(app, name)


async def test_the_fleet_view_draws_the_selected_engine() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (160, 48)) as (app, pilot):
        await pilot.press("5")
        await settle(app, pilot)
        assert "e0 matched" in screen_text(app)
        await pilot.press("j")
        await settle(app, pilot)
        assert "e1 matched" in screen_text(app)
        assert "e0 matched" not in screen_text(app)


async def test_events_and_commands_of_the_past_are_those_before_the_step() -> None:
    shown = pictures.switched()
    async with dashboard(HeldClient(shown), (160, 48)) as (app, pilot):
        await pilot.press("number_sign", "1", "5", "enter", "6")
        await settle(app, pilot)
        text = screen_text(app)
    assert "prefix_caching off" in text and "ada@node-a" in text
    assert "async_scheduling" not in text


async def test_the_log_view_shows_the_ends_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "hub.log").write_text("started\nan error\x1b[31m happened\n")
    (tmp_path / "e0.log").write_text("".join(f"line {n}\n" for n in range(20_000)))
    client = HeldClient(pictures.healthy())
    app = RltopApp(client, "sort", clock=lambda: 100.0, logs=lambda: sorted(tmp_path.glob("*.log")))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("7")
        await settle(app, pilot)
        text = screen_text(app)
        assert "line 19999" in text
        await pilot.press("G")
        await settle(app, pilot)
        assert "an error?[31m happened" in screen_text(app)
    assert sum(len(line.text) for line in tail(tmp_path / "e0.log")) <= TAIL_BYTES
    assert tail(tmp_path / "nothing.log") == []


RUNS = [LiveRun("sort", "sort", "/r/sort", shown=True), LiveRun("other", "other", "/r/other", shown=False)]


@pytest.mark.parametrize(("keys", "chosen"), [(("enter",), "other"), (("k", "enter"), ""), (("escape",), "")])
async def test_another_run_is_chosen_from_a_list(keys: tuple[str, ...], chosen: str) -> None:
    app = RltopApp(HeldClient(pictures.healthy()), "sort", clock=lambda: 100.0, runs=lambda: RUNS)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(app, pilot)
        await pilot.press("R")
        await pilot.pause()
        assert "/r/other" in screen_text(app)
        await pilot.press(*keys)
        await pilot.pause()
    assert app.chosen_run == chosen


async def test_a_replay_has_no_other_run() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, pilot):
        await pilot.press("R")
        assert [n.message for n in app._notifications] == ["a stored run is shown: there is no other run to switch to"]
