"""An alarm's life in the hub: raised, shown, stored, answered, kept by a new hub, over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rltop.backend import api
from rltop.backend.alarms import monitor, rules
from rltop.backend.alarms.monitor import PERIOD_S, AlarmEvent, AlarmWatch
from rltop.backend.api.alarm import Alarm
from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Verdict
from rltop.backend.commands import audit
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.store.read import Reader
from rltop.backend.store.store import Store
from rltop.tui.cli.main import main
from tests.support import pictures, stored
from tests.support.fault_recordings import load, replay, seed_of
from tests.support.hub_core import Hub

STALE = Cause(
    "stale-prefix", "C1", "inference path", "KV of older weights", "", 0.9, since_step=3, engines=["e1"],
    evidence=["hits are worse by 0.04"], remedy="clear the cache", command="rltop set update_clears_cache on",
)  # fmt: skip


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """What the watch is told next, one after the other; the last stays."""
    found: list[Verdict] = [Verdict("run", 0, HEALTHY)]
    monkeypatch.setattr(monitor, "diagnose", lambda *_: found.pop(0) if len(found) > 1 else found[0])
    return found


def verdict(step: int, *causes: Cause) -> Verdict:
    return Verdict("run", step, FAULT if causes else HEALTHY, list(causes))


def case() -> DiagnosisInput:
    return DiagnosisInput("run", [])


def wrong(verdicts: list[Verdict], watched: AlarmWatch) -> AlarmEvent:
    """Let it raise an alarm."""
    verdicts[:] = [verdict(step, STALE) for step in range(rules.RAISE_AFTER + 1)]
    notes = []
    for step in range(rules.RAISE_AFTER):
        watched.step_closed(step)
        notes.append(watched.diagnose_if_due(case, 10.0 * step))
    (note,) = [note for note in notes if note]
    return note


def test_a_hub_diagnoses_once_a_step_and_once_a_period_at_most(verdicts: list[Verdict]) -> None:
    looked = []

    def counted() -> DiagnosisInput:
        looked.append(1)
        return case()

    watched = AlarmWatch("h")
    watched.diagnose_if_due(counted, 0.0)
    assert not looked
    for tenth in range(30):
        watched.step_closed(tenth)
        watched.diagnose_if_due(counted, tenth * PERIOD_S / 10)
    assert len(looked) == 3


def test_a_failed_diagnosis_is_not_retried_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(*_: object) -> Verdict:
        tried.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(monitor, "diagnose", failing)
    watched = AlarmWatch("h")
    watched.step_closed(1)
    with pytest.raises(ZeroDivisionError):
        watched.diagnose_if_due(case, 5.0)
    assert watched.diagnose_if_due(case, 50.0) is None
    assert len(tried) == 1


def test_the_event_names_cause_engine_and_step(verdicts: list[Verdict]) -> None:
    note = wrong(verdicts, AlarmWatch("h"))
    assert (note.severity, note.engine) == ("error", "e1")
    assert note.text == "alarm a1 raised: stale-prefix (C1) on e1 since step 3: KV of older weights"


def test_an_acknowledgement_is_logged_with_user_and_reason(verdicts: list[Verdict]) -> None:
    watched = AlarmWatch("h")
    wrong(verdicts, watched)
    alarm, note, line = watched.answer(api.AskAcknowledge("q", "a1", "kim", "node", "looking"), 100.0, 7)
    assert alarm.acknowledged == "kim"
    assert note.text == "alarm a1 acknowledged by kim@node: looking"
    said = audit.as_text(line)
    assert "acknowledged" in said and "[a1] by kim@node because 'looking'" in said
    alarm, note, line = watched.answer(api.AskSilence("q", "a1", 1800.0, "kim", "node"), 100.0, 7)
    assert alarm.silenced_until == 1900.0
    assert "silenced for 30m" in note.text and "for 1800 s" in audit.as_text(line)
    assert watched.answer(api.AskSilence("q", "a1", 0.0, "kim", "node"), 100.0, 7)[1].text.startswith(
        "alarm a1 silence ended by kim@node"
    )
    assert list(watched.take_changed()) == ["a1"]
    assert not watched.take_changed()
    assert not audit.changes_of([line])  # no command on an engine


@pytest.mark.parametrize("seconds", [-1.0, monitor.MAX_SILENCE_S + 1, float("nan")])
def test_a_silence_without_end_is_refused(verdicts: list[Verdict], seconds: float) -> None:
    watched = AlarmWatch("h")
    wrong(verdicts, watched)
    with pytest.raises(ValueError, match="silenced for 0 to 7d"):
        watched.answer(api.AskSilence("q", "a1", seconds), 100.0, None)


def test_a_recorded_fault_raises_one_alarm_that_viewers_see_and_a_new_hub_keeps() -> None:
    hub = replay(load("fault-lying-replica"), seed_of("fault-lying-replica"), every_s=4.0)
    (alarm,) = hub.picture.alarms.values()
    assert (alarm.cause, alarm.engines, hub.picture.alarm) == ("lying-replica", ["e1"], alarm)
    shown = api.Snapshot("run", "hub-1", 0, 1000.0, 1000.0)
    for frame in hub.frames:
        shown.seq = frame.seq - 1
        shown.apply(api.decode_frame(api.encode(frame)))
    assert shown.alarms == hub.picture.alarms
    assert next(event.severity for event in hub.picture.events if event.kind == "alarm") == "error"
    answer, _ = hub.ask(api.AskAcknowledge("q", alarm.id, "kim", "node"))
    assert answer.alarm is not None and answer.alarm.acknowledged == "kim"
    assert [line.event for line in hub.lines] == ["acknowledged"]
    hub.later()
    successor = Hub("hub-2", past=hub.picture)
    assert successor.picture.alarm == answer.alarm
    again, _ = successor.ask(api.AskSilence("q", alarm.id, 60.0, "kim", "node"))
    assert again.alarm is not None and again.alarm.acknowledged == "kim"


def test_a_step_is_judged_as_that_step_in_the_tick_that_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def looked(case: DiagnosisInput, _: object) -> Verdict:
        judged.append((case.steps[-1].step, case.evidence[-1].last))
        return verdict(case.steps[-1].step)

    monkeypatch.setattr(monitor, "diagnose", looked)
    hub = replay(load("fault-healthy"), seed_of("fault-healthy"), every_s=4.0)
    assert judged == [(step, step) for step in hub.picture.steps]


def test_a_healthy_recorded_run_raises_none() -> None:
    assert not replay(load("fault-healthy"), seed_of("fault-healthy"), every_s=4.0).picture.alarms


def test_an_unknown_alarm_is_refused_and_not_logged() -> None:
    hub = Hub()
    answer, _ = hub.ask(api.AskAcknowledge("q", "a9"))
    assert answer.error == "no alarm 'a9'; alarms: none yet"
    assert not hub.lines


def alarm(**changes: object) -> Alarm:
    base = {
        "id": "a1", "cause": "stale-prefix", "code": "C1", "layer": "inference path", "title": "KV of older weights",
        "sure": True, "raised": pictures.START, "raised_step": 14, "engines": ["e0", "e1"], "since_step": 12,
        "evidence": ["seen"], "remedy": "clear it", "command": "rltop set update_clears_cache on",
    }  # fmt: skip
    return Alarm(**(base | changes))  # type: ignore[arg-type]


def test_a_store_returns_alarms_as_of_any_moment(tmp_path: Path) -> None:
    stages = [
        alarm(), alarm(acknowledged="kim", acknowledged_at=5.5, silenced_until=9.0),
        alarm(cleared=7.0, cleared_step=30), alarm(id="a2", sure=False, engines=[], since_step=None),
    ]  # fmt: skip
    frames = [api.Frame("h", n, float(n), alarms={one.id: one}) for n, one in enumerate(stages, 1)]
    path = stored.store(tmp_path, frames)
    for until in range(1, 5):
        assert (
            stored.picture(path, until).alarms
            == stored.live([api.Frame("hub-1", f.seq, f.time, alarms=f.alarms) for f in frames[:until]]).alarms
        )
    with Reader(path) as reader:
        assert [frame.alarms for frame in reader.frames()] == [frame.alarms for frame in frames]


def test_the_command_line_lists_alarms_of_a_stored_run(tmp_path: Path) -> None:
    path = stored.store(tmp_path, [api.Frame("h", 1, 1.0, alarms={"a1": alarm()})])
    result = CliRunner().invoke(main, ["alarms", str(path)])
    assert result.exit_code == 1
    assert "open: stale-prefix (C1) on e0, e1 since step 12: KV of older weights" in result.output
    assert "rltop set update_clears_cache on --run run" in result.output
    told = json.loads(CliRunner().invoke(main, ["alarms", str(path), "--json"]).output)
    assert [one["id"] for one in told["alarms"]] == ["a1"]
    (tmp_path / "fine").mkdir()
    fine = CliRunner().invoke(main, ["alarms", str(stored.store(tmp_path / "fine", stored.frames(3)))])
    assert (fine.exit_code, fine.output) == (0, "run run: no alarms\n")


def test_a_hub_that_was_killed_leaves_the_open_alarm_to_the_next(tmp_path: Path) -> None:
    first = Store(tmp_path, "run", "hub-1", 1000.0)
    first.start()
    first.put(api.Frame("hub-1", 1, 1001.0, alarms={"a1": alarm()}))
    assert first.settle(10.0) == 0  # what a viewer is shown next is on disk
    past = Store(tmp_path, "run", "hub-2", 1002.0).past()
    first.end()
    second = Hub("hub-2", past=past)
    assert second.picture.alarm == alarm()
    answer, _ = second.ask(api.AskAcknowledge("q", "a1", "kim", "node"))
    assert answer.alarm is not None
    second.later()
    assert second.frames[-1].alarms == {"a1": answer.alarm}
