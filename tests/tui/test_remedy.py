"""The fix of a cause as a switch, and its status in the Diagnosis view until the alarm clears."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rltop.backend.api import AskSet, Change, Snapshot, change_key
from rltop.backend.api.verdict import Cause, Verdict
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.views.remedy import CURED_WITHIN, fix_of, fix_status
from tests.support import pictures, verdicts
from tests.support.screens import assert_as_saved, dashboard, screen_text, settle
from tests.tui.test_diagnosis import Hub

FLAG, VALUE = "update_clears_cache", "on"
SMALL = (80, 24)

replace = msgspec.structs.replace


def reading(value: str, shown: Snapshot | None = None) -> Snapshot:
    """A run of three engines, or this one, whose flag has this value on every engine."""
    shown = shown if shown is not None else pictures.healthy(engines=3)
    engines = {
        name: replace(engine, flags=engine.flags | {FLAG: replace(engine.flags[FLAG], value=value)})
        for name, engine in shown.engines.items()
    }
    return replace(shown, engines=engines)


def fix_changes(state: str, *, at_step: int = 30, wanted: str = VALUE, **facts: Any) -> list[Change]:
    """The fix as changes on each of three engines."""
    make = pictures.applied if state == "applied" else pictures.change
    values: dict[str, Any] = {"command": f"c{at_step}", "at_step": at_step} | facts
    if state != "applied":
        values["state"] = state
    return [make(name, FLAG, wanted, **values) for name in ("e0", "e1", "e2")]


def with_changes(shown: Snapshot, *changes: Change) -> Snapshot:
    return replace(shown, changes={change_key(change): change for change in changes})


def in_place(cause: Cause = verdicts.STALE) -> Cause:
    return replace(cause, command="", in_place=cause.command)


def labelled(cause: Cause, shown: Snapshot, *, step: int = 39, control: bool = True) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, text in fix_status(cause, shown, verdicts.fault(step), control=control):
        lines[name] = f"{lines[name]}; {text}" if name in lines else text
    return lines


def fix_parts(cause: Cause, value: str = "off") -> tuple[str, str, tuple[str, ...], str]:
    target, request = fix_of(cause, reading(value))
    return target.subject.name, request.choice.word, request.scope.engines, request.scope.name


def test_a_fix_is_parsed_for_the_fleet_and_for_engines() -> None:
    order = "rltop set update_clears_cache on"
    assert fix_parts(verdicts.STALE) == (FLAG, VALUE, ("e0", "e1", "e2"), "fleet")
    one = replace(verdicts.STALE, command=f"{order} --engine e1")
    assert fix_parts(one) == (FLAG, VALUE, ("e1",), "e1")
    two = replace(verdicts.STALE, command=f"{order} --engine e0 --engine e2")
    assert fix_parts(two) == (FLAG, VALUE, ("e0", "e2"), "e0, e2")
    flush = replace(verdicts.STALE, command="rltop flush")
    assert fix_parts(flush)[:2] == ("prefix cache", "flush")


def test_a_fix_that_cannot_be_applied_gives_the_reason() -> None:
    with pytest.raises(ValueError, match="no switch of rltop fixes this"):
        fix_parts(verdicts.PARTIAL)
    with pytest.raises(ValueError, match="is on on all engines already"):
        fix_parts(verdicts.STALE, "on")
    with pytest.raises(ValueError, match="`rltop set update_clears_cache on` is applied already"):
        fix_parts(in_place())


def test_an_available_fix_names_its_key_and_without_control_how_to_get_it() -> None:
    shown = reading("off")
    assert labelled(verdicts.STALE, shown) == {"command": "rltop set update_clears_cache on --run sort   (r)"}
    assert labelled(verdicts.STALE, shown, control=False)[""] == f"(r) {NEEDS_CONTROL}"


def test_a_running_fix_is_shown_by_engine_and_not_offered_again() -> None:
    changes = fix_changes("accepted")
    changes[2] = replace(changes[2], state="draining")
    lines = labelled(verdicts.STALE, with_changes(reading("off"), *changes))
    assert lines["requested"] == "update_clears_cache on after step 30 by ada: ◔ accepted on e0, e1; ◑ draining on e2"
    assert "between two of their steps" in lines["status"]
    assert "command" not in lines


def test_an_applied_fix_counts_the_steps_sampled_after_it() -> None:
    shown = with_changes(reading("on"), *fix_changes("applied", at_step=33))
    lines = labelled(in_place(), shown)
    assert lines["applied"] == "update_clears_cache on after step 33 by ada: ✔ applied on all engines"
    lags = {step: view_lag(shown, step) for step in range(34, 40)}
    mixed = max((step for step, lag in lags.items() if step - lag <= 33), default=33)
    assert lines["status"].startswith(f"{39 - mixed} steps sampled entirely after it")
    assert "command" not in lines
    assert labelled(in_place(), shown, step=33)["status"].startswith("0 steps sampled")


def view_lag(shown: Snapshot, step: int) -> float:
    return shown.steps[step].values["lag_max"] or 0.0


def test_a_fix_without_effect_is_reported() -> None:
    shown = with_changes(reading("on"), *fix_changes("applied", at_step=39 - CURED_WITHIN - 4))
    assert "this does not fix it" in labelled(in_place(), shown)["status"]


def test_a_refusal_gives_its_reason_the_launch_option_and_the_key_again() -> None:
    changes = fix_changes("refused", wanted="processed", reason="drafts are rejected by logprobs")
    changes = [replace(change, flag="logprobs_mode") for change in changes]
    raw = replace(verdicts.STALE, command="rltop set logprobs_mode processed")
    shown = pictures.healthy(engines=3)
    engines = {
        name: replace(e, flags=e.flags | {"logprobs_mode": replace(e.flags["logprobs_mode"], value="raw")})
        for name, e in shown.engines.items()
    }
    lines = labelled(raw, with_changes(replace(shown, engines=engines), *changes))
    assert lines["requested"].endswith("✖ refused on all engines")
    assert lines[""] == "drafts are rejected by logprobs"
    assert "--logprobs-mode processed_logprobs" in lines["status"]
    assert lines["command"].endswith("(r again)")


def test_an_undone_fix_counts_as_not_applied() -> None:
    undone = fix_changes("applied", at_step=36, wanted="off", target="c30", command="c36")
    lines = labelled(verdicts.STALE, with_changes(reading("off"), *fix_changes("applied"), *undone))
    assert {"applied", "requested"}.isdisjoint(lines)
    restarted = with_changes(reading("caller"), *fix_changes("applied"))
    assert labelled(verdicts.STALE, restarted) == {"command": "rltop set update_clears_cache on --run sort   (r)"}


def test_a_flag_that_had_the_value_already_is_no_fix() -> None:
    assert "is applied already and did not fix it" in labelled(in_place(), reading("on"))["command"]


def test_a_cause_without_a_switch_names_where_to_fix_it() -> None:
    lines = labelled(replace(verdicts.PARTIAL, engines=["e1"]), pictures.healthy(engines=3))
    assert lines["command"].startswith("no switch of rltop fixes this: apply the fix where engines")
    assert lines["where"].startswith("e1 is pid 4001 on node-a, at policy 40 of ")
    trainer = replace(verdicts.PARTIAL, engines=[], layer="trainer")
    assert labelled(trainer, pictures.healthy())["command"].endswith("apply the fix in the trainer")


@pytest.mark.parametrize(
    ("name", "verdict", "changes", "alarm"),
    [
        ("remedy-under-way-80", verdicts.fault(), fix_changes("accepted", at_step=39), {}),
        ("remedy-applied-80", replace(verdicts.fault(), causes=[in_place()]), fix_changes("applied", at_step=34), {}),
        (
            "remedy-refused-80", verdicts.fault(),
            fix_changes("refused", at_step=38, reason="a KV connector is there"), {},
        ),
        ("remedy-none-80", replace(verdicts.fault(), causes=[verdicts.PARTIAL]), [], {}),
        ("remedy-healthy-80", verdicts.healthy(), fix_changes("applied", at_step=34), {"well": 3}),
        (
            "remedy-over-80", verdicts.healthy(), fix_changes("applied", at_step=30),
            {"well": 5, "cleared": pictures.START + 180, "cleared_step": 39},
        ),
    ],
)  # fmt: skip
async def test_screen(name: str, verdict: Verdict, changes: list[Change], alarm: dict[str, Any]) -> None:
    applied = all(change.state == "applied" for change in changes) and bool(changes)
    shown = with_changes(reading("on" if applied else "off", verdicts.alarmed(**alarm)), *changes[:2])
    async with dashboard(Hub(shown, verdict=verdict), SMALL, control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        assert_as_saved(app, name)


async def test_the_reason_defaults_to_the_cause() -> None:
    hub = Hub(reading("off", verdicts.alarmed()), verdict=verdicts.fault())
    async with dashboard(hub, SMALL, control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        await pilot.press("r", "y")
        await pilot.press("r", "r", "end", *" 3am", "enter", "y")
        await settle(app, pilot)
        asked = [one for one in hub.asked if isinstance(one, AskSet)]
    assert [one.why for one in asked] == ["C1 stale-prefix-cache", "C1 stale-prefix-cache 3am"]


async def test_the_progress_of_a_fix_is_shown_before_the_next_step_closes() -> None:
    hub = Hub(reading("off", verdicts.alarmed()), verdict=verdicts.fault())
    async with dashboard(hub, (120, 40), control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        assert "requested" not in screen_text(app)
        assert hub.view is not None
        hub.show(with_changes(hub.view, *fix_changes("requested", at_step=39)[:2]))
        await settle(app, pilot)
        assert "requested  update_clears_cache on after step 39 by ada: ○ requested on all engines" in screen_text(app)
        assert len(hub.diagnoses()) == 1
