"""Keys of the dashboard, and its reaction to connection loss."""

from __future__ import annotations

import msgspec
import pytest
from textual.widgets import ContentSwitcher

from rltop.backend.api import Answer, AskSet, change_key
from rltop.tui.app import RltopApp
from rltop.tui.dialogs.requests import TIMEOUT_S
from rltop.tui.dialogs.switch_dialog import Confirm
from rltop.tui.model.fleet_table import Row
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.step_columns import StepColumns
from rltop.tui.model.timeline import markers, marks
from rltop.tui.views.overview import OverviewView
from rltop.tui.views.plot import Plot
from rltop.tui.widgets.table import Table
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle

SIZE = (120, 36)


def notes(app: RltopApp) -> list[str]:
    return [note.message for note in app._notifications]


async def test_the_screen_follows_the_run_through_connect_loss_and_reconnect() -> None:
    client = HeldClient(None, "connecting")
    async with dashboard(client, SIZE) as (app, pilot):
        assert "connecting: waiting for the hub" in screen_text(app)
        client.state = "live"
        client.show(pictures.no_steps())
        await settle(app, pilot)
        assert "waiting for the first training step" in screen_text(app)
        client.show(pictures.healthy())
        await settle(app, pilot)
        assert "step 39" in screen_text(app)
        client.state, client.age_s = "lost", 12.0
        await settle(app, pilot)
        assert "hub lost 12s: the run continues; `rltop hub sort` starts a new one" in screen_text(app)
        assert "0.0143" in screen_text(app)
        client.state, client.age_s = "live", 0.1
        client.show(msgspec.structs.replace(pictures.healthy(5), epoch="h2"))
        await settle(app, pilot)
        assert "hub lost" not in screen_text(app)
        assert "step 4 " in screen_text(app)


async def test_the_header_shows_the_notice_of_the_caller() -> None:
    app = RltopApp(HeldClient(pictures.healthy()), "sort", notice=lambda: "boot 2/3: engines")
    async with app.run_test(size=SIZE) as pilot:
        await settle(app, pilot)
        assert "live  boot 2/3: engines  step 39" in screen_text(app)


async def test_a_timer_that_fires_after_the_widgets_are_removed_paints_nothing() -> None:
    app = RltopApp(HeldClient(pictures.healthy()), "sort")
    async with app.run_test(size=SIZE) as pilot:
        await settle(app, pilot)
    app.state.dirty = True
    app.paint()
    assert app.state.dirty


async def test_a_frozen_dashboard_keeps_its_snapshot_and_counts_newer_steps() -> None:
    shown = pictures.healthy()
    client = HeldClient(shown)
    async with dashboard(client, SIZE) as (app, pilot):
        await pilot.press("space")
        await settle(app, pilot)
        before = screen_text(app)
        assert "frozen at step 39 " in before
        shown.engines["e0"] = pictures.engine("e0", tokens_per_s=999.0)
        shown.steps[40] = pictures.step(40)
        client.changed = True
        await settle(app, pilot)
        after = screen_text(app)
        assert "+1 new" in after
        assert after.splitlines()[1:] == before.splitlines()[1:]
        await pilot.press("space")
        await settle(app, pilot)
        assert "999" in screen_text(app)
        assert "frozen" not in screen_text(app)


async def test_a_read_only_dashboard_explains_itself_and_sends_nothing() -> None:
    client = HeldClient(pictures.switched())
    async with dashboard(client, SIZE) as (app, pilot):
        await pilot.press("4", "t")
        assert NEEDS_CONTROL in notes(app)
        await pilot.press("enter")
        assert len(app.screen_stack) == 1
        assert client.asked == []


@pytest.mark.parametrize("keys", [("n",), ("escape",), ("enter",), ("q",), ("right", "left", "enter")])
async def test_no_single_accidental_key_confirms_a_switch(keys: tuple[str, ...]) -> None:
    client = HeldClient(pictures.switched())
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        await pilot.press("4", "t")
        await pilot.pause()
        assert isinstance(app.screen, Confirm)
        await pilot.press(*keys)
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert client.asked == []


