"""Deduplicates alarm notifications per listener, across snoozes and hub restarts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rltop.backend.api.alarm import CLEARED, RAISED, RENAMED, REOPENED, Alarm, AlarmChange, name, same_family


class NotificationHistory:
    """The notifications that one listener has received: a bell, a command, a webhook."""

    def __init__(self) -> None:
        self._notified: dict[str, Alarm] = {}

    def new_changes(self, alarms: Iterable[Alarm], now: float) -> list[AlarmChange]:
        """The changes to notify the listener of, given the current ``alarms``, oldest first.

        Acknowledged and silenced alarms are left out; an alarm that is still open when its silence ends is reported
        then. The end of an alarm is always reported to a listener that was notified of its start.
        """
        changes = []
        for alarm in alarms:
            before = self._notified.get(alarm.id)
            if before is not None and before.raised != alarm.raised:  # the run was restarted
                before = None
            what = _change(before, alarm)
            if what is None or (what != CLEARED and alarm.is_muted(now)):
                continue
            self._notified[alarm.id] = alarm
            was = name(before) if before is not None and what == RENAMED else ""
            changes.append(AlarmChange(what, alarm, notifies=True, was=was))
        return changes


def _change(before: Alarm | None, alarm: Alarm) -> str | None:
    """How the alarm changed since the last notification; None if there is nothing to report."""
    if before is None:
        return RAISED if alarm.cleared is None else None
    if alarm.cleared is not None:
        return CLEARED if before.cleared is None else None
    if before.cleared is not None or alarm.again > before.again:
        return REOPENED
    return RENAMED if before.sure != alarm.sure or not same_family(before, alarm) else None
