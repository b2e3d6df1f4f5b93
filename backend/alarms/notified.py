"""What somebody has been told of alarms, so that each news is told once, over pauses and new hubs too. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rltop.backend.api.alarm import CLEARED, RAISED, RENAMED, REOPENED, Alarm, AlarmChange


class NotificationHistory:
    """One listener's memory: a bell, a command, a webhook."""

    def __init__(self) -> None:
        self._told: dict[str, Alarm] = {}

    def fresh(self, alarms: Iterable[Alarm], now: float) -> list[AlarmChange]:
        """What is to be told of ``alarms``, which are as they stand now, oldest first.

        Nothing of what is acknowledged or silent; when a silence ends, what is still open is told then. Whoever was
        told that an alarm began is told that it ended.
        """
        news = []
        for alarm in alarms:
            before = self._told.get(alarm.id)
            if before is not None and before.raised != alarm.raised:  # of another history: the run began anew
                before = None
            what = _became(before, alarm)
            if what is None or (what != CLEARED and alarm.is_muted(now)):
                continue
            self._told[alarm.id] = alarm
            news.append(AlarmChange(what, alarm, told=True))
        return news


def _became(before: Alarm | None, alarm: Alarm) -> str | None:
    """What has become of it since it was told of; None: nothing that is worth telling."""
    if before is None:
        return RAISED if alarm.cleared is None else None
    if alarm.cleared is not None:
        return CLEARED if before.cleared is None else None
    if before.cleared is not None or alarm.again > before.again:
        return REOPENED
    return RENAMED if (before.layer, before.sure) != (alarm.layer, alarm.sure) else None