@pytest.mark.parametrize("keys", [("y",), ("right", "enter")])
async def test_a_switch_is_sent_for_the_engines_shown(keys: tuple[str, ...]) -> None:
    client = HeldClient(pictures.switched())
    async with dashboard(client, SIZE, control=True) as (_, pilot):
        await pilot.press("4", "t", *keys)
        await pilot.pause()
        (asked,) = client.asked
        assert isinstance(asked, AskSet)
        assert (asked.flag, asked.value, asked.engines) == ("prefix_caching", "off", ["e0", "e1"])


async def test_one_engine_alone_can_be_switched_and_a_fixed_one_cannot() -> None:
    client = HeldClient(pictures.switched())
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        await pilot.press("4", "e", "j", "t", "y")
        await pilot.pause()
        assert [asked.engines for asked in client.asked if isinstance(asked, AskSet)] == [["e0"]]
        await pilot.press("j", "j", "j", "j", "t")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert any("not supported with this executor" in note for note in notes(app))


async def test_a_mixed_fleet_can_be_switched_either_way() -> None:
    shown = pictures.healthy()
    shown.engines["e1"] = pictures.engine("e1", flags=pictures.flags("off", "off"))
    client = HeldClient(shown)
    async with dashboard(client, SIZE, control=True) as (_, pilot):
        for keys in ("v", "vv", "vvv"):
            await pilot.press("4", "g", "j", "t", *keys, "y")
            await pilot.pause()
        asked = [(a.flag, a.value) for a in client.asked if isinstance(a, AskSet)]
        assert asked == [("async_scheduling", value) for value in ("off", "on", "off")]


async def test_refused_and_unanswered_requests_are_shown() -> None:
    client = HeldClient(pictures.switched())
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        await pilot.press("4", "t", "y")
        await pilot.pause()
        client.answers[client.asked[0].id] = Answer(client.asked[0].id, error="one controller at a time")
        await settle(app, pilot)
        assert "prefix_caching off on fleet: one controller at a time" in notes(app)
        await pilot.press("t", "y")
        await pilot.pause()
        app._clock = lambda: 100.0 + TIMEOUT_S + 1
        await settle(app, pilot)
        assert any("the hub has not answered" in note for note in notes(app))


async def test_a_command_is_shown_in_every_state() -> None:
    shown = pictures.healthy()
    client = HeldClient(shown)
    async with dashboard(client, (130, 36), control=True) as (app, pilot):
        await pilot.press("4")
        for state, sign in (("requested", "○"), ("accepted", "◔"), ("draining", "◑")):
            change = pictures.change("e0", "prefix_caching", "on", state, command="c9", at_step=39)
            shown.changes[change_key(change)] = change
            client.changed = True
            await settle(app, pilot)
            assert f"{sign} pc+ {state}" in screen_text(app)
        done = pictures.applied("e0", "prefix_caching", "on", command="c9", at_step=39, engine_step=5120)
        shown.changes[change_key(done)] = done
        client.changed = True
        await settle(app, pilot)
        assert "✔ pc+ applied, e.step 5120, policy 39, 19 in flight, 0 lost, 1.84 ms" in screen_text(app)


async def test_the_cursor_stays_on_its_engine_when_the_order_changes() -> None:
    async with dashboard(HeldClient(pictures.troubled()), SIZE) as (app, pilot):
        table: Table[Row] = app.query_one("#overview #fleet", Table)
        await pilot.press("j", "j", "j", "j")
        assert table.selected is table.items[4]
        await pilot.press("s", "s", "S")
        assert table.selected is not None
        assert table.selected.id == "e4"
        rates = [row.engine.tokens_per_s for row in table.items if row.engine]
        assert rates[-1] is None
        assert rates[0] == max(rate or 0 for rate in rates)


async def test_a_log_follows_the_newest_line_until_its_cursor_moves() -> None:
    shown = pictures.healthy()
    client = HeldClient(shown)
    async with dashboard(client, SIZE) as (app, pilot):
        for number in range(100, 130):
            shown.events.append(pictures.event(number, f"happening {number}"))
            client.changed = True
            await settle(app, pilot)
        assert "happening 129" in screen_text(app)
        app.query_one("#overview #events").focus()
        await pilot.press("j", "j")
        shown.events.append(pictures.event(130, "happening 130"))
        client.changed = True
        await settle(app, pilot)
        assert "⟦" in next(line for line in screen_text(app).splitlines() if "happening 127" in line)


