"""The alarms of a hub: when to diagnose, and the events and audit lines of alarms. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rltop.backend import api
from rltop.backend.alarms.naming import is_certain
from rltop.backend.alarms.rules import Alarms
from rltop.backend.api.alarm import CLEARED, RAISED, RENAMED, REOPENED, Alarm, change_line, name
from rltop.backend.api.verdict import Verdict
from rltop.backend.commands import audit
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.util.durations import span

PERIOD_S = 1.0
"""Least time between verdicts. A verdict takes some 20 ms at 25 steps and 90 ms at 500, during which the hub is
busy. If steps close faster, the rules of alarms count verdicts instead of steps."""

MAX_SILENCE_S = 7 * 86_400.0
"""The longest snooze; acknowledge an alarm to silence it for longer."""

SEVERITY = {RAISED: "error", REOPENED: "error", RENAMED: "warn", CLEARED: "info"}
"""Severity of the event by change; at most ``warn`` where it is not certain that anything is wrong."""


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """An event to publish."""

    severity: str
    text: str
    engine: str | None = None


class AlarmWatch:
    """The alarms of a hub.

    Args:
        hub: epoch of the hub.
        past: alarms of earlier hubs of the run, oldest first.
    """

    def __init__(self, hub: str, past: Iterable[Alarm] = ()) -> None:
        self._hub = hub
        self._alarms = Alarms(list(past))
        self._closed: int | None = None  # a step without a verdict
        self._diagnosed = float("-inf")
        self._verdict: Verdict | None = None
        self._at_switches: dict[float, Verdict] = {}

    def step_closed(self, step: int) -> None:
        """Record a step that needs a verdict."""
        self._closed = step

    def diagnose_if_due(self, run: Callable[[], DiagnosisInput], now: float) -> AlarmEvent | None:
        """Diagnose if a step has closed and the period is over; returns the event of a changed alarm."""
        if self._closed is None or now - self._diagnosed < PERIOD_S:
            return None
        self._closed, self._diagnosed = None, now  # first, so that an exception does not recur with every tick
        self._verdict = diagnose(run(), self._at_switches)
        change = self._alarms.update(self._verdict, now)
        if change is None:
            return None
        alarm = change.alarm
        certain = alarm.sure or is_certain(self._verdict) or change.what == CLEARED
        severity = SEVERITY[change.what] if certain else "warn"
        engine = alarm.engines[0] if len(alarm.engines) == 1 else None
        return AlarmEvent(severity, change_line(change), engine)

    def verdict(self, now: float) -> Verdict | None:
        """The verdict on the last step, if it is recent: all viewers request it at once."""
        return self._verdict if self._closed is None and now - self._diagnosed < PERIOD_S else None

    def answer(
        self, question: api.AskAcknowledge | api.AskSilence, now: float, step: int | None
    ) -> tuple[Alarm, AlarmEvent, audit.AuditLine]:
        """Acknowledge or silence an alarm; returns the changed alarm, an event and a line for the audit log.

        Raises:
            ValueError: the alarm is unknown or over, or the silence is longer than ``MAX_SILENCE_S``.
        """
        who = api.signature(question.who, question.host, question.author)
        seconds = None
        if isinstance(question, api.AskAcknowledge):
            event, alarm = "acknowledged", self._alarms.acknowledge(question.alarm, _acknowledger(question), now)
        else:
            event, seconds = audit.SILENCED, question.seconds
            if not 0 <= seconds <= MAX_SILENCE_S:
                raise ValueError(f"an alarm can be silenced for 0 to {span(MAX_SILENCE_S)}, not for {seconds:g} s")
            alarm = self._alarms.silence(question.alarm, seconds, now)
        line = audit.AuditLine(
            at=audit.iso(now), time=now, event=event, command=alarm.id, engine="", verb="alarm", flag="",
            detail=name(alarm), who=question.who, host=question.host, why=question.why, step=step, revert_s=seconds,
            requested=now, hub=self._hub, author=question.author,
        )  # fmt: skip
        action = "silence ended" if seconds == 0 else f"{event} for {span(seconds)}" if seconds else event
        reason = f": {question.why}" if question.why else ""
        return alarm, AlarmEvent("info", f"alarm {alarm.id} {action} by {who}{reason}"), line

    def take_changed(self) -> dict[str, Alarm]:
        """The alarms that changed since the last call."""
        return self._alarms.take_changed()


def _acknowledger(question: api.AskAcknowledge) -> str:
    """The user, and whom they claimed to be."""
    claimed = question.author.claimed if question.author is not None else ""
    return f"{question.who} (claims to be {claimed})" if claimed else question.who
