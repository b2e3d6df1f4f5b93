"""The hub's event log and counters: numbers events, and limits how often recurring ones are reported. Pure."""

from __future__ import annotations

from rltop.backend import api
from rltop.backend.api.probe_result import ProbeResult

MAX_SKEW = 2
"""Engines whose policy versions differ by more than this cause a warning: a rolling update passes through 1."""

LOSS_EVENT_PERIOD_S = 10.0
"""Losses of one kind and source are reported at most this often; the counters include all of them."""

MAX_REASON = 300
"""Characters of the reason in the event about an invalid message."""


class EventLog:
    """Events that wait for the next frame, and the hub's counters.

    Attributes:
        counters: by name.
        last_step: the training step that new events are attributed to.
    """

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.last_step: int | None = None
        self._new: list[api.Event] = []
        self._next_number = 0
        self._losses: dict[str, tuple[float, int]] = {}  # by source and kind: time of the last event, number since
        self._audit_error = ""
        self._skewed = False

    def resume(self, past: api.Snapshot) -> None:
        """Continue the numbering of an earlier hub."""
        self._next_number = max((event.number for event in past.events), default=-1) + 1
        self.last_step = max(past.steps, default=None)

    def emit(
        self,
        now: float,
        severity: str,
        kind: str,
        text: str,
        *,
        engine: str | None = None,
        probe: ProbeResult | None = None,
    ) -> None:
        """Add an event."""
        self._new.append(api.Event(self._next_number, now, severity, kind, text, self.last_step, engine, probe))
        self._next_number += 1

    def take_new(self) -> list[api.Event]:
        """Return the events since the last call."""
        new, self._new = self._new, []
        return new

    def count(self, name: str, by: int = 1) -> None:
        """Raise a counter."""
        self.counters[name] = self.counters.get(name, 0) + by

    def invalid(self, reason: str, now: float) -> None:
        """Count a message that violates the wire protocol; the 1st, 2nd, 4th, 8th, ... is reported."""
        self.count("invalid")
        count = self.counters["invalid"]
        if count & (count - 1) == 0:
            self.emit(now, "warn", "invalid", f"invalid message ({count} so far): {reason[:MAX_REASON]}")

    def refused(self, reason: str, now: float) -> None:
        """Count a request or message of a peer that may not send it; the 1st, 2nd, 4th, 8th, ... is reported."""
        self.count("refused")
        count = self.counters["refused"]
        if count & (count - 1) == 0:
            self.emit(now, "warn", "refused", f"refused ({count} so far): {reason[:MAX_REASON]}")

    def fault(self, place: str, count: int, error: str, now: float) -> None:
        """Report contained exceptions: the 1st, 2nd, 4th, 8th, ... of a place."""
        if count & (count - 1) == 0:
            text = f"the hub contained an exception in {place} ({count} so far): {error[:MAX_REASON]}"
            self.emit(now, "error", api.FAULT_EVENT, f"{text}; figures may be incomplete, hub.log has the traceback")

    def messages_lost(self, source: str, lost: int) -> None:
        """Count lost messages of a source, for ``report_losses``."""
        self.count("lost_messages", lost)
        self._add_loss(f"messages of {source} were lost in transit", lost)

    def records_dropped(self, source: str, dropped: int) -> None:
        """Note that a collector dropped records (whole calls of a trainer), for ``report_losses``."""
        self._add_loss(f"records of {source} were dropped: its queue was full", dropped)

    def _add_loss(self, what: str, number: int) -> None:
        reported, unreported = self._losses.get(what, (float("-inf"), 0))
        self._losses[what] = reported, unreported + number

    def report_losses(self, now: float) -> None:
        """Report each kind of loss of a source, if its last report is old enough."""
        for what, (reported, unreported) in self._losses.items():
            if unreported and now - reported >= LOSS_EVENT_PERIOD_S:
                self._losses[what] = now, 0
                self.emit(now, "warn", "lost", f"{unreported} {what}")

    def report_skew(self, skew: int, now: float) -> None:
        """Report once that live engines differ by more than ``MAX_SKEW`` policy versions."""
        if skew > MAX_SKEW and not self._skewed:
            self.emit(now, "warn", "skew", f"live engines differ by {skew} policy versions")
        self._skewed = skew > MAX_SKEW

    def audit_written(self, error: str, waiting: int, now: float) -> None:
        """Report the first failure to write the audit log (``waiting`` lines are not on disk), and the recovery."""
        if error and not self._audit_error:
            self.emit(now, "error", "audit", f"the audit log can't be written, {waiting} lines wait: {error}")
        elif self._audit_error and not error:
            self.emit(now, "info", "audit", "the audit log is written again, nothing is missing")
        self._audit_error = error
