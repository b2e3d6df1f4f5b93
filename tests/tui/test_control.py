"""The Control view: what can be requested, what is sent to the hub, and what is never sent by accident."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from textual.widgets import Input

from rltop.backend.api import AskAct, AskKeep, AskSet, AskUndo, Question, Snapshot
from rltop.backend.commands.undoable import undoable
from rltop.collectors.contract.actions import ACTIONS, BY_VERB
from rltop.collectors.contract.flags import FLAGS
from rltop.collectors.contract.wire import FlagState, Timer
from rltop.tui.dialogs.confirm_dialog import ConfirmPlain
from rltop.tui.dialogs.switch_dialog import HALF, Confirm, keep_question, scopes, times
from rltop.tui.model.changes import describe, label, log_entries
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.switchable import FOREIGN_PAUSE, MIXED, SUBJECTS, Target, fold, targets
from rltop.tui.widgets import theme
from tests.support import pictures
from tests.support.pictures import HeldClient
from tests.support.screens import dashboard, screen_text, settle

SIZE = (120, 36)


def one(view: Snapshot, subject: str, engine: str | None = None) -> Target:
    (found,) = [t for t in targets(view) if t.subject.name == subject and t.engine == engine]
    return found


async def asked(view: Snapshot, *keys: str, why: str = "") -> list[Question]:
    """The questions sent to the hub after these keys; ``why`` is typed after ``r``."""
    client = HeldClient(view)
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
            if key == "r":
                await pilot.press(*why, "enter")
        await settle(app, pilot)
        return client.asked


# --- choices ----------------------------------------------------------------------------------------------------


def test_every_flag_and_every_action_can_be_requested() -> None:
    assert [subject.name for subject in SUBJECTS[: len(FLAGS)]] == [flag.name for flag in FLAGS]
    assert {choice.verb for subject in SUBJECTS for choice in subject.choices} == {"set", *BY_VERB}
    assert {subject.name for subject in SUBJECTS[len(FLAGS) :]} == {action.subject for action in ACTIONS}


def test_a_fleet_is_mixed_where_engines_differ_and_has_a_form_only_if_all_share_it() -> None:
    view = pictures.healthy()
    strict, plain = FlagState("off", True, "", "strict"), FlagState("off", True, "", "depth 1")
    view.engines["e0"] = pictures.engine("e0", flags=pictures.flags() | {"async_scheduling": strict})
    assert one(view, "async_scheduling").now == MIXED
    view.engines["e1"] = pictures.engine("e1", flags=pictures.flags() | {"async_scheduling": plain})
    assert one(view, "async_scheduling").now == "off"
    assert one(view, "async_scheduling", "e0").now == "off (strict)"
    view.engines["e1"] = pictures.engine("e1", flags=pictures.flags() | {"async_scheduling": strict})
    assert one(view, "async_scheduling").now == "off (strict)"


def test_only_a_pause_by_rltop_can_be_resumed() -> None:
    view = pictures.healthy()
    assert [choice.word for choice in one(view, "generation", "e0").choices] == ["pause"]
    view.engines["e0"] = pictures.engine("e0", paused=True)
    assert one(view, "generation", "e0").refusal == FOREIGN_PAUSE
    timer = Timer("c1", "pause", "", "running", view.time + 30)
    view.engines["e1"] = pictures.engine("e1", paused=True, timers=[timer])
    ours = one(view, "generation", "e1")
    assert ([choice.word for choice in ours.choices], ours.refusal, ours.timed) == (["resume"], "", ("e1",))
    assert one(view, "generation").refusing == (f"e0: {FOREIGN_PAUSE}",)


def test_a_large_fleet_has_rows_only_for_engines_that_differ() -> None:
    view = pictures.picture(engines={f"e{i}": pictures.engine(f"e{i}") for i in range(12)})
    assert [target.engine for target in fold(targets(view))] == [None] * len(SUBJECTS)
    view.engines["e3"] = pictures.engine("e3", flags=pictures.flags(caching="off"))
    view.engines["e4"] = pictures.engine("e4", timers=[Timer("c", "set", "lm_head_fp32", "off", view.time)])
    view.engines["e5"] = pictures.engine("e5", differs={"logprobs_mode": "why"})
    view.engines["e6"] = pictures.engine(
        "e6", flags=pictures.flags() | {"async_scheduling": FlagState("on", False, "x")}
    )
    out = [(target.subject.name, target.engine) for target in fold(targets(view)) if target.engine]
    assert out == [
        ("prefix_caching", "e3"), ("async_scheduling", "e6"), ("logprobs_mode", "e5"), ("lm_head_fp32", "e4")
    ]  # fmt: skip


def test_the_pause_of_a_weight_update_adds_no_row_and_a_pause_by_rltop_does() -> None:
    view = pictures.picture(engines={f"e{i}": pictures.engine(f"e{i}") for i in range(3)})
    view.engines["e1"] = pictures.engine("e1", paused=True)
    assert [target.engine for target in fold(targets(view)) if target.engine] == []
    timer = Timer("c1", "pause", "", "running", view.time + 30)
    view.engines["e1"] = pictures.engine("e1", paused=True, timers=[timer])
    assert [target.engine for target in fold(targets(view)) if target.engine] == ["e1"]


def test_a_pause_auto_reverts_and_cannot_be_kept() -> None:
    view = pictures.healthy()
    timers = [Timer("c1", "pause", "", "running", view.time + 30), Timer("c2", "set", "lm_head_fp32", "off", view.time)]
    view.engines["e1"] = pictures.engine("e1", paused=True, timers=timers)
    assert keep_question(view, "c1") is None
    assert keep_question(view, "c2") is not None


async def test_no_launch_option_is_suggested_without_a_live_engine() -> None:
    view = pictures.healthy()
    view.engines = {name: msgspec.structs.replace(engine, health="gone") for name, engine in view.engines.items()}
    async with dashboard(HeldClient(view), SIZE, control=True) as (app, pilot):
        await pilot.press("4")
        await settle(app, pilot)
        assert "fleet: no live engine" in screen_text(app)
        assert "To make it switchable" not in screen_text(app)


def test_folding_is_idempotent() -> None:
    found = targets(pictures.healthy(engines=12))
    assert len(found) == 13 * len(SUBJECTS)
    assert fold(found) == fold(fold(found))


def test_the_scopes_of_a_command_start_with_the_selected_row() -> None:
    view = pictures.healthy()
    assert [place.name for place in scopes(one(view, "prefix_caching"))] == ["fleet", "half", "e0", "e1"]
    assert [place.name for place in scopes(one(view, "prefix_caching", "e1"))] == ["e1"]
    assert [place.name for place in scopes(one(view, "generation"))] == ["fleet", "e0", "e1"]
    assert [place.name for place in scopes(one(pictures.switched(), "async_scheduling"))] == ["fleet", "half", "e0"]
    assert [place.name for place in scopes(one(pictures.healthy(engines=1), "prefix_caching"))] == ["fleet"]


def test_a_guard_timer_has_a_choice_of_times_but_is_mandatory() -> None:
    pause, flush = one(pictures.healthy(), "generation"), one(pictures.healthy(), "prefix cache")
    assert [seconds for _, seconds in times(pause.choices[0])] == [60.0, 600.0]
    assert times(flush.choices[0]) == ()
    assert [seconds for _, seconds in times(SUBJECTS[0].choices[0])] == [None, 60.0, 600.0, 3600.0]


@pytest.mark.parametrize(
    ("facts", "said", "short"),
    [
        ({}, "prefix_caching off", "pc-"),
        ({"strict": True, "detail": "strict"}, "prefix_caching off strict", "pc-"),
        ({"detail": "depth 1"}, "prefix_caching off (depth 1)", "pc-"),
        ({"reverts": "c0"}, "↶ prefix_caching off", "pc-"),
        ({"verb": "pause", "flag": ""}, "pause", "pause"),
        ({"verb": "flush_cache", "flag": ""}, "flush", "flush"),
        ({"verb": "keep", "flag": "", "target": "c0"}, "keep c0", "keep c0"),
        ({"verb": "of the future"}, "of the future", "of the future"),
    ],
)
def test_a_change_is_described_in_words_and_in_short_form(facts: dict[str, Any], said: str, short: str) -> None:
    change = msgspec.structs.replace(pictures.applied("e0", "prefix_caching", "off", command="c1"), **facts)
    assert (describe(change), label(change)) == (said, short)


def test_only_changes_with_an_effect_can_be_undone() -> None:
    done = pictures.applied("e0", "prefix_caching", "off", command="c1")
    same = pictures.applied("e0", "prefix_caching", "off", command="c2", old="off")
    refused = pictures.change("e0", "prefix_caching", "off", "refused", command="c3", old="on")
    flush = pictures.applied("e0", "", "", command="c4", verb="flush_cache")
    pause = pictures.applied("e0", "", "paused", command="c5", verb="pause", old="running", new="paused")
    assert undoable([done, same, refused, flush, pause]) == [done, pause]


def test_the_log_counts_down_with_the_hubs_clock() -> None:
    view = pictures.timed()
    left = {(entry.change.command, entry.change.engine): entry.left_s for entry in log_entries(view)}
    assert left[("c7", "e0")] == pytest.approx(572)
    assert left[("c5", "e1")] is None
    assert theme.clock(572) == "9:32"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-3, "0:00"), (0, "0:00"), (7.4, "0:07"), (59.9, "1:00"), (3599, "59:59"), (3720, "1:02h"), (200_000, "2d")],
)
def test_time_left_has_seconds_below_one_hour(seconds: float, shown: str) -> None:
    assert theme.clock(seconds) == shown


# --- requests -----------------------------------------------------------------------------------------------------


async def test_options_are_sent_as_confirmed() -> None:
    (question,) = await asked(pictures.healthy(), "4", "j", "t", "f", "f", "s", "r", "y", why="is it that?")
    assert isinstance(question, AskSet)
    assert (question.flag, question.value, question.engines) == ("async_scheduling", "off", ["e0", "e1"])
    assert (question.strict, question.revert_s, question.fraction) == (True, 600.0, None)
    assert question.why == "is it that?"


async def test_the_hub_picks_the_half_of_a_canary() -> None:
    (question,) = await asked(pictures.healthy(), "4", "t", "w", "y")
    assert isinstance(question, AskSet)
    assert (question.engines, question.fraction, question.strict, question.revert_s) == (None, HALF, False, None)


async def test_one_engine_can_be_chosen_in_the_dialog_of_the_fleet() -> None:
    (question,) = await asked(pictures.healthy(), "4", "t", "w", "w", "w", "y")
    assert isinstance(question, AskSet)
    assert (question.engines, question.fraction) == (["e1"], None)


async def test_a_form_is_offered_only_where_the_flag_has_one() -> None:
    (question,) = await asked(pictures.healthy(), "4", "t", "s", "y")
    assert isinstance(question, AskSet)
    assert question.strict is False


async def test_actions_on_the_whole_fleet_are_available_in_every_view() -> None:
    (pause,) = await asked(pictures.healthy(), "p", "y")
    assert isinstance(pause, AskAct)
    assert (pause.verb, pause.engines, pause.revert_s) == ("pause", ["e0", "e1"], 60.0)
    (flush,) = await asked(pictures.healthy(), "f", "w", "y")
    assert isinstance(flush, AskAct)
    assert (flush.verb, flush.engines, flush.revert_s) == ("flush_cache", ["e0"], None)


async def test_a_timer_is_kept_from_its_flag_or_from_the_log() -> None:
    for keys in (("4", "j", "K"), ("@", "G", "K")):
        (question,) = await asked(pictures.timed(), *keys, "y")
        assert isinstance(question, AskKeep)
        assert question.command == "c7"
    assert await asked(pictures.timed(), "4", "K", "y") == []
    assert await asked(pictures.timed(), "@", "K", "y") == []


async def test_a_change_is_undone_from_its_flag_or_from_the_log() -> None:
    (question,) = await asked(pictures.timed(), "@", "G", "u", "r", "y", why="no use")
    assert isinstance(question, AskUndo)
    assert (question.command, question.why) == ("c7", "no use")
    (question,) = await asked(pictures.timed(), "4", "j", "j", "u", "y")
    assert isinstance(question, AskUndo)
    assert question.command == "c7"
    assert await asked(pictures.timed(), "@", "u", "y") == []


@pytest.mark.parametrize("keys", [("4", "j", "t"), ("4", "j", "K"), ("@", "G", "u"), ("p",), ("f",)])
@pytest.mark.parametrize("way_out", [("n",), ("escape",), ("enter",), ("q",), ("r", "y", "enter", "n")])
async def test_no_dialog_is_confirmed_by_an_accidental_key(keys: tuple[str, ...], way_out: tuple[str, ...]) -> None:
    view = pictures.timed()
    view.engines["e0"] = msgspec.structs.replace(view.engines["e0"], paused=False)
    client = HeldClient(view)
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        await pilot.press(*keys)
        await pilot.pause()
        assert isinstance(app.screen, Confirm | ConfirmPlain)
        await pilot.press(*way_out)
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert client.asked == []


async def test_letters_of_a_reason_are_no_keys_and_escape_only_leaves_it() -> None:
    client = HeldClient(pictures.healthy())
    async with dashboard(client, SIZE, control=True) as (app, pilot):
        await pilot.press("4", "t", "r", *"yes, now", "escape")
        await pilot.pause()
        assert app.screen.query_one("#why", Input).value == "yes, now"
        assert client.asked == []
        await pilot.press("y")
        await pilot.pause()
        (question,) = client.asked
        assert isinstance(question, AskSet)
        assert question.why == "yes, now"


@pytest.mark.parametrize("key", ["t", "K", "u", "p", "f"])
async def test_without_control_nothing_is_sent_and_the_view_explains_how(key: str) -> None:
    client = HeldClient(pictures.timed())
    async with dashboard(client, SIZE) as (app, pilot):
        await pilot.press("4", "j", key)
        assert NEEDS_CONTROL in [note.message for note in app._notifications]
        assert len(app.screen_stack) == 1
        assert client.asked == []
        await settle(app, pilot)
        assert "‖ read-only: on a live run, `rltop --control`" in screen_text(app)


async def test_rows_of_engines_are_folded_until_requested() -> None:
    view = pictures.healthy(engines=12)
    view.changes.clear()
    async with dashboard(HeldClient(view), SIZE) as (app, pilot):
        await pilot.press("4")
        assert "  e7 " not in screen_text(app)
        await pilot.press("e")
        assert "  e7 " in screen_text(app)
        await pilot.press("e")
        assert "  e7 " not in screen_text(app)
