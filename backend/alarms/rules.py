"""Rules of alarms: one alarm per incident, with hysteresis at its start and end. Pure.

An incident is a stretch of steps in which something is wrong. It has one alarm, named after the best cause; listeners
are notified again only if the layer of the cause changes. A single unusual step raises no alarm.
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
"""Consecutive verdicts that must name a fault. One is not enough; three would exceed the target of five steps."""

DOUBT_AFTER = 5
"""Consecutive verdicts with causes of which none stands out: this calls for a probe, which is not urgent."""

RENAME_AFTER = 3
"""Consecutive verdicts that must name another cause before an open alarm is renamed."""

REOPEN_WITHIN = 30
"""Steps after its end within which the same cause reopens an alarm instead of raising a new one."""


class Alarms:
    """The alarms of a run, updated with one verdict per step.

    Args:
        past: alarms of earlier hubs, oldest first.
    """

    def __init__(self, past: list[Alarm] | None = None) -> None:
        self.all: dict[str, Alarm] = {alarm.id: alarm for alarm in past or []}
        self._bad: list[Cause] = []  # best causes of the latest consecutive verdicts that were not healthy
        self._sure = 0  # how many of the latest of these named a fault
        self._changed: dict[str, Alarm] = {}

    @property
    def open(self) -> Alarm | None:
        """The current alarm, if any."""
        last = next(reversed(self.all.values()), None)
        return last if last is not None and last.cleared is None else None

    def take_changed(self) -> dict[str, Alarm]:
        """The alarms that changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def update(self, verdict: Verdict, now: float) -> AlarmChange | None:
        """Apply the verdict of the next step; returns the change of an alarm, if any."""
        if verdict.step is None:
            return None
        if not verdict.causes:
            return self._on_healthy(verdict.step, now) if verdict.verdict == HEALTHY else None
        self._bad.append(verdict.causes[0])
        del self._bad[:-DOUBT_AFTER]
        self._sure = self._sure + 1 if verdict.verdict == FAULT else 0
        if (alarm := self.open) is None:
            return self._on_cause(verdict, now)
        return self._continue(self._set(msgspec.structs.replace(alarm, well=0)) if alarm.well else alarm, verdict, now)

    def acknowledge(self, alarm: str, who: str, now: float) -> Alarm:
        """Acknowledge an alarm. Raises ``ValueError`` if it is unknown or over."""
        return self._set(msgspec.structs.replace(self._get(alarm), acknowledged=who, acknowledged_at=now))

    def silence(self, alarm: str, seconds: float, now: float) -> Alarm:
        """Snooze an alarm; 0 ends the snooze. Raises ``ValueError`` if it is unknown or over."""
        return self._set(msgspec.structs.replace(self._get(alarm), silenced_until=now + seconds))

    def _on_cause(self, verdict: Verdict, now: float) -> AlarmChange | None:
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
            return self._change(REOPENED, opened, now)
        name = f"a{int(last.id[1:]) + 1 if last else 1}"
        alarm = Alarm(id=name, sure=sure, raised=now, raised_step=verdict.step, **fields_of(cause))
        return self._change(RAISED, alarm, now)

    def _continue(self, alarm: Alarm, verdict: Verdict, now: float) -> AlarmChange | None:
        assert verdict.step is not None
        cause, before = verdict.causes[0], alarm
        surer = self._sure >= RAISE_AFTER and not alarm.sure
        alarm = msgspec.structs.replace(alarm, sure=alarm.sure or surer)
        others = [c.id for c in self._bad[-RENAME_AFTER:]]
        if cause.id != alarm.cause and (surer or others == [cause.id] * RENAME_AFTER):
            alarm = msgspec.structs.replace(alarm, **fields_of(cause))
        if (alarm.cause, alarm.sure) == (before.cause, before.sure):
            return None
        if alarm.layer != before.layer:  # the acknowledgement was for another cause
            alarm = msgspec.structs.replace(alarm, acknowledged="", acknowledged_at=None)
        return self._change(RENAMED, alarm, now, notifies=alarm.layer != before.layer or surer)

    def _on_healthy(self, step: int, now: float) -> AlarmChange | None:
        self._bad, self._sure = [], 0
        if (alarm := self.open) is None:
            return None
        alarm = self._set(msgspec.structs.replace(alarm, well=alarm.well + 1))
        if alarm.well < CLEAR_AFTER:
            return None
        return self._change(CLEARED, msgspec.structs.replace(alarm, cleared=now, cleared_step=step), now)

    def _change(self, what: str, alarm: Alarm, now: float, *, notifies: bool = True) -> AlarmChange:
        return AlarmChange(what, self._set(alarm), notifies and not alarm.is_muted(now))

    def _set(self, alarm: Alarm) -> Alarm:
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
