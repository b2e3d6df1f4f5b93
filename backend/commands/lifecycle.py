"""Commands, from a person's wish to a closed record on every engine. Pure.

requested > accepted > (draining) > (running, a probe) > applied | refused | timed out | superseded.
An engine closes its own commands with a read-back; the hub closes those that it could not bring to an engine, or that
no engine spoke of by the deadline. Should the engine speak after that, its word counts. What an earlier hub did is read
from the audit log (``restore``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.commands.messages import FlagEvent, asked, half_switched, news_of
from rltop.backend.commands.validation import Choose, KnownFleet, RejectedError, orders_of
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB, subject_of
from rltop.collectors.contract.probes import BY_NAME as BY_PROBE
from rltop.collectors.contract.probes import HUB

GRACE_S = 2.0
"""The engine itself gives up at the deadline; only silence beyond it is closed here."""

GAP_S = 1.0
"""Ticks come several times a second; after so long without one this hub itself was away."""

RESTORE_S = 10.0
"""An engine greets a new hub within seconds, with all that it has under way: what it does not name then, it never had,
or forgot with its life."""

_ORDER = {"requested": 0, "accepted": 1, "draining": 2, "running": 3}

EARLIER = "asked of an earlier hub"


@dataclass(frozen=True, slots=True)
class DeliverCommand:
    """Bring ``command`` to ``engine``."""

    engine: str
    command: wire.Command


class CommandLifecycle:
    """All commands of this hub, and those of earlier ones.

    Args:
        hub: epoch of this hub.
        new_id: makes the id of a command.
        fleet: what is known of the engines.
        now: seconds.
        passages: see ``wishes.orders_of``.
    """

    def __init__(
        self,
        hub: str,
        new_id: Callable[[], str],
        fleet: KnownFleet,
        now: float,
        passages: Choose = lambda _probe, _on: {},
    ) -> None:
        self._passages = passages
        self._hub = hub
        self._new_id = new_id
        self._fleet = fleet
        self._changes: dict[str, api.Change] = {}
        self._orders: dict[str, wire.Command] = {}  # that this hub sent, and whose engine has not spoken
        self._deadlines: dict[str, float] = {}
        self._closed_here: set[str] = set()
        self._asked: dict[str, str] = {}
        self._dirty: dict[str, api.Change] = {}
        self._ticked = self._hears_until = now
        self._lines: list[audit.AuditLine] = []
        self._news: list[FlagEvent] = []

    # --- what comes in ------------------------------------------------------------------------------------------

    def restore(self, lines: Iterable[audit.AuditLine], now: float) -> None:
        """Take in the log of earlier hubs: what is closed there is not logged again, what is open may still end."""
        lines = list(lines)
        self._changes = audit.changes_of(lines)
        self._dirty = dict(self._changes)
        for key, change in self._changes.items():
            if change.state not in api.TERMINAL:
                self._deadlines[key] = now + RESTORE_S
            elif change.engine_step is None:  # closed by a hub; the engine's own word, should it still come, counts
                self._closed_here.add(key)
        told = {line.command for line in lines if line.event == audit.HALF}
        for command in self.commands():
            if command not in told:
                self._judge(command, now)

    def ask(self, question: api.AskCommand, now: float, step: int | None) -> tuple[str, list[DeliverCommand]]:
        """Check a wish and start it. Returns the command's id and what to send; the same question twice is one.

        Args:
            question: the wish.
            now: seconds.
            step: last closed step.

        Raises:
            RejectedError: see ``wishes.orders_of``.
        """
        if question.id in self._asked:
            return self._asked[question.id], []
        command = self._new_id()
        found = orders_of(question, command, now + question.timeout_s, self._fleet, self, self._passages)
        self._remember(question.id, command)
        self._news.append(asked(question, list(found)))
        changes = [self._begin(question, engine, order, now, step) for engine, order in found.items()]
        sent = []
        for change in changes:
            health = self._fleet.health(change.engine)
            if change.probe and BY_PROBE[change.probe].by == HUB:
                self._close_here(change, "applied", "the hub answers it", now)
            elif health == "live":
                sent.append(DeliverCommand(change.engine, found[change.engine]))
            else:
                self._close_here(change, "refused", f"engine {change.engine} is {health}; nothing was sent", now)
        return command, sent

    def _begin(
        self, question: api.AskCommand, engine: str, order: wire.Command, now: float, step: int | None
    ) -> api.Change:
        action = BY_VERB.get(order.verb)
        change = api.Change(
            order.id, engine, order.flag, action.value if action else order.value, "requested", now,
            who=question.who, host=question.host, why=question.why, step=step, verb=order.verb, strict=order.strict,
            revert_s=order.revert_s, target=order.target, reverts="" if order.verb == "keep" else order.target,
            probe=order.probe,
        )  # fmt: skip
        key = api.change_key(change)
        self._orders[key], self._deadlines[key] = order, order.deadline
        self._set(change)
        self._log(change, now)
        return change

    def update(self, update: wire.CommandUpdate, now: float) -> None:
        """An engine's word on a command; one that says nothing new changes nothing.

        An id that this hub does not know is an engine's own revert, or a command of an earlier hub that is in no log.
        """
        key = f"{update.id}@{update.engine}"
        before = self._changes.get(key) or self._learned(update, now)
        terminal = update.state in api.TERMINAL
        if before.state in api.TERMINAL:
            if not terminal or key not in self._closed_here:
                return
        elif not terminal and _ORDER.get(update.state, -1) <= _ORDER.get(before.state, -1):
            return
        change = msgspec.structs.replace(
            before,
            flag=update.flag or before.flag,
            wanted=before.wanted or (update.new or "" if update.verb == "set" else ""),
            state=update.state,
            reason=update.reason,
            old=update.old,
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
        self._orders.pop(key, None)  # it has it
        if not terminal:
            self._set(change)
            return
        self._deadlines.pop(key, None)
        corrects = before.state if key in self._closed_here else ""
        self._closed_here.discard(key)
        if corrects == change.state:
            self._set(change)  # what was told is right; now it is known from the engine
        else:
            self._close(change, now, corrects)

    def _learned(self, update: wire.CommandUpdate, now: float) -> api.Change:
        """A change this hub did not ask for; of an engine's own revert, who and why are those of what it reverts."""
        parent = self._changes.get(f"{update.reverts}@{update.engine}")
        why = EARLIER
        if parent is not None:
            why = f"its {parent.revert_s:g} s are over" if parent.revert_s is not None else "its time is over"
        action = BY_VERB.get(update.verb)
        return api.Change(
            update.id, update.engine, update.flag, action.value if action else update.new or "", "", update.time or now,
            who=parent.who if parent else "", host=parent.host if parent else "", why=why,
            verb=update.verb, reverts=update.reverts,
        )  # fmt: skip

    def unreachable(self, engine: str, command: str, now: float) -> None:
        """The command could not be delivered; it stays open only if the engine has spoken of it."""
        change = self._changes.get(f"{command}@{engine}")
        if change is not None and change.state == "requested":
            self._close_here(change, "refused", f"engine {engine} is not connected; nothing was sent", now)

    def engine_ended(self, engine: str, how: str, now: float) -> None:
        """The engine's life is over: what it had under way, and its timers, ended with it."""
        for change in list(self._changes.values()):
            if change.engine == engine and change.state not in api.TERMINAL:
                self._close_here(change, "timed_out", f"engine {engine} {how} before it was closed", now)

    def unanswered(self, engine: str) -> list[DeliverCommand]:
        """Orders that the engine has not spoken of, to be sent again when it reconnects (engines know them by id).

        Only this hub's own: what an earlier one asked for is not brought about by its successor.
        """
        return [
            DeliverCommand(engine, order) for key, order in self._orders.items() if self._changes[key].engine == engine
        ]

    def tick(self, now: float) -> None:
        """Close what no engine closed by its deadline.

        After a gap, when this hub was stopped or starved, engines may have spoken long ago: they are heard first.
        """
        if now - self._ticked > GAP_S:
            self._hears_until = now + GRACE_S
        self._ticked = now
        if now < self._hears_until:
            return
        for key in [key for key, deadline in self._deadlines.items() if now > deadline + GRACE_S]:
            change = self._changes[key]
            self._close_here(change, "timed_out", self._silence(change, ours=key in self._orders), now)

    # --- what is known (``wishes.Book``) --------------------------------------------------------------------------

    def commands(self) -> list[str]:
        """Ids, oldest first."""
        return list(dict.fromkeys(change.command for change in self._changes.values()))

    def of(self, command: str) -> list[api.Change]:
        """A command's changes, one per engine."""
        return [change for change in self._changes.values() if change.command == command]

    def open_on(self, engine: str, subject: str) -> api.Change | None:
        """The change of this subject that is under way on this engine."""
        for change in reversed(self._changes.values()):
            mine = change.engine == engine and subject_of(change.verb, change.flag) == subject
            if mine and change.state not in api.TERMINAL:
                return change
        return None

    # --- what goes out --------------------------------------------------------------------------------------------

    def take_changed(self) -> list[api.Change]:
        """The changes since the last call, oldest first."""
        changed = list(self._dirty.values())
        self._dirty.clear()
        return changed

    def take_lines(self) -> list[audit.AuditLine]:
        """What has to go to the audit log since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def take_news(self) -> list[FlagEvent]:
        """What people should be told since the last call."""
        news, self._news = self._news, []
        return news

    # --- inside ---------------------------------------------------------------------------------------------------

    def _close_here(self, change: api.Change, state: str, reason: str, now: float) -> None:
        key = api.change_key(change)
        self._deadlines.pop(key, None)
        self._orders.pop(key, None)
        self._closed_here.add(key)
        new = self._fleet.reads(change.engine, subject_of(change.verb, change.flag))
        self._close(msgspec.structs.replace(change, state=state, reason=reason, new=new, closed=now), now)

    def _close(self, change: api.Change, now: float, corrects: str = "") -> None:
        self._set(change)
        self._log(change, now, corrects)
        self._news.append(news_of(change))
        target = self._changes.get(f"{change.target}@{change.engine}")
        if change.verb == "keep" and change.state == "applied" and target is not None:
            self._set(msgspec.structs.replace(target, kept_by=target.kept_by or change.who, reverts_at=None))
        self._judge(change.command, now)

    def _judge(self, command: str, now: float) -> None:
        """Once a command is closed on all its engines: never leave the fleet half switched in silence."""
        changes = self.of(command)
        if all(change.state in api.TERMINAL for change in changes) and (news := half_switched(changes)):
            self._news.append(news)
            whole = msgspec.structs.replace(changes[0], engine="", state="", reason=news.text, old=None, new=None)
            self._log(whole, now, event=audit.HALF)

    def _silence(self, change: api.Change, *, ours: bool) -> str:
        engine = change.engine
        if change.state != "requested":
            return f"engine {engine} {change.state} it and said nothing more"
        if ours:
            return f"no answer from engine {engine}"
        if self._fleet.health(engine) != "live":
            return f"no word from engine {engine} since the hub was started anew"
        return (
            f"engine {engine} does not know it: it did not get there before the hub ended, or the engine is a new one"
        )

    def _log(self, change: api.Change, now: float, corrects: str = "", event: str = "") -> None:
        self._lines.append(audit.line_of(change, now, self._hub, corrects=corrects, event=event))

    def _set(self, change: api.Change) -> None:
        key = api.change_key(change)
        self._changes[key] = self._dirty[key] = change
        while len(self._changes) > api.MAX_CHANGES:
            oldest = next(iter(self._changes))
            del self._changes[oldest]
            for memory in (self._deadlines, self._orders):
                memory.pop(oldest, None)
            self._closed_here.discard(oldest)

    def _remember(self, question: str, command: str) -> None:
        self._asked[question] = command
        while len(self._asked) > api.MAX_CHANGES:
            del self._asked[next(iter(self._asked))]


__all__ = ["CommandLifecycle", "DeliverCommand", "RejectedError"]
