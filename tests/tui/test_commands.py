"""Keys, palette, help and footer are made from one table of commands and one of views."""

from __future__ import annotations

from textual.binding import Binding

from rltop.backend.metrics import BY_NAME
from rltop.collectors.contract.flags import FLAGS
from rltop.tui.app import RltopApp
from rltop.tui.model.charts import CHARTS
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.views.registry import COMMANDS, VIEWS
from tests.support import pictures
from tests.support.harness import until
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text


def test_ids_and_keys_are_unique() -> None:
    ids = [command.id for command in COMMANDS]
    keys = [key for command in COMMANDS for key in command.keys]
    assert len(set(ids)) == len(ids)
    assert len(set(keys)) == len(keys)


def test_views_have_the_keys_one_to_n_and_one_name_each() -> None:
    commands = [command for command in COMMANDS if command.group == "Views"]
    assert [command.keys[0] for command in commands] == [str(number) for number in range(1, len(VIEWS) + 1)]
    assert [command.title for command in commands] == [entry.title for entry in VIEWS]
    assert all(command.id == command.title.lower() and not command.footer for command in commands)


async def test_every_command_has_a_function_and_is_bound_to_all_its_keys() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, _):
        assert set(app._functions) == {command.id for command in COMMANDS}
        for command in COMMANDS:
            for key in command.keys:
                bound = app._bindings.get_bindings_for_key(key)
                assert f"command('{command.id}')" in [binding.action for binding in bound], key
                assert all(isinstance(binding, Binding) for binding in bound)


async def test_no_key_of_a_focused_pane_or_screen_hides_a_command() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (80, 24)) as (app, pilot):
        for view in (str(number) for number, _ in enumerate(VIEWS, 1)):
            await pilot.press(view)
            active = app.screen.active_bindings
            for command in COMMANDS:
                for key in command.keys:
                    action = active[key].binding.action
                    assert action in (f"command('{command.id}')", "app.focus_next", "app.focus_previous"), (key, action)


async def test_help_and_palette_list_every_command_chart_and_flag() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (160, 130)) as (app, pilot):
        await pilot.press("?")
        await pilot.pause()
        text = screen_text(app)
        for command in COMMANDS:
            assert f"{command.title}: {command.help}" in text
        for chart in CHARTS:
            for series in chart.series:
                assert series.metric in BY_NAME
                assert f"{chart.id} {series.label}" in text
        for flag in FLAGS:
            assert flag.summary in text
        assert NEEDS_CONTROL in text
        await pilot.press("escape", "colon")
        await pilot.pause()
        await app.workers.wait_for_complete()
        await pilot.press(*"freeze")
        await pilot.pause()
        await wait_for_text(app, pilot, "freeze the screen")


async def wait_for_text(app: RltopApp, pilot: object, text: str) -> None:
    await until(lambda: text in screen_text(app), f"{text!r} on the screen")


async def test_the_footer_greys_nothing_silently() -> None:
    async with dashboard(HeldClient(pictures.healthy()), (120, 36)) as (app, _):
        last = screen_text(app).splitlines()[-1]
        assert last.endswith("read-only")
        assert all(
            f"{c.shown.split()[0]} {c.footer}" in last
            for c in COMMANDS
            if c.footer and not c.view and c.id != "overview"
        )
