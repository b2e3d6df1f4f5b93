"""Rules of alarms: one alarm per incident, with hysteresis at its start and end. Pure.

An incident is a stretch of steps in which something is wrong. It has one alarm, named after a cause only if verdicts
name that cause as the fault, else after the family of the causes that fit (``naming``). Listeners are notified again if
a cause begins or ceases to stand out, or the layer changes. A single unusual step raises no alarm.
"""

from __future__ import annotations

from typing import Any

import msgspec

from rltop.backend.alarms.naming import is_certain, is_wrong, of_cause, of_family
from rltop.backend.api.alarm import (
    CLEAR_AFTER,
    CLEARED,
    MAX_ALARMS,
    RAISED,
    RENAMED,
    REOPENED,
    Alarm,
    AlarmChange,
    name,
    same_causes,
    same_family,
)
from rltop.backend.api.verdict import FAULT, HEALTHY, Cause, Verdict

RAISE_AFTER = 2
"""Consecutive verdicts that must be certain of a fault. One is not enough; three would exceed the target of five
steps."""

DOUBT_AFTER = 5
"""Consecutive verdicts that report something wrong without certainty: this calls for a probe, which is not urgent. Also
those that must name no cause, none of them the alarm's as the first, before the alarm loses its name."""

RENAME_AFTER = 3
"""Consecutive verdicts that must name another cause before an open alarm that has a cause is renamed."""

REOPEN_WITHIN = 30
"""Steps after its end within which the same cause reopens an alarm instead of raising a new one."""


class Alarms:
    """The alarms of a run, updated with one verdict per step.

    Args:
        past: alarms of earlier hubs, oldest first.
    """

    def __init__(self, past: list[Alarm] | None = None) -> None:
        self.all: dict[str, Alarm] = {alarm.id: alarm for alarm in past or []}
        self._bad: list[Verdict] = []  # the latest consecutive verdicts that report something wrong
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
        if verdict.verdict == HEALTHY:
            return self._on_healthy(verdict.step, now)
        if not is_wrong(verdict):
            return None
        self._bad.append(verdict)
        del self._bad[:-DOUBT_AFTER]
        if (alarm := self.open) is None:
            return self._raise(verdict.step, now)
        return self._continue(self._set(msgspec.structs.replace(alarm, well=0)) if alarm.well else alarm, now)

    def acknowledge(self, alarm: str, who: str, now: float) -> Alarm:
        """Acknowledge an alarm. Raises ``ValueError`` if it is unknown or over."""
        return self._set(msgspec.structs.replace(self._get(alarm), acknowledged=who, acknowledged_at=now))

    def silence(self, alarm: str, seconds: float, now: float) -> Alarm:
        """Snooze an alarm; 0 ends the snooze. Raises ``ValueError`` if it is unknown or over."""
        return self._set(msgspec.structs.replace(self._get(alarm), silenced_until=now + seconds))

    def _raise(self, step: int, now: float) -> AlarmChange | None:
        cause = self._sure_cause(RAISE_AFTER)
        certain = len(self._bad) >= RAISE_AFTER and all(map(is_certain, self._bad[-RAISE_AFTER:]))
        if not (cause or (certain and self._agree())) and len(self._bad) < DOUBT_AFTER:
            return None
        last = next(reversed(self.all.values()), None)
        number = int(last.id[1:]) + 1 if last else 1
        new = Alarm(id=f"a{number}", raised=now, raised_step=step, **(of_cause(cause) if cause else self._family()))
        if last and same_causes(last, new) and step - (last.cleared_step or 0) <= REOPEN_WITHIN:
            opened = msgspec.structs.replace(
                new, id=last.id, raised=last.raised, raised_step=last.raised_step, again=last.again + 1,
                acknowledged=last.acknowledged, acknowledged_at=last.acknowledged_at,
                silenced_until=last.silenced_until,
            )  # fmt: skip
            return self._change(REOPENED, opened, now)
        return self._change(RAISED, new, now)

    def _continue(self, alarm: Alarm, now: float) -> AlarmChange | None:
        named = self._renamed(alarm)
        if named == alarm:
            return None
        if named.sure == alarm.sure and (named.cause == alarm.cause if alarm.sure else same_family(named, alarm)):
            self._set(named)  # the same name with newer figures
            return None
        notifies = named.sure != alarm.sure or not same_family(named, alarm)
        if not same_family(named, alarm):  # the acknowledgement was for another cause
            named = msgspec.structs.replace(named, acknowledged="", acknowledged_at=None)
        return self._change(RENAMED, named, now, notifies=notifies, was=name(alarm))

    def _renamed(self, alarm: Alarm) -> Alarm:
        """The alarm as the latest verdicts call it."""
        cause = self._sure_cause(RAISE_AFTER)
        if cause is not None and alarm.sure and cause.id != alarm.cause:
            cause = self._sure_cause(RENAME_AFTER, same=True)
        if cause is not None and cause.id == alarm.cause and alarm.sure:
            return msgspec.structs.replace(alarm, engines=cause.engines, since_step=cause.since_step)
        if cause is not None:
            return msgspec.structs.replace(alarm, **of_cause(cause))
        if not alarm.sure or self._moved(alarm.cause):
            return msgspec.structs.replace(alarm, **self._family())
        return alarm

    def _sure_cause(self, count: int, *, same: bool = False) -> Cause | None:
        """The cause that the last ``count`` verdicts name, all in one layer or all the same; None without one."""
        if len(self._bad) < count or any(v.verdict != FAULT or not v.causes for v in self._bad[-count:]):
            return None
        causes = [verdict.causes[0] for verdict in self._bad[-count:]]
        return causes[-1] if len({cause.id if same else cause.layer for cause in causes}) == 1 else None

    def _agree(self) -> bool:
        """Whether the last verdicts have a cause in common."""
        named = [{cause.id for cause in verdict.causes} for verdict in self._bad[-RAISE_AFTER:]]
        return bool(set.intersection(*named))

    def _moved(self, cause: str) -> bool:
        """Whether the latest verdicts name no cause, and another one than ``cause`` comes first."""
        return len(self._bad) == DOUBT_AFTER and not any(
            verdict.verdict == FAULT or (verdict.causes and verdict.causes[0].id == cause) for verdict in self._bad
        )

    def _family(self) -> dict[str, Any]:
        return of_family(self._bad)

    def _on_healthy(self, step: int, now: float) -> AlarmChange | None:
        self._bad = []
        if (alarm := self.open) is None:
            return None
        alarm = self._set(msgspec.structs.replace(alarm, well=alarm.well + 1))
        if alarm.well < CLEAR_AFTER:
            return None
        return self._change(CLEARED, msgspec.structs.replace(alarm, cleared=now, cleared_step=step), now)

    def _change(self, what: str, alarm: Alarm, now: float, *, notifies: bool = True, was: str = "") -> AlarmChange:
        return AlarmChange(what, self._set(alarm), notifies and not alarm.is_muted(now), was)

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
