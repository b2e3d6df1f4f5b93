"""When a verdict is worth waking somebody: one alarm per incident, raised late and ended clearly. Pure.

An incident is a stretch of steps in which something is wrong. It has one alarm, whatever else is found meanwhile: what
it is called follows the best cause there is, and only another layer is told anew. Somebody who is awake already does
not need a second alarm; somebody who is asleep is not woken by a step that looked odd.
"""

from __future__ import annotations

import msgspec

from rltop.backend.api.alarm import (
    CLEAR_AFTER,
    CLEARED,
    MAX_ALARMS,
    RAISED,
    RENAMED,
    REOPENED,
    Alarm,
    AlarmChange,
    fields_of,
)
from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Verdict

RAISE_AFTER = 2
"""Verdicts in a row that must name a fault: one odd step is none, and three are too late to be told within five."""

DOUBT_AFTER = 5
"""Likewise where causes fit and none stands out: a person is asked to run a probe, which is not urgent."""

RENAME_AFTER = 3
"""Verdicts in a row that must name another cause before an open alarm is called by it."""

REOPEN_WITHIN = 30
"""Steps after its end in which the same cause opens the old alarm again, and counts, instead of a new one."""


class Alarms:
    """The incidents of a run, from one verdict per step.

    Args:
        past: alarms that an earlier hub has raised, oldest first.
    """

    def __init__(self, past: list[Alarm] | None = None) -> None:
        self.all: dict[str, Alarm] = {alarm.id: alarm for alarm in past or []}
        self._bad: list[Cause] = []  # best causes of the last verdicts in a row that were not healthy
        self._sure = 0  # how many of these, the last ones in a row, named a fault
        self._changed: dict[str, Alarm] = {}

    @property
    def open(self) -> Alarm | None:
        """The alarm that is not over."""
        last = next(reversed(self.all.values()), None)
        return last if last is not None and last.cleared is None else None

    def take_changed(self) -> dict[str, Alarm]:
        """The alarms that are other than at the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def take(self, verdict: Verdict, now: float) -> AlarmChange | None:
        """The verdict after the next step; what it means for the alarm."""
        if verdict.step is None:
            return None
        if not verdict.causes:
            return self._none(verdict.step, now) if verdict.verdict == HEALTHY else None
        self._bad.append(verdict.causes[0])
        del self._bad[:-DOUBT_AFTER]
        self._sure = self._sure + 1 if verdict.verdict == FAULT else 0
        if (alarm := self.open) is None:
            return self._begins(verdict, now)
        return self._goes_on(self._put(msgspec.structs.replace(alarm, well=0)) if alarm.well else alarm, verdict, now)

    def acknowledge(self, alarm: str, who: str, now: float) -> Alarm:
        """Somebody has taken note. Raises ``ValueError`` if there is no such alarm, or it is over."""
        return self._put(msgspec.structs.replace(self._get(alarm), acknowledged=who, acknowledged_at=now))

    def silence(self, alarm: str, seconds: float, now: float) -> Alarm:
        """Tell nothing of it for so long; 0 ends that. Raises ``ValueError`` likewise."""
        return self._put(msgspec.structs.replace(self._get(alarm), silenced_until=now + seconds))

    def _begins(self, verdict: Verdict, now: float) -> AlarmChange | None:
        assert verdict.step is not None
        cause = verdict.causes[0]
        sure = self._sure >= RAISE_AFTER and {c.layer for c in self._bad[-RAISE_AFTER:]} == {cause.layer}
        if not sure and len(self._bad) < DOUBT_AFTER:
            return None
        last = next(reversed(self.all.values()), None)
        if last and last.cause == cause.id and verdict.step - (last.cleared_step or 0) <= REOPEN_WITHIN:
            opened = msgspec.structs.replace(
                last, cleared=None, cleared_step=None, again=last.again + 1, engines=cause.engines, sure=sure, well=0
            )
            return self._news(REOPENED, opened, now)
        name = f"a{int(last.id[1:]) + 1 if last else 1}"
        made = Alarm(id=name, sure=sure, raised=now, raised_step=verdict.step, **fields_of(cause))
        return self._news(RAISED, made, now)

    def _goes_on(self, alarm: Alarm, verdict: Verdict, now: float) -> AlarmChange | None:
        assert verdict.step is not None
        cause, before = verdict.causes[0], alarm
        surer = self._sure >= RAISE_AFTER and not alarm.sure
        alarm = msgspec.structs.replace(alarm, sure=alarm.sure or surer)
        others = [c.id for c in self._bad[-RENAME_AFTER:]]
        if cause.id != alarm.cause and (surer or others == [cause.id] * RENAME_AFTER):
            alarm = msgspec.structs.replace(alarm, **fields_of(cause))
        if (alarm.cause, alarm.sure) == (before.cause, before.sure):
            return None
        if alarm.layer != before.layer:  # not what was acknowledged
            alarm = msgspec.structs.replace(alarm, acknowledged="", acknowledged_at=None)
        return self._news(RENAMED, alarm, now, told=alarm.layer != before.layer or surer)

    def _none(self, step: int, now: float) -> AlarmChange | None:
        self._bad, self._sure = [], 0
        if (alarm := self.open) is None:
            return None
        alarm = self._put(msgspec.structs.replace(alarm, well=alarm.well + 1))
        if alarm.well < CLEAR_AFTER:
            return None
        return self._news(CLEARED, msgspec.structs.replace(alarm, cleared=now, cleared_step=step), now)

    def _news(self, what: str, alarm: Alarm, now: float, *, told: bool = True) -> AlarmChange:
        return AlarmChange(what, self._put(alarm), told and not alarm.is_muted(now))

    def _put(self, alarm: Alarm) -> Alarm:
        self.all[alarm.id] = self._changed[alarm.id] = alarm
        while len(self.all) > MAX_ALARMS:
            del self.all[next(iter(self.all))]
        return alarm

    def _get(self, alarm: str) -> Alarm:
        found = self.all.get(alarm)
        if found is None:
            raise ValueError(f"no alarm {alarm!r}; alarms: {', '.join(self.all) or 'none yet'}")
        if found.cleared is not None:
            raise ValueError(f"alarm {alarm} is over since step {found.cleared_step}")
        return found
