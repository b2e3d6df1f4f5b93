"""The state machine of commands: one change per engine, from request to a terminal state. Pure.

``transitions.TRANSITIONS`` is the table of states; docs/protocols/command.md explains the guards. An engine closes its
own commands with a read-back. The hub closes those that it could not deliver, and those without an outcome by the
deadline; if the engine reports one later, that outcome counts. The commands of earlier hubs come from the audit log
(``restore``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.commands.events import ChangeClosed, CommandEvent, CommandRequested, HalfSwitched, is_half_switched
from rltop.backend.commands.transitions import CLOSED_BY_ENGINE, CLOSED_BY_HUB, NEW, TRANSITIONS, HubClosure
from rltop.backend.commands.validation import ChooseInputs, KnownFleet, commands_for
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB, subject_of
from rltop.collectors.contract.probes import BY_NAME as BY_PROBE
from rltop.collectors.contract.probes import HUB

GRACE_S = 2.0
"""Engines give up at the deadline themselves; the hub closes a change after this much more silence."""

STALL_S = 1.0
"""Ticks come several times a second; a longer gap means that this hub itself was stopped or starved."""

RESTORE_S = 10.0
"""An engine reports its open commands to a new hub within seconds; the others it never received, or lost with its
process."""


@dataclass(frozen=True, slots=True)
class DeliverCommand:
    """Send ``command`` to ``engine``."""

    engine: str
    command: wire.Command


class CommandLifecycle:
    """All commands of this hub and of earlier ones.

    Args:
        new_id: makes the id of a command.
        fleet: the known state of the engines.
        now: seconds.
        choose_inputs: see ``validation.commands_for``.
    """

    def __init__(
        self,
        new_id: Callable[[], str],
        fleet: KnownFleet,
        now: float,
        choose_inputs: ChooseInputs = lambda _probe, _on: {},
    ) -> None:
        self._choose_inputs = choose_inputs
        self._new_id = new_id
        self._fleet = fleet
        self._changes: dict[str, api.Change] = {}
        self._unacknowledged: dict[str, wire.Command] = {}  # sent by this hub, not reported by the engine yet
        self._deadlines: dict[str, float] = {}
        self._closed_by_hub: set[str] = set()
        self._by_question: dict[str, str] = {}
        self._dirty: dict[str, api.Change] = {}
        self._ticked = self._listens_until = now
        self._events: list[CommandEvent] = []

    # --- inputs -------------------------------------------------------------------------------------------------

    def restore(self, lines: Iterable[audit.AuditLine], now: float) -> None:
        """Load the log of earlier hubs. Closed changes are not logged again; open ones may still end."""
        lines = list(lines)
        self._changes = audit.changes_of(lines)
        self._dirty = dict(self._changes)
        for key, change in self._changes.items():
            if change.state not in api.TERMINAL:
                self._deadlines[key] = now + RESTORE_S
            elif change.engine_step is None:  # only engines set it: a hub closed this one
                self._closed_by_hub.add(key)
        reported = {line.command for line in lines if line.event == audit.HALF_SWITCHED}
        for command in self.commands():
            if command not in reported:
                self._report_half_switched(command)

    def is_known(self, question: str) -> bool:
        """Whether a question of this id has started a command."""
        return question in self._by_question

    def request(self, question: api.AskCommand, now: float, step: int | None) -> tuple[str, list[DeliverCommand]]:
        """Validate a request and start it. A repeated question returns the same command.

        Args:
            question: the request.
            now: seconds.
            step: last closed step.

        Returns:
            The command's id, and the messages to send.

        Raises:
            RejectedError: see ``validation.commands_for``.
        """
        if question.id in self._by_question:
            return self._by_question[question.id], []
        command = self._new_id()
        orders = commands_for(question, command, now + question.timeout_s, self._fleet, self, self._choose_inputs)
        self._remember(question.id, command)
        changes = [self._start(question, engine, order, now, step) for engine, order in orders.items()]
        self._events.append(CommandRequested(question, changes))
        for change in changes:
            if closure := self._closed_at_once(change):
                self._close_by_hub(change, closure, now)
        return command, [
            DeliverCommand(engine, order)
            for engine, order in orders.items()
            if f"{command}@{engine}" in self._unacknowledged
        ]

    def _start(
        self, question: api.AskCommand, engine: str, order: wire.Command, now: float, step: int | None
    ) -> api.Change:
        action = BY_VERB.get(order.verb)
        change = api.Change(
            order.id, engine, order.flag, action.value if action else order.value, "requested", now,
            who=question.who, host=question.host, why=question.why, step=step, verb=order.verb, strict=order.strict,
            revert_s=order.revert_s, target=order.target, reverts="" if order.verb == "keep" else order.target,
            probe=order.probe, author=question.author,
        )  # fmt: skip
        key = api.change_key(change)
        self._unacknowledged[key], self._deadlines[key] = order, order.deadline
        self._set(change)
        return change

    def _closed_at_once(self, change: api.Change) -> HubClosure | None:
        """Why a requested change is not sent to its engine, if it is not."""
        if change.probe and BY_PROBE[change.probe].executed_by == HUB:
            return HubClosure.ANSWERED_BY_HUB
        return None if self._fleet.health(change.engine) == "live" else HubClosure.ENGINE_NOT_LIVE

    def apply_update(self, update: wire.CommandUpdate, now: float) -> None:
        """Apply an engine's report. A report without an allowed transition is a repetition and changes nothing.

        An unknown id is an engine's own revert, or a command of an earlier hub that is in no log.
        """
        key = f"{update.id}@{update.engine}"
        known = self._changes.get(key)
        if update.state not in TRANSITIONS[self._state(key)].engine:
            return
        before = known or self._learned(update, now)
        terminal = update.state in api.TERMINAL
        change = msgspec.structs.replace(
            before,
            flag=update.flag or before.flag,
            wanted=before.wanted or (update.new or "" if update.verb == "set" else ""),
            state=update.state,
            reason=update.reason,
            old=before.old if update.old is None else update.old,
            new=update.new,
            engine_step=update.engine_step,
            policy_version=update.policy_version,
            in_flight=update.in_flight,
            lost_requests=update.lost_requests,
            milliseconds=update.milliseconds,
            closed=now if terminal else None,
            detail=update.detail,
            reverts_at=update.reverts_at,
            flag_epoch=update.flag_epoch,
        )
        self._unacknowledged.pop(key, None)
        if not terminal:
            self._set(change)
            return
        self._deadlines.pop(key, None)
        corrects = before.state if key in self._closed_by_hub else ""
        self._closed_by_hub.discard(key)
        if corrects == change.state:
            self._set(change)  # already logged and shown: only the engine's facts are new
        else:
            self._close(change, corrects)

    def _state(self, key: str) -> str:
        """The key of a change in ``TRANSITIONS``."""
        change = self._changes.get(key)
        if change is None:
            return NEW
        if change.state not in api.TERMINAL:
            return change.state if change.state in TRANSITIONS else "requested"  # the log of a later version
        return CLOSED_BY_HUB if key in self._closed_by_hub else CLOSED_BY_ENGINE

    def _learned(self, update: wire.CommandUpdate, now: float) -> api.Change:
        """A change that this hub did not request; an engine's own revert inherits who and host of its command."""
        parent = self._changes.get(f"{update.reverts}@{update.engine}")
        why, back_to = "requested through an earlier hub", None
        if parent is not None:
            why = "its timer expired" + (f" after {parent.revert_s:g} s" if parent.revert_s is not None else "")
            back_to = parent.old  # for engines whose collector does not say it
        action = BY_VERB.get(update.verb)
        wanted = action.value if action else update.wanted or update.new or back_to or ""
        return api.Change(
            update.id, update.engine, update.flag, wanted, "", update.time or now,
            who=parent.who if parent else "", host=parent.host if parent else "", why=why,
            author=parent.author if parent else None,
            verb=update.verb, reverts=update.reverts, old=parent.new if parent else None,
        )  # fmt: skip

    def not_delivered(self, engine: str, command: str, now: float) -> None:
        """Refuse a command that could not be delivered, unless the engine has reported it already."""
        change = self._changes.get(f"{command}@{engine}")
        if change is not None:
            self._close_by_hub(change, HubClosure.NOT_DELIVERED, now)

    def engine_ended(self, engine: str, closure: HubClosure, now: float) -> None:
        """Close the open changes of an engine whose process ended or was replaced."""
        for change in list(self._changes.values()):
            if change.engine == engine:
                self._close_by_hub(change, closure, now)

    def unacknowledged(self, engine: str) -> list[DeliverCommand]:
        """Commands to send again when an engine reconnects: those it has not reported. Engines know them by id.

        Only commands of this hub: it never executes a request to an earlier one.
        """
        return [
            DeliverCommand(engine, order)
            for key, order in self._unacknowledged.items()
            if self._changes[key].engine == engine
        ]

    def tick(self, now: float) -> None:
        """Close changes whose deadline has passed.

        After a stall of this hub, the reports that have piled up are processed first.
        """
        if now - self._ticked > STALL_S:
            self._listens_until = now + GRACE_S
        self._ticked = now
        if now < self._listens_until:
            return
        for key in [key for key, deadline in self._deadlines.items() if now > deadline + GRACE_S]:
            change = self._changes[key]
            self._close_by_hub(change, self._timeout_closure(change, ours=key in self._unacknowledged), now)

    # --- queries (``validation.CommandHistory``) ------------------------------------------------------------------

    def commands(self) -> list[str]:
        """Ids, oldest first."""
        return list(dict.fromkeys(change.command for change in self._changes.values()))

    def changes_of(self, command: str) -> list[api.Change]:
        """A command's changes, one per engine."""
        return [change for change in self._changes.values() if change.command == command]

    def open_change(self, engine: str, subject: str) -> api.Change | None:
        """The change of this subject that is in progress on this engine."""
        for change in reversed(self._changes.values()):
            same = change.engine == engine and subject_of(change.verb, change.flag) == subject
            if same and change.state not in api.TERMINAL:
                return change
        return None

    # --- outputs --------------------------------------------------------------------------------------------------

    def take_changed(self) -> list[api.Change]:
        """The changes that were modified since the last call, oldest first."""
        changed = list(self._dirty.values())
        self._dirty.clear()
        return changed

    def take_events(self) -> list[CommandEvent]:
        """The events since the last call, for the audit log and for people."""
        events, self._events = self._events, []
        return events

    # --- transitions ----------------------------------------------------------------------------------------------

    def _close_by_hub(self, change: api.Change, closure: HubClosure, now: float) -> None:
        """Close a change in the engine's place, if the table allows it."""
        key = api.change_key(change)
        if closure.state not in TRANSITIONS[self._state(key)].hub:
            return
        self._deadlines.pop(key, None)
        self._unacknowledged.pop(key, None)
        self._closed_by_hub.add(key)
        health = api.health_text(self._fleet.health(change.engine))
        reason = closure.reason(change.engine, change.state, health)
        new = self._fleet.reads(change.engine, subject_of(change.verb, change.flag))
        self._close(msgspec.structs.replace(change, state=closure.state, reason=reason, new=new, closed=now))

    def _close(self, change: api.Change, corrects: str = "") -> None:
        self._set(change)
        self._events.append(ChangeClosed(change, corrects))
        target = self._changes.get(f"{change.target}@{change.engine}")
        if change.verb == "keep" and change.state == "applied" and target is not None:
            self._set(msgspec.structs.replace(target, kept_by=target.kept_by or change.who, reverts_at=None))
        self._report_half_switched(change.command)

    def _report_half_switched(self, command: str) -> None:
        changes = self.changes_of(command)
        if all(change.state in api.TERMINAL for change in changes) and is_half_switched(changes):
            self._events.append(HalfSwitched(changes))

    def _timeout_closure(self, change: api.Change, *, ours: bool) -> HubClosure:
        if change.state != "requested":
            return HubClosure.NO_OUTCOME
        if ours:
            return HubClosure.UNACKNOWLEDGED
        if self._fleet.health(change.engine) != "live":
            return HubClosure.NOT_HEARD
        return HubClosure.UNKNOWN_TO_ENGINE

    # --- bounded memory -------------------------------------------------------------------------------------------

    def _set(self, change: api.Change) -> None:
        key = api.change_key(change)
        self._changes[key] = self._dirty[key] = change
        while len(self._changes) > api.MAX_CHANGES:
            oldest = next(iter(self._changes))
            del self._changes[oldest]
            for memory in (self._deadlines, self._unacknowledged):
                memory.pop(oldest, None)
            self._closed_by_hub.discard(oldest)

    def _remember(self, question: str, command: str) -> None:
        self._by_question[question] = command
        while len(self._by_question) > api.MAX_CHANGES:
            del self._by_question[next(iter(self._by_question))]
