"""The effect panel: queried from the hub and kept up to date while it is open."""

from __future__ import annotations

import msgspec
import pytest

from rltop.backend.api import Answer, AskEffect
from rltop.tui.app import RltopApp
from rltop.tui.dialogs.effect_panel import REFRESH_S, TIMEOUT_S, VERDICTS, EffectPage, answer_text
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, screen_text

LAST = ("@", "G", "enter")
"""Opens the effect of the oldest change."""


def question(client: HeldClient) -> AskEffect:
    last = client.asked[-1]
    assert isinstance(last, AskEffect)
    return last


def panel(app: RltopApp) -> EffectPage:
    assert isinstance(app.screen, EffectPage)
    return app.screen


@pytest.mark.parametrize(("name", "size"), [("effect-80", (80, 24)), ("effect-160", (160, 48))])
async def test_the_panel_shows_the_answer_of_the_hub(name: str, size: tuple[int, int], utc: None) -> None:
    client = HeldClient(pictures.timed())
    async with dashboard(client, size) as (app, pilot):
        await pilot.press(*LAST)
        await pilot.pause()
        assert "waiting for the hub" in screen_text(app)
        assert question(client).command == "c7"
        client.answers[question(client).id] = Answer(question(client).id, effect=pictures.effect())
        panel(app).check_answer()
        await pilot.pause()
        assert_as_saved(app, name)


async def test_an_open_panel_repeats_its_query_and_shows_the_later_answer() -> None:
    client = HeldClient(pictures.timed())
    async with dashboard(client, (120, 36)) as (app, pilot):
        await pilot.press(*LAST)
        await pilot.pause()
        first = question(client)
        client.answers[first.id] = Answer(first.id, effect=pictures.effect())
        panel(app).check_answer()
        assert client.asked[-1] is first
        app._clock = lambda: 100.0 + REFRESH_S
        panel(app).check_answer()
        second = question(client)
        assert second.id != first.id
        client.answers[second.id] = Answer(second.id, effect=pictures.effect(ended="the flag was switched again"))
        panel(app).check_answer()
        await pilot.pause()
        assert "ended: the flag was switched again" in screen_text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert len(app.screen_stack) == 1


async def test_an_error_and_a_timeout_of_the_hub_are_shown() -> None:
    client = HeldClient(pictures.timed())
    async with dashboard(client, (120, 36)) as (app, pilot):
        await pilot.press(*LAST)
        await pilot.pause()
        client.answers[question(client).id] = Answer(question(client).id, error="command c7 switched nothing")
        panel(app).check_answer()
        await pilot.pause()
        assert "command c7 switched nothing" in screen_text(app)
        app._clock = lambda: 100.0 + REFRESH_S
        panel(app).check_answer()
        app._clock = lambda: 100.0 + REFRESH_S + TIMEOUT_S + 1
        panel(app).check_answer()
        await pilot.pause()
        text = screen_text(app)
        assert "▲ the hub has not answered for 7s" in text
        assert "command c7 switched nothing" in text


async def test_the_effect_is_that_of_the_selected_change() -> None:
    client = HeldClient(pictures.timed())
    async with dashboard(client, (120, 36)) as (app, pilot):
        await pilot.press("E")
        assert "select a change in the Control view" in [note.message for note in app._notifications]
        await pilot.press("4", "j", "j", "E")
        await pilot.pause()
        assert question(client).command == "c7"


def test_every_verdict_has_its_own_sign_and_lines_fit() -> None:
    signs = [sign for sign, _ in VERDICTS.values()]
    assert len(set(signs)) == len(signs)
    for width in (40, 71, 105):
        for line in answer_text(pictures.effect(), "", width).plain.splitlines():
            assert len(line) <= max(width, 70)
    many = pictures.effect(against=[f"e{i}" for i in range(1, 9)])
    assert "against 8 " in answer_text(many, "", 71).plain
    strange = msgspec.structs.replace(pictures.effect().rows[0], verdict="of the future")
    assert "? of the future" in answer_text(pictures.effect(rows=[strange]), "", 71).plain
