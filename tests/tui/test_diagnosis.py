"""The Diagnosis view, the open alarm on every view, and the answers to an alarm."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from rltop.backend.api import Answer, AskAcknowledge, AskDiagnosis, AskProbe, AskSet, AskSilence, Question, Snapshot
from rltop.backend.api.probe_result import ProbeResult
from rltop.backend.api.verdict import Verdict
from rltop.tui.app import RltopApp
from rltop.tui.dialogs import notifications
from rltop.tui.dialogs.notifications import notification, probe_of
from rltop.tui.widgets import terminal
from tests.support import pictures, verdicts
from tests.support.pictures import HeldClient
from tests.support.screens import assert_as_saved, dashboard, screen_text, settle

SMALL, LARGE = (80, 24), (120, 40)

pytestmark = pytest.mark.usefixtures("utc")


@dataclass
class Hub(HeldClient):
    """A hub that has this verdict."""

    verdict: Verdict | None = None

    def ask(self, question: Question) -> None:
        super().ask(question)
        if isinstance(question, AskDiagnosis):
            found = self.verdict
            if found is not None and question.step is not None:
                found = msgspec.structs.replace(found, step=question.step)
            error = None if found is not None else "step 7 is not kept"
            self.answers[question.id] = Answer(question.id, error=error, diagnosis=found)

    def diagnoses(self) -> list[int | None]:
        return [question.step for question in self.asked if isinstance(question, AskDiagnosis)]


@pytest.mark.parametrize(
    ("name", "verdict", "size", "keys"),
    [
        ("diagnosis-80", verdicts.fault(), SMALL, ()),
        ("diagnosis-120", verdicts.fault(), LARGE, ()),
        ("diagnosis-healthy-80", verdicts.healthy(), SMALL, ()),
        ("diagnosis-undecided-80", verdicts.undecided(), SMALL, ("j",)),
        ("diagnosis-finding-80", verdicts.fault(), SMALL, ("tab", "enter")),
        ("diagnosis-cause-80", verdicts.fault(), SMALL, ("enter",)),
        ("diagnosis-remedy-80", verdicts.fault(), SMALL, ("r",)),
    ],
)
async def test_screen(name: str, verdict: Verdict, size: tuple[int, int], keys: tuple[str, ...]) -> None:
    shown = pictures.healthy() if verdict.verdict == "healthy" else verdicts.alarmed(sure=verdict.verdict == "fault")
    async with dashboard(Hub(cured(shown), verdict=verdict), size, control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        await pilot.press(*keys)
        await settle(app, pilot)
        assert_as_saved(app, name)


def cured(shown: Snapshot, value: str = "off") -> Snapshot:
    """The run with a switch that the remedy would turn on."""
    flags = {name: {**e.flags} for name, e in shown.engines.items()}
    for name, engine in shown.engines.items():
        flags[name]["update_clears_cache"] = msgspec.structs.replace(engine.flags["update_clears_cache"], value=value)
    engines = {n: msgspec.structs.replace(e, flags=flags[n]) for n, e in shown.engines.items()}
    return msgspec.structs.replace(shown, engines=engines)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("alarm-80", {}), ("alarm-acknowledged-80", {"acknowledged": "kim"})],
)
async def test_an_open_alarm_is_on_every_view(name: str, changes: dict[str, str]) -> None:
    async with dashboard(Hub(verdicts.alarmed(**changes), verdict=verdicts.fault()), SMALL) as (app, pilot):
        assert_as_saved(app, name)
        for key in "234":
            await pilot.press(key)
            await settle(app, pilot)
            assert "a1 stale-prefix-cache (C1) on all engines since step 14" in screen_text(app).splitlines()[1]


async def test_the_hub_is_queried_when_a_step_closes_and_when_the_cursor_moves() -> None:
    hub = Hub(pictures.healthy(20), verdict=verdicts.fault(19))
    async with dashboard(hub, SMALL) as (app, pilot):
        assert hub.diagnoses() == []
        await pilot.press("3")
        await settle(app, pilot)
        assert hub.diagnoses() == [None]
        hub.show(pictures.healthy(21))
        await settle(app, pilot)
        assert hub.diagnoses() == [None, None]
        await pilot.press("[")
        await settle(app, pilot)
        assert hub.diagnoses() == [None, None, 19]
        assert "as of step 19" in screen_text(app)
        await pilot.press("end", "space")
        hub.show(pictures.healthy(25))
        await settle(app, pilot)
        assert hub.diagnoses()[3:] == [None] or hub.diagnoses()[3:] == [20]


async def test_an_error_of_the_hub_is_shown() -> None:
    async with dashboard(Hub(pictures.healthy(), verdict=None), SMALL) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        assert "step 7 is not kept" in screen_text(app)


async def test_the_fix_is_sent_after_yes_and_not_after_no() -> None:
    hub = Hub(cured(verdicts.alarmed()), verdict=verdicts.fault())
    async with dashboard(hub, SMALL, control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        await pilot.press("r", "enter")  # the focus is on No
        await settle(app, pilot)
        assert not [one for one in hub.asked if isinstance(one, AskSet)]
        await pilot.press("r", "y")
        await settle(app, pilot)
        (asked,) = [one for one in hub.asked if isinstance(one, AskSet)]
        assert (asked.flag, asked.value, asked.engines) == ("update_clears_cache", "on", ["e0", "e1"])


@pytest.mark.parametrize("control", [True, False])
async def test_an_alarm_is_answered_with_two_keys_also_without_control(control: bool) -> None:
    hub = Hub(verdicts.alarmed(), verdict=verdicts.fault())
    async with dashboard(hub, SMALL, control=control) as (app, pilot):
        await pilot.press("a", "A")
        await settle(app, pilot)
    taken, silenced = hub.asked
    assert isinstance(taken, AskAcknowledge) and taken.alarm == "a1"
    assert isinstance(silenced, AskSilence) and silenced.seconds == notifications.SILENCE_S


async def test_keys_explain_a_missing_alarm_or_cause() -> None:
    async with dashboard(Hub(pictures.healthy(), verdict=verdicts.healthy()), SMALL, control=True) as (app, pilot):
        await pilot.press("a")
        await pilot.press("r")
        said = [notification.message for notification in app._notifications]
        assert said == ["no alarm is open", "select a cause in the Diagnosis view"]


async def test_the_confirming_probe_starts_after_yes_and_its_result_is_shown() -> None:
    hub = Hub(verdicts.alarmed(), verdict=verdicts.fault())
    async with dashboard(hub, LARGE, control=True) as (app, pilot):
        await pilot.press("3")
        await settle(app, pilot)
        await pilot.press("X")
        await settle(app, pilot)
        assert_as_saved(app, "diagnosis-probe-120")
        await pilot.press("y")
        await settle(app, pilot)
        (asked,) = [one for one in hub.asked if isinstance(one, AskProbe)]
        assert (asked.probe, asked.engines) == ("cache-salt", None)
        answer = ProbeResult("p1", "cache-salt", "P4", ["e0"], "differs", "hits are off by 0.2 nats", step=39)
        hub.show(msgspec.structs.replace(verdicts.alarmed(), probes={"p1": answer}))
        await settle(app, pilot)
        assert "result  after step 39: cache-salt differs: hits are off by 0.2 nats" in screen_text(app)


def test_a_probe_that_cannot_start_gives_the_reason() -> None:
    view = pictures.healthy(engines=1)
    for probe, said in (
        ("", "no probe is needed"),
        ("triad", "do it by hand"),
        ("canary-flip", "switch the flag on one engine"),
        ("cross-replica", "takes 2 live engines; there are 1"),
    ):
        with pytest.raises(ValueError, match=said):
            probe_of(msgspec.structs.replace(verdicts.STALE, probe=probe), view)


async def test_the_bell_rings_once_and_can_be_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    for bell, rung in ((True, ["bell"]), (False, [])):
        rings: list[str] = []
        monkeypatch.setattr(RltopApp, "bell", lambda _, rings=rings: rings.append("bell"))
        app = RltopApp(HeldClient(verdicts.alarmed()), "sort", bell=bell, clock=lambda: 100.0)
        async with app.run_test(size=SMALL) as pilot:
            await settle(app, pilot)
        assert rings == rung


def test_a_notification_is_one_sequence_that_carries_no_other() -> None:
    evil = verdicts.alarm(title="a\x1b]0;b\x07c;d")
    plain = notification(evil, "sort", {"TERM": "xterm"})
    assert plain.startswith("\x1b]9;rltop sort: a1 stale-prefix-cache") and plain.endswith("\x07")
    assert (plain.count("\x1b"), plain.count("\x07"), plain.count(";")) == (1, 1, 1)
    assert notification(evil, "sort", {"TERM": "foot"}).startswith("\x1b]777;notify;rltop;")
    inside = notification(evil, "sort", {"TERM": "screen", "TMUX": "x"})
    assert inside.startswith("\x1bPtmux;\x1b\x1b]9;") and inside.endswith("\x1b\\")


def test_without_a_terminal_nothing_is_sent() -> None:
    terminal.send(RltopApp(HeldClient(), "sort"), "\x07")
