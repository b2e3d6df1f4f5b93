"""Flag commands, from a person's wish to a closed record on every engine. Pure.

requested > accepted > (draining) > applied | refused | timed out. An engine closes its own commands with a read-back;
the hub closes those that it could not bring to an engine, or that no engine spoke of by the deadline. Should the engine
speak after that, its word counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from rltop.backend import view
from rltop.collectors import wire
from rltop.collectors.flags import BY_NAME

GRACE_S = 2.0
"""The engine itself gives up at the deadline; only silence beyond it is closed here."""

MAX_TIMEOUT_S = 3600.0

_ORDER = {"requested": 0, "accepted": 1, "draining": 2}


class RejectedError(ValueError):
    """A wish that cannot be carried out; the message names what can be."""


@dataclass(frozen=True, slots=True)
class Order:
    """Bring ``command`` to ``engine``."""

    engine: str
    command: wire.Command


class Commands:
    """All commands of this hub, and those of earlier ones that engines speak of.

    Args:
        new_id: makes the id of a command.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._changes: dict[str, view.Change] = {}
        self._deadlines: dict[str, float] = {}
        self._closed_here: set[str] = set()
        self._asked: dict[str, str] = {}
        self._dirty: dict[str, view.Change] = {}

    def ask(
        self, question: view.AskSet, health: Callable[[str], str], live: Collection[str], now: float, step: int | None
    ) -> tuple[str, list[Order]]:
        """Check a wish and start it. Returns the command's id and what to send; the same question twice is one.

        Args:
            question: the wish.
            health: of an engine: ``live``, ``silent``, ``gone`` or ``unknown``.
            live: engines to use when the question names none.
            now: seconds.
            step: last closed step.

        Raises:
            RejectedError: no such flag, value or engine; or a timeout that is not one.
        """
        if question.id in self._asked:
            return self._asked[question.id], []
        engines = self._check(question, health, live)
        command = wire.Command(self._new_id(), question.flag, question.value, now + question.timeout_s)
        self._remember(question.id, command.id)
        orders = []
        for engine in engines:
            change = view.Change(
                command.id, engine, question.flag, question.value, "requested", now,
                who=question.who, host=question.host, why=question.why, step=step,
            )  # fmt: skip
            self._set(change)
            if health(engine) == "live":
                self._deadlines[view.change_key(change)] = command.deadline
                orders.append(Order(engine, command))
            else:
                self._close_here(change, "refused", f"engine {engine} is {health(engine)}; nothing was sent", now)
        return command.id, orders

    def _check(self, question: view.AskSet, health: Callable[[str], str], live: Collection[str]) -> list[str]:
        flag = BY_NAME.get(question.flag)
        if flag is None:
            raise RejectedError(f"no flag {question.flag!r}; there is {', '.join(BY_NAME)}")
        if question.value not in flag.values:
            raise RejectedError(f"{flag.name} can't be {question.value!r}; it can be {' or '.join(flag.values)}")
        if not 0 < question.timeout_s <= MAX_TIMEOUT_S:
            raise RejectedError(f"a timeout of {question.timeout_s} s; use more than 0 and at most {MAX_TIMEOUT_S:.0f}")
        engines = sorted(live) if question.engines is None else list(dict.fromkeys(question.engines))
        known = ", ".join(sorted(live)) or "none"
        for engine in engines:
            if health(engine) == "unknown":
                raise RejectedError(f"no engine {engine!r}; live engines: {known}")
        if not engines:
            raise RejectedError(
                "no engine is live, nothing to switch" if question.engines is None else "no engine named"
            )
        return engines

    def update(self, update: wire.CommandUpdate, now: float) -> view.Change | None:
        """An engine's word on a command. Returns the change if it says something new.

        An id that this hub does not know is a command of an earlier hub; once closed it is kept, so that nothing an
        engine did goes unseen.
        """
        key = f"{update.id}@{update.engine}"
        before = self._changes.get(key)
        terminal = update.state in view.TERMINAL
        if before is None:
            if not terminal:
                return None
            before = view.Change(
                update.id, update.engine, update.flag, update.new or "", update.state, update.time or now,
                why="asked of an earlier hub",
            )  # fmt: skip
        elif before.state in view.TERMINAL:
            if not terminal or key not in self._closed_here:
                return None
        elif not terminal and _ORDER.get(update.state, -1) <= _ORDER[before.state]:
            return None
        change = msgspec.structs.replace(
            before,
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
        )
        if terminal:
            self._deadlines.pop(key, None)
            self._closed_here.discard(key)
        self._set(change)
        return change

    def unreachable(self, engine: str, command: str, now: float) -> view.Change | None:
        """The command could not be delivered; it stays open only if the engine has spoken of it."""
        change = self._changes.get(f"{command}@{engine}")
        if change is None or change.state != "requested":
            return None
        return self._close_here(change, "refused", f"engine {engine} is not connected; nothing was sent", now)

    def unanswered(self, engine: str) -> list[Order]:
        """Orders that the engine has not spoken of, to be sent again when it reconnects (engines know them by id)."""
        return [
            Order(engine, wire.Command(change.command, change.flag, change.wanted, self._deadlines[key]))
            for key, change in self._changes.items()
            if change.engine == engine and change.state == "requested" and key in self._deadlines
        ]

    def tick(self, now: float) -> list[view.Change]:
        """Close what no engine closed by its deadline."""
        late = [key for key, deadline in self._deadlines.items() if now > deadline + GRACE_S]
        return [self._close_here(self._changes[key], "timed_out", _silence(self._changes[key]), now) for key in late]

    def take_changed(self) -> list[view.Change]:
        """The changes since the last call, oldest first."""
        changed = list(self._dirty.values())
        self._dirty.clear()
        return changed

    def _close_here(self, change: view.Change, state: str, reason: str, now: float) -> view.Change:
        closed = msgspec.structs.replace(change, state=state, reason=reason, closed=now)
        key = view.change_key(change)
        self._deadlines.pop(key, None)
        self._closed_here.add(key)
        self._set(closed)
        return closed

    def _set(self, change: view.Change) -> None:
        key = view.change_key(change)
        self._changes[key] = self._dirty[key] = change
        while len(self._changes) > view.MAX_CHANGES:
            oldest = next(iter(self._changes))
            del self._changes[oldest]
            self._deadlines.pop(oldest, None)
            self._closed_here.discard(oldest)

    def _remember(self, question: str, command: str) -> None:
        self._asked[question] = command
        while len(self._asked) > view.MAX_CHANGES:
            del self._asked[next(iter(self._asked))]


def _silence(change: view.Change) -> str:
    if change.state == "requested":
        return f"no answer from engine {change.engine}"
    return f"engine {change.engine} {change.state} it and said nothing more"
