"""Alarms as a hub keeps them: when it diagnoses, what it says of alarms, what goes to the audit log. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rltop.backend import api
from rltop.backend.alarms.rules import Alarms
from rltop.backend.api.alarm import CLEARED, RAISED, RENAMED, REOPENED, Alarm, summary_line
from rltop.backend.api.verdict import Verdict
from rltop.backend.commands import audit
from rltop.backend.diagnosis.diagnose import diagnose
from rltop.backend.evidence.diagnosis_input import DiagnosisInput
from rltop.backend.util.durations import span

PERIOD_S = 1.0
"""A verdict takes some 20 ms at 25 steps and 90 at 500, during which the hub does nothing else: one a second at most,
of the newest step. Where steps close faster, the rules of alarms count verdicts instead of steps."""

MAX_SILENCE_S = 7 * 86_400.0
"""The longest silence; what is to be silent for longer is to be acknowledged."""

SEVERITY = {RAISED: "error", REOPENED: "error", RENAMED: "warn", CLEARED: "info"}
"""Of the event that tells what became of an alarm; of one that is not sure, ``warn`` at most."""


@dataclass(frozen=True, slots=True)
class AlarmEvent:
    """An event to tell: its severity, text and engine."""

    severity: str
    text: str
    engine: str | None = None


class AlarmWatch:
    """The alarms of a hub.

    Args:
        hub: epoch of the hub.
        past: alarms of the hubs before it, oldest first.
    """

    def __init__(self, hub: str, past: Iterable[Alarm] = ()) -> None:
        self._hub = hub
        self._alarms = Alarms(list(past))
        self._closed: int | None = None  # a step that no verdict has seen
        self._looked = float("-inf")
        self._verdict: Verdict | None = None
        self._at_switches: dict[float, Verdict] = {}

    def step_closed(self, step: int) -> None:
        """There is a newer step to look at."""
        self._closed = step

    def look(self, case: Callable[[], DiagnosisInput], now: float) -> AlarmEvent | None:
        """Diagnose if there is something new and it is time. What is to be told of it."""
        if self._closed is None or now - self._looked < PERIOD_S:
            return None
        self._closed, self._looked = None, now  # first: a fault of ours must not come again with every tick
        self._verdict = diagnose(case(), self._at_switches)
        news = self._alarms.take(self._verdict, now)
        if news is None:
            return None
        alarm = news.alarm
        severity = SEVERITY[news.what] if alarm.sure or news.what == CLEARED else "warn"
        engine = alarm.engines[0] if len(alarm.engines) == 1 else None
        return AlarmEvent(severity, f"alarm {alarm.id} {news.what}: {summary_line(alarm)}", engine)

    def verdict(self, now: float) -> Verdict | None:
        """The verdict on the last step, if it is of this moment: viewers all ask for it at once."""
        return self._verdict if self._closed is None and now - self._looked < PERIOD_S else None

    def ask(
        self, question: api.AskAcknowledge | api.AskSilence, now: float, step: int | None
    ) -> tuple[Alarm, AlarmEvent, audit.AuditLine]:
        """Take note of an alarm, or silence it: what it is now, what to tell, and the line for the audit log.

        Raises:
            ValueError: there is no such alarm, or it is over, or the silence is longer than ``MAX_SILENCE_S``.
        """
        who = f"{question.who}@{question.host}"
        seconds = None
        if isinstance(question, api.AskAcknowledge):
            event, alarm = "acknowledged", self._alarms.acknowledge(question.alarm, question.who, now)
        else:
            event, seconds = audit.SILENCED, question.seconds
            if not 0 <= seconds <= MAX_SILENCE_S:
                raise ValueError(f"an alarm is silenced for 0 to {span(MAX_SILENCE_S)}, not for {seconds:g} s")
            alarm = self._alarms.silence(question.alarm, seconds, now)
        line = audit.AuditLine(
            at=audit.iso(now), time=now, event=event, command=alarm.id, engine="", verb="alarm", flag="",
            detail=alarm.cause, who=question.who, host=question.host, why=question.why, step=step, revert_s=seconds,
            requested=now, hub=self._hub,
        )  # fmt: skip
        length = "" if seconds is None else f" for {span(seconds)}" if seconds else " no more"
        because = f": {question.why}" if question.why else ""
        return alarm, AlarmEvent("info", f"alarm {alarm.id} {event}{length} by {who}{because}"), line

    def take_changed(self) -> dict[str, Alarm]:
        """See ``Alarms``."""
        return self._alarms.take_changed()
