"""When a verdict becomes an alarm, what it is called, and when it is over."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rltop.backend.alarms import rules
from rltop.backend.alarms.rules import Alarms
from rltop.backend.api.alarm import (
    CLEAR_AFTER,
    CLEARED,
    RAISED,
    RENAMED,
    REOPENED,
    Alarm,
    AlarmChange,
    change_line,
    status_text,
    summary_line,
)
from rltop.backend.api.verdict import FAULT, HEALTHY, UNDECIDED, Cause, Finding, Verdict

STALE = Cause("stale-prefix", "C1", "inference path", "KV of older weights", "", 0.9, since_step=3)
PARTIAL = Cause("partial-sync", "B3", "weights", "part of the weights is not loaded", "", 0.9, since_step=3)
LYING = Cause("lying-replica", "B6", "weights", "an engine missed updates", "", 0.9, engines=["e1"])


def verdict(step: int, *causes: Cause, sure: bool = True) -> Verdict:
    """A verdict of a step: healthy without causes; if it is not ``sure``, the causes share what they explain."""
    shown = [c if sure else msgspec.structs.replace(c, confidence=0.7 / len(causes)) for c in causes]
    return Verdict("run", step, (FAULT if sure else UNDECIDED) if causes else HEALTHY, shown)


def alike(step: int, *causes: Cause) -> Verdict:
    """A verdict that is certain of a fault, and shares it between causes."""
    share = 0.94 / len(causes)
    return Verdict("run", step, UNDECIDED, [msgspec.structs.replace(c, confidence=share) for c in causes])


def run(alarms: Alarms, *verdicts: Verdict) -> list[AlarmChange]:
    """What comes of them, a minute apart."""
    said = [alarms.update(one, 60.0 * (one.step or 0)) for one in verdicts]
    return [news for news in said if news is not None]


def steps(first: int, count: int, *causes: Cause, sure: bool = True) -> list[Verdict]:
    """Verdicts of steps in a row."""
    return [verdict(step, *causes, sure=sure) for step in range(first, first + count)]


def raised(cause: Cause = STALE) -> tuple[Alarms, Alarm]:
    """Alarms with one open, since step 11."""
    alarms = Alarms()
    [news] = run(alarms, *steps(10, rules.RAISE_AFTER, cause))
    return alarms, news.alarm


def test_a_single_bad_step_raises_no_alarm() -> None:
    assert not run(Alarms(), verdict(1), verdict(2, STALE), verdict(3), verdict(4, STALE), verdict(5))


def test_an_alarm_names_the_cause_its_engines_and_since_when() -> None:
    [news] = run(Alarms(), *steps(10, 8, LYING))
    assert (news.what, news.notifies) == (RAISED, True)
    assert (news.alarm.cause, news.alarm.code, news.alarm.engines) == ("lying-replica", "B6", ["e1"])
    assert news.alarm.raised_step == 10 + rules.RAISE_AFTER - 1


def test_alternating_layers_take_as_long_as_an_undecided_verdict() -> None:
    flickering = [verdict(step, STALE if step % 2 else LYING) for step in range(rules.DOUBT_AFTER)]
    assert not run(Alarms(), *flickering[:-1])
    [news] = run(Alarms(), *flickering)
    assert not news.alarm.sure


def test_an_undecided_alarm_takes_longer_and_is_reported_again_when_certain() -> None:
    alarms = Alarms()
    [doubt] = run(alarms, *steps(0, rules.DOUBT_AFTER, PARTIAL, sure=False))
    assert (doubt.alarm.sure, doubt.alarm.raised_step) == (False, rules.DOUBT_AFTER - 1)
    [sure] = run(alarms, *steps(rules.DOUBT_AFTER, 3, STALE))
    assert (sure.what, sure.notifies, sure.alarm.id, sure.alarm.cause) == (RENAMED, True, doubt.alarm.id, STALE.id)


def test_no_cause_is_named_while_several_share_a_certain_fault() -> None:
    [news] = run(Alarms(), *(alike(step, PARTIAL, STALE, LYING) for step in range(10, 13)))
    alarm = news.alarm
    assert (alarm.raised_step, alarm.sure, alarm.cause, alarm.code) == (11, False, "", "")
    assert alarm.layer == "weights or inference path"
    assert [c.cause for c in alarm.candidates] == [PARTIAL.id, STALE.id, LYING.id]
    assert all(round(c.share, 2) == 0.31 for c in alarm.candidates)
    line = summary_line(alarm)
    assert "weights or inference path: partial-sync (B3) 31 %, stale-prefix (C1) 31 %" in line


def test_a_family_s_alarm_tells_the_probe_and_the_fix_that_covers_most() -> None:
    partial = msgspec.structs.replace(PARTIAL, probe="weight-digest", remedy="Send all tensors.")
    caches = [
        msgspec.structs.replace(STALE, id=name, code=code, command="rltop set update_clears_cache on")
        for name, code in (("stale-prefix", "C1"), ("kept-kv", "C2"))
    ]
    [news] = run(Alarms(), *(alike(step, partial, *caches) for step in range(2)))
    assert news.alarm.command == "rltop set update_clears_cache on"
    assert news.alarm.probe == "weight-digest"
    assert news.alarm.remedy.startswith("Find out which first: probe weight-digest")
    assert news.alarm.remedy.endswith("(C1 and C2, 63 %): `rltop set update_clears_cache on`")


def test_an_alarm_takes_a_name_when_a_cause_stands_out_and_says_what_it_was() -> None:
    alarms = Alarms()
    run(alarms, *(alike(step, PARTIAL, STALE) for step in range(2)))
    [named] = run(alarms, *steps(2, 4, STALE))
    assert (named.what, named.notifies, named.alarm.cause, named.alarm.sure) == (RENAMED, True, STALE.id, True)
    assert "(before: inference path or weights: stale-prefix (C1) 61 %, partial-sync (B3) 31 %)" in change_line(named)
    [ended] = run(alarms, *steps(10, CLEAR_AFTER))
    assert (ended.what, ended.alarm.cause, ended.alarm.candidates) == (CLEARED, STALE.id, [])


def test_an_alarm_loses_its_name_when_the_verdicts_move_and_name_none() -> None:
    alarms, _ = raised(PARTIAL)
    assert not run(alarms, *(alike(step, PARTIAL, STALE) for step in range(12, 30)))  # its cause is still the first
    assert not run(alarms, *(alike(step, STALE, LYING) for step in range(30, 30 + rules.DOUBT_AFTER - 1)))
    [moved] = run(alarms, *(alike(step, STALE, LYING) for step in range(50, 55)))
    assert (moved.what, moved.alarm.sure, moved.alarm.cause) == (RENAMED, False, "")
    assert PARTIAL.id not in [c.cause for c in moved.alarm.candidates]


def test_shares_are_kept_current_without_news() -> None:
    alarms = Alarms()
    run(alarms, *(alike(step, PARTIAL, STALE) for step in range(2)))
    alarms.take_changed()
    assert not run(alarms, *(alike(step, STALE, PARTIAL, LYING) for step in range(2, 9)))
    assert alarms.open is not None
    assert [c.cause for c in alarms.open.candidates] == [STALE.id, PARTIAL.id, LYING.id]
    assert list(alarms.take_changed()) == ["a1"]


def test_a_deviation_that_no_cause_explains_raises_an_alarm_too() -> None:
    odd = Finding("floor", "above", p=1e-12, since_step=4, text="k3 is 8e5")
    [news] = run(Alarms(), *(Verdict("run", step, UNDECIDED, [], [odd]) for step in range(9)))
    assert (news.alarm.layer, news.alarm.raised_step, news.alarm.since_step) == ("unexplained", 4, 4)
    assert news.alarm.evidence == ["k3 is 8e5"]


def test_too_little_data_neither_raises_nor_ends_an_alarm() -> None:
    unknown = [Verdict("run", step, UNDECIDED) for step in range(12, 40)]
    assert not run(Alarms(), *unknown)
    alarms, alarm = raised()
    assert not run(alarms, *unknown)
    assert alarms.open == alarm


def test_an_alarm_ends_after_healthy_steps_and_is_reported_once() -> None:
    alarms, alarm = raised()
    assert not run(alarms, *steps(12, CLEAR_AFTER - 1))
    [news] = run(alarms, *steps(20, 10))
    assert (news.what, news.alarm.id, news.alarm.cleared_step) == (CLEARED, alarm.id, 20)
    assert alarms.open is None


def test_a_rename_is_reported_only_if_the_layer_changes() -> None:
    alarms, _ = raised(PARTIAL)
    [same] = run(alarms, *steps(12, 4, LYING))
    assert (same.what, same.notifies, same.alarm.cause) == (RENAMED, False, LYING.id)
    alarms.acknowledge("a1", "kim", 0.0)
    [other] = run(alarms, *steps(16, 4, STALE))
    assert (other.notifies, other.alarm.acknowledged) == (True, "")


def test_the_same_cause_soon_after_reopens_the_alarm() -> None:
    alarms, alarm = raised()
    run(alarms, *steps(12, CLEAR_AFTER))
    [again] = run(alarms, *steps(20, 2, STALE))
    assert (again.what, again.alarm.id, again.alarm.again) == (REOPENED, alarm.id, 1)
    run(alarms, *steps(22, CLEAR_AFTER))
    [new] = run(alarms, *steps(22 + CLEAR_AFTER + rules.REOPEN_WITHIN, 2, STALE))
    assert (new.what, new.alarm.id) == (RAISED, "a2")


def test_acknowledged_and_silenced_alarms_send_no_notifications() -> None:
    alarms, alarm = raised()
    alarms.acknowledge(alarm.id, "kim", 700.0)
    [news] = run(alarms, *steps(12, CLEAR_AFTER))
    assert (news.notifies, news.alarm.acknowledged) == (False, "kim")
    alarms, alarm = raised()
    alarms.silence(alarm.id, 3600.0, 700.0)
    assert [n.notifies for n in run(alarms, *steps(12, CLEAR_AFTER))] == [False]


def test_a_silence_expires_and_zero_ends_it_at_once() -> None:
    alarms, alarm = raised()
    assert alarms.silence(alarm.id, 10.0, 700.0).is_muted(709.0)
    assert not alarms.silence(alarm.id, 10.0, 700.0).is_muted(711.0)
    assert not alarms.silence(alarm.id, 0.0, 700.0).is_muted(700.0)


def test_an_unknown_or_cleared_alarm_is_refused() -> None:
    alarms, alarm = raised()
    with pytest.raises(ValueError, match="no alarm 'a7'; alarms: a1"):
        alarms.acknowledge("a7", "kim", 0.0)
    run(alarms, *steps(12, CLEAR_AFTER))
    with pytest.raises(ValueError, match="a1 is over since step 16"):
        alarms.silence(alarm.id, 5.0, 0.0)


def test_a_new_hub_goes_on_from_the_alarms_of_the_last() -> None:
    alarms, alarm = raised()
    later = Alarms(list(alarms.all.values()))
    assert later.open == alarm
    [news] = run(later, *steps(12, CLEAR_AFTER))
    assert (news.what, news.alarm.id) == (CLEARED, alarm.id)


def test_healthy_steps_are_counted_and_a_bad_step_resets_the_count() -> None:
    alarms, _ = raised()
    assert not run(alarms, *steps(12, 3))
    assert alarms.open is not None
    assert (alarms.open.well, status_text(alarms.open, 0.0)) == (3, "open, healthy for 3 of 5 steps")
    assert list(alarms.take_changed()) == ["a1"]
    run(alarms, verdict(15, STALE))
    assert alarms.open.well == 0
    assert not run(alarms, *steps(16, CLEAR_AFTER - 1))
    later = Alarms(list(alarms.all.values()))  # a new hub does not count anew
    [news] = run(later, *steps(20, 1))
    assert news.what == CLEARED
    [again] = run(later, *steps(21, 2, STALE))
    assert (again.what, again.alarm.well) == (REOPENED, 0)


@given(st.lists(st.sampled_from([None, STALE, PARTIAL, LYING]), max_size=200), st.data())
def test_raised_and_cleared_alternate(causes: list[Cause | None], data: st.DataObject) -> None:
    alarms, told = Alarms(), []
    for step, cause in enumerate(causes):
        sure = data.draw(st.booleans()) if cause else True
        if news := alarms.update(verdict(step, *([cause] if cause else []), sure=sure), float(step)):
            told.append(news.what)
    ends = [what for what in told if what != RENAMED]
    assert [what == CLEARED for what in ends] == [bool(i % 2) for i in range(len(ends))]
    assert sum(alarm.cleared is None for alarm in alarms.all.values()) <= 1
