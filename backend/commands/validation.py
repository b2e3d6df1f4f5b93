"""What a person asks for, checked and turned into one command for each engine. Pure.

Everything that can be wrong with a wish is said here, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from rltop.backend import api
from rltop.collectors.contract import wire
from rltop.collectors.contract.actions import BY_VERB, MAX_REVERT_S, PROBE, subject_of
from rltop.collectors.contract.flags import BY_NAME
from rltop.collectors.contract.probes import BY_NAME as BY_PROBE
from rltop.collectors.contract.probes import SWITCH

MAX_TIMEOUT_S = 3600.0

MIN_PREFIX = 4
"""A command may be named by so many first characters of its id, where that is clear."""


Choose = Callable[[str, list[str]], "dict[str, list[wire.Passage]]"]
"""Of a probe's name and engines: what each engine is to score. Raises ``RejectedError`` where there is nothing."""


class RejectedError(ValueError):
    """A wish that cannot be carried out; the message names what can be."""


class KnownFleet(Protocol):
    """What is known of the engines."""

    @property
    def live(self) -> list[str]:
        """Ids of the engines that were heard of lately."""

    def health(self, engine: str) -> str:
        """``live``, ``silent``, ``gone``, or ``unknown``."""

    def reads(self, engine: str, subject: str) -> str | None:
        """What a flag, or another subject of commands, reads there; None if unknown."""

    def timers(self, engine: str) -> list[wire.Timer]:
        """What the engine will take back by itself."""


class CommandHistory(Protocol):
    """The commands so far."""

    def commands(self) -> list[str]:
        """Ids, oldest first."""

    def of(self, command: str) -> list[api.Change]:
        """A command's changes, one per engine."""

    def open_on(self, engine: str, subject: str) -> api.Change | None:
        """The change of this subject that is under way on this engine."""


def orders_of(
    question: api.AskCommand, command: str, deadline: float, fleet: KnownFleet, book: CommandHistory, passages: Choose
) -> dict[str, wire.Command]:
    """The command for each engine, by the engine's id.

    Args:
        question: the wish.
        command: id that the new command will have.
        deadline: until when engines may begin, seconds.
        fleet: what is known of the engines.
        book: what is known of earlier commands.
        passages: chooses what a probe is to score.

    Raises:
        RejectedError: no such flag, value, engine or command, a time that is none, or another command is in the way.
    """
    if not 0 < question.timeout_s <= MAX_TIMEOUT_S:
        raise RejectedError(f"a timeout of {question.timeout_s} s; use more than 0 and at most {MAX_TIMEOUT_S:.0f}")
    if isinstance(question, api.AskSet):
        order = _switch(question, command, deadline)
        orders = dict.fromkeys(choose(question.engines, question.fraction, fleet), order)
    elif isinstance(question, api.AskAct):
        order = _action(question, command, deadline)
        orders = dict.fromkeys(choose(question.engines, None, fleet), order)
    elif isinstance(question, api.AskProbe):
        orders = _probe(question, command, deadline, fleet, passages)
    elif isinstance(question, api.AskKeep):
        return _keep(question, command, deadline, fleet, book)
    else:
        orders = _undo(question, command, deadline, book)
    for engine, order in orders.items():
        subject = subject_of(order.verb, order.flag)
        if fleet.health(engine) == "live" and (busy := book.open_on(engine, subject)):
            raise RejectedError(f"{subject} of {engine} is being changed: {_who(busy)}; wait for it to end")
    return orders


def choose(named: list[str] | None, fraction: float | None, fleet: KnownFleet) -> list[str]:
    """The engines that a wish means: those named, a fraction of the live ones, or all of these.

    A name stands for all its data-parallel ranks (``e0`` for ``e0/dp0`` and ``e0/dp1``), and a fraction never parts
    them. Which engines a fraction is, depends on the names alone: the first ones.

    Raises:
        RejectedError: no such engine, or a fraction that leaves none out.
    """
    live = sorted(fleet.live)
    if fraction is not None:
        if named is not None:
            raise RejectedError("name engines, or a fraction of them, not both")
        return _share(live, fraction)
    if named is None:
        if not live:
            raise RejectedError("no engine is live, nothing to switch")
        return live
    chosen: dict[str, None] = {}
    for name in named:
        ranks = [engine for engine in live if _base(engine) == name]
        if fleet.health(name) == "unknown" and not ranks:
            raise RejectedError(f"no engine {name!r}; live engines: {', '.join(live) or 'none'}")
        chosen |= dict.fromkeys(ranks if fleet.health(name) == "unknown" else [name])
    if not chosen:
        raise RejectedError("no engine named")
    return list(chosen)


def _base(engine: str) -> str:
    return engine.partition("/dp")[0]


def _share(live: list[str], fraction: float) -> list[str]:
    if not 0 < fraction <= 1:
        raise RejectedError(f"a fraction of {fraction}; use more than 0 and at most 1")
    groups = list(dict.fromkeys(_base(engine) for engine in live))
    if not groups:
        raise RejectedError("no engine is live, nothing to switch")
    if fraction < 1 and len(groups) == 1:
        raise RejectedError(f"only {groups[0]} is live: a fraction would leave no engine to compare with")
    count = len(groups) if fraction == 1 else min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    return [engine for engine in live if _base(engine) in groups[:count]]