async def test_switches_before_the_known_steps_are_not_marked() -> None:
    shown = pictures.healthy()
    shown.steps = {number: step for number, step in shown.steps.items() if number >= 30}
    async with dashboard(HeldClient(shown), SIZE) as (app, _):
        assert "▲" not in screen_text(app)
    old = pictures.applied("e0", "prefix_caching", "off", command="c0", at_step=-9, step=None)
    shown = pictures.healthy()
    shown.changes = {change_key(old): old}
    async with dashboard(HeldClient(shown), SIZE) as (app, _):
        assert "└▲pc-" in screen_text(app)


async def test_an_auto_revert_is_marked_at_its_time() -> None:
    asked = pictures.applied("e0", "prefix_caching", "on", command="c1", at_step=25)
    own = msgspec.structs.replace(asked, command="c1/revert", reverts="c1", step=None)
    history = StepColumns()
    history.update(pictures.healthy().steps)
    shown = pictures.picture(changes={change_key(own): own})
    (marker,) = markers(marks(shown, history), history, "step")
    assert marker.x == 25.5


async def test_a_smaller_terminal_keeps_what_matters() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (160, 48)) as (app, pilot):
        assert "node-a" in screen_text(app)
        await pilot.resize_terminal(60, 20)
        await settle(app, pilot)
        small = screen_text(app)
        assert "node-a" not in small
        assert "● e0" in small
        assert "gap" in small
        assert max(map(len, small.replace("⟦", "").replace("⟧", "").splitlines())) <= 60
        await pilot.resize_terminal(160, 48)
        await settle(app, pilot)
        assert "node-a" in screen_text(app)


async def test_zoom_shows_one_pane_and_goes_back() -> None:
    async with dashboard(HeldClient(pictures.healthy()), SIZE) as (app, pilot):
        await pilot.press("shift+tab", "z")
        await settle(app, pilot)
        shown = [plot for plot in app.query(Plot) if plot.display and plot.size.height > 0 and plot.region.height > 0]
        assert [plot.chart.id for plot in shown if plot in app.screen._compositor.visible_widgets] == ["ESS"]
        await pilot.press("escape")
        await settle(app, pilot)
        assert not app.query_one(OverviewView).has_class("zoomed")
        assert app.query_one("#overview #fleet") in app.screen._compositor.visible_widgets


async def test_all_plots_share_axes_and_cursor() -> None:
    async with dashboard(HeldClient(pictures.healthy()), SIZE) as (app, pilot):
        await pilot.press("{", "[", "]")
        await settle(app, pilot)
        assert "reading step 29" in screen_text(app)
        await pilot.press("end", "x", "y")
        await settle(app, pilot)
        assert "reading" not in screen_text(app)
        assert screen_text(app).count("version└") == len(app.query("#overview Plot"))
        assert "1e-" in screen_text(app)


async def test_no_color_leaves_signs_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async with dashboard(HeldClient(pictures.troubled()), SIZE) as (app, _):
        coloured = screen_text(app)
    monkeypatch.setenv("NO_COLOR", "1")
    async with dashboard(HeldClient(pictures.troubled()), SIZE) as (app, _):
        plain = screen_text(app)
        styles = [segment.style for strip in app.screen._compositor.render_strips() for segment in strip]
        assert all(style.color is None or style.color.is_default for style in styles if style)
    assert plain == coloured


async def test_keys_open_views_and_detach() -> None:
    async with dashboard(HeldClient(pictures.healthy()), SIZE) as (app, pilot):
        views = app.query_one(ContentSwitcher)
        for key, view in (
            ("4", "control"),
            ("1", "overview"),
            ("F", "control"),
            ("escape", "overview"),
            ("@", "control"),
        ):
            await pilot.press(key)
            assert views.current == view
        await pilot.press("q")
    assert app.return_code == 0


async def test_an_engine_name_cannot_write_to_the_terminal() -> None:
    shown = pictures.healthy()
    shown.engines["e0"] = pictures.engine("e0", host="\x1b]0;owned\x07", vllm_version="0.3\x1b[2J")
    async with dashboard(HeldClient(shown), (160, 48)) as (app, pilot):
        assert "\x1b" not in screen_text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "\x1b" not in screen_text(app)