def _switch(question: api.AskSet, command: str, deadline: float) -> wire.Command:
    flag = BY_NAME.get(question.flag)
    if flag is None:
        raise RejectedError(f"no flag {question.flag!r}; there is {', '.join(BY_NAME)}")
    if question.value not in flag.values:
        raise RejectedError(f"{flag.name} can't be {question.value!r}; it can be {' or '.join(flag.values)}")
    if question.strict and not flag.strict:
        strict = ", ".join(name for name, other in BY_NAME.items() if other.strict) or "none"
        raise RejectedError(f"{flag.name} has no strict form; flags that have one: {strict}")
    _check_timer(question.revert_s, MAX_REVERT_S)
    return wire.Command(
        command, flag.name, question.value, deadline, strict=question.strict, revert_s=question.revert_s
    )


def _action(question: api.AskAct, command: str, deadline: float) -> wire.Command:
    action = BY_VERB.get(question.verb)
    if action is None:
        raise RejectedError(f"no command {question.verb!r}; there is {', '.join(BY_VERB)}")
    if question.revert_s is not None and action.guard_s is None:
        raise RejectedError(f"{action.word} is done once; it has no timer")
    _check_timer(question.revert_s, action.max_guard_s)
    return wire.Command(command, "", "", deadline, action.verb, revert_s=question.revert_s)


def _probe(
    question: api.AskProbe, command: str, deadline: float, fleet: KnownFleet, passages: Choose
) -> dict[str, wire.Command]:
    probe = BY_PROBE.get(question.probe)
    startable = [name for name, other in BY_PROBE.items() if other.by != SWITCH]
    if probe is None or probe.by == SWITCH:
        raise RejectedError(f"no probe {question.probe!r} can be started so; there is {', '.join(startable)}")
    engines = choose(question.engines, None, fleet)
    if len(engines) < probe.engines:
        raise RejectedError(f"{probe.name} takes {probe.engines} engines, not {', '.join(engines)} alone")
    chosen = passages(probe.name, engines) if probe.requests else {}
    return {
        engine: wire.Command(command, "", "", deadline, PROBE, probe=probe.name, passages=tuple(chosen.get(engine, ())))
        for engine in engines
    }


def _check_timer(seconds: float | None, longest: float) -> None:
    if seconds is not None and not 0 < seconds <= longest:
        raise RejectedError(f"a timer of {seconds:g} s; use more than 0 and at most {longest:.0f}")


def _keep(
    question: api.AskKeep, command: str, deadline: float, fleet: KnownFleet, book: CommandHistory
) -> dict[str, wire.Command]:
    held = {engine: [timer.command for timer in fleet.timers(engine)] for engine in fleet.live}
    pending = sorted({other for commands in held.values() for other in commands})
    target = find(question.command, book, pending)
    timed = [c.engine for c in book.of(target) if c.state == "applied" and (c.reverts_at is not None or c.kept_by)]
    timed += [engine for engine, commands in held.items() if target in commands]
    if not timed:
        raise RejectedError(f"{target} has no timer; commands that have one: {', '.join(pending) or 'none'}")
    order = wire.Command(command, "", "", deadline, "keep", target=target)
    return dict.fromkeys(timed, order)


def _undo(question: api.AskUndo, command: str, deadline: float, book: CommandHistory) -> dict[str, wire.Command]:
    """Back to what each engine said it had; engines check for themselves that it was not changed since."""
    target = find(question.command, book)
    changes = book.of(target)
    if still := [change for change in changes if change.state not in api.TERMINAL]:
        raise RejectedError(f"{target} is still under way on {still[0].engine} ({still[0].state}); wait for it to end")
    orders: dict[str, wire.Command] = {}
    for change in changes:
        if not api.changed_engine(change):
            continue
        if change.verb == "set":
            orders[change.engine] = wire.Command(command, change.flag, str(change.old), deadline, target=target)
        elif change.verb in BY_VERB and (back := BY_VERB[change.verb].undo):
            orders[change.engine] = wire.Command(command, "", "", deadline, back, target=target)
    if not orders:
        raise RejectedError(f"{target} changed nothing that could be undone: {'; '.join(map(_end, changes))}")
    return orders


def find(text: str, book: CommandHistory, also: Iterable[str] = ()) -> str:
    """The id of the command that ``text`` names, whole or by its beginning. Raises ``RejectedError``."""
    known = list(dict.fromkeys([*book.commands(), *also]))
    if text in known:
        return text
    asked = [command for command in known if not command.endswith("/revert")]
    begins = [command for command in asked if command.startswith(text)] if len(text) >= MIN_PREFIX else []
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise RejectedError(f"{text!r} may be {' or '.join(begins)}")
    short = f"; the start of an id will do, from {MIN_PREFIX} characters on" if len(text) < MIN_PREFIX else ""
    raise RejectedError(f"no command {text!r} is known here; the last ones: {', '.join(known[-5:]) or 'none'}{short}")


def _who(change: api.Change) -> str:
    who = f" by {change.who}@{change.host}" if change.who else ""
    return f"{change.command}{who} is {change.state}{f' ({change.reason})' if change.reason else ''}"


def _end(change: api.Change) -> str:
    return f"{change.engine} {change.state}{f' ({change.reason})' if change.reason else ''}"
