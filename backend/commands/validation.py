"""Validates a request and turns it into one command per engine. Pure; nothing has been sent yet."""

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
"""Shortest prefix of an id that names a command, if only one id has it."""

ChooseInputs = Callable[[str, list[str]], "dict[str, list[wire.Passage]]"]
"""From a probe's name and engines, the passages that each engine scores. Raises ``RejectedError`` if there are none."""


class RejectedError(ValueError):
    """An invalid request; the message names the valid choices."""


class KnownFleet(Protocol):
    """The known state of the engines."""

    @property
    def live(self) -> list[str]:
        """Ids of the engines that reported recently."""

    def health(self, engine: str) -> str:
        """``live``, ``silent``, ``gone``, or ``unknown``."""

    def reads(self, engine: str, subject: str) -> str | None:
        """The value of a flag or another subject of commands on an engine; None if unknown."""

    def timers(self, engine: str) -> list[wire.Timer]:
        """The engine's running timers, each of which will revert a command."""


class CommandHistory(Protocol):
    """The commands so far."""

    def commands(self) -> list[str]:
        """Ids, oldest first."""

    def changes_of(self, command: str) -> list[api.Change]:
        """A command's changes, one per engine."""

    def open_change(self, engine: str, subject: str) -> api.Change | None:
        """The change of this subject that is in progress on this engine."""


def commands_for(
    question: api.AskCommand,
    command: str,
    deadline: float,
    fleet: KnownFleet,
    history: CommandHistory,
    choose_inputs: ChooseInputs,
) -> dict[str, wire.Command]:
    """The command for each engine, by the engine's id.

    Args:
        question: the request.
        command: id of the new command.
        deadline: seconds; engines start nothing after it.
        fleet: the known state of the engines.
        history: earlier commands.
        choose_inputs: chooses the passages that a probe scores.

    Raises:
        RejectedError: invalid flag, value, engine, command, timer or timeout, or another command is in progress.
    """
    if not 0 < question.timeout_s <= MAX_TIMEOUT_S:
        raise RejectedError(f"a timeout of {question.timeout_s} s; use more than 0 and at most {MAX_TIMEOUT_S:.0f}")
    if isinstance(question, api.AskSet):
        order = _set(question, command, deadline)
        orders = dict.fromkeys(choose_engines(question.engines, question.fraction, fleet), order)
    elif isinstance(question, api.AskAct):
        order = _act(question, command, deadline)
        orders = dict.fromkeys(choose_engines(question.engines, None, fleet), order)
    elif isinstance(question, api.AskProbe):
        orders = _probe(question, command, deadline, fleet, choose_inputs)
    elif isinstance(question, api.AskKeep):
        return _keep(question, command, deadline, fleet, history)
    else:
        orders = _undo(question, command, deadline, history)
    for engine, order in orders.items():
        subject = subject_of(order.verb, order.flag)
        if fleet.health(engine) == "live" and (busy := history.open_change(engine, subject)):
            raise RejectedError(f"{subject} of {engine} is being changed: {_progress(busy)}; wait for it to end")
    return orders


def choose_engines(named: list[str] | None, fraction: float | None, fleet: KnownFleet) -> list[str]:
    """The engines of a request: the named ones, a fraction of the live ones, or all live ones.

    A name stands for all its data-parallel ranks (``e0`` for ``e0/dp0`` and ``e0/dp1``), and a fraction never splits
    them. A fraction takes the first engines by name, so it is always the same ones.

    Raises:
        RejectedError: unknown engine, or a fraction that leaves no engine to compare with.
    """
    live = sorted(fleet.live)
    if fraction is not None:
        if named is not None:
            raise RejectedError("name engines, or a fraction of them, not both")
        return _first_engines(live, fraction)
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


def _first_engines(live: list[str], fraction: float) -> list[str]:
    if not 0 < fraction <= 1:
        raise RejectedError(f"a fraction of {fraction}; use more than 0 and at most 1")
    groups = list(dict.fromkeys(_base(engine) for engine in live))
    if not groups:
        raise RejectedError("no engine is live, nothing to switch")
    if fraction < 1 and len(groups) == 1:
        raise RejectedError(f"only {groups[0]} is live: a fraction would leave no engine to compare with")
    count = len(groups) if fraction == 1 else min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    return [engine for engine in live if _base(engine) in groups[:count]]


def _set(question: api.AskSet, command: str, deadline: float) -> wire.Command:
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


def _act(question: api.AskAct, command: str, deadline: float) -> wire.Command:
    action = BY_VERB.get(question.verb)
    if action is None:
        raise RejectedError(f"no command {question.verb!r}; there is {', '.join(BY_VERB)}")
    if question.revert_s is not None and action.guard_s is None:
        raise RejectedError(f"{action.word} is done once; it has no timer")
    _check_timer(question.revert_s, action.max_guard_s)
    return wire.Command(command, "", "", deadline, action.verb, revert_s=question.revert_s)


def _probe(
    question: api.AskProbe, command: str, deadline: float, fleet: KnownFleet, choose_inputs: ChooseInputs
) -> dict[str, wire.Command]:
    probe = BY_PROBE.get(question.probe)
    startable = [name for name, other in BY_PROBE.items() if other.executed_by != SWITCH]
    if probe is None or probe.executed_by == SWITCH:
        raise RejectedError(f"probe {question.probe!r} can't be started; there is {', '.join(startable)}")
    engines = choose_engines(question.engines, None, fleet)
    if len(engines) < probe.min_engines:
        raise RejectedError(f"{probe.name} takes {probe.min_engines} engines, not {', '.join(engines)} alone")
    chosen = choose_inputs(probe.name, engines) if probe.sends_requests else {}
    return {
        engine: wire.Command(command, "", "", deadline, PROBE, probe=probe.name, passages=tuple(chosen.get(engine, ())))
        for engine in engines
    }


def _check_timer(seconds: float | None, longest: float) -> None:
    if seconds is not None and not 0 < seconds <= longest:
        raise RejectedError(f"a timer of {seconds:g} s; use more than 0 and at most {longest:.0f}")


def _keep(
    question: api.AskKeep, command: str, deadline: float, fleet: KnownFleet, history: CommandHistory
) -> dict[str, wire.Command]:
    timers = {engine: [timer.command for timer in fleet.timers(engine)] for engine in fleet.live}
    pending = sorted({other for commands in timers.values() for other in commands})
    target = resolve_id(question.command, history, pending)
    timed = [
        c.engine for c in history.changes_of(target) if c.state == "applied" and (c.reverts_at is not None or c.kept_by)
    ]
    timed += [engine for engine, commands in timers.items() if target in commands]
    if not timed:
        raise RejectedError(f"{target} has no timer; commands that have one: {', '.join(pending) or 'none'}")
    order = wire.Command(command, "", "", deadline, "keep", target=target)
    return dict.fromkeys(timed, order)


def _undo(question: api.AskUndo, command: str, deadline: float, history: CommandHistory) -> dict[str, wire.Command]:
    """Restore the value that each engine had; the engine checks that it was not changed since."""
    target = resolve_id(question.command, history)
    changes = history.changes_of(target)
    if still := [change for change in changes if change.state not in api.TERMINAL]:
        raise RejectedError(
            f"{target} is still in progress on {still[0].engine} ({still[0].state}); wait for it to end"
        )
    orders: dict[str, wire.Command] = {}
    for change in changes:
        if not api.changed_engine(change):
            continue
        if change.verb == "set":
            orders[change.engine] = wire.Command(command, change.flag, str(change.old), deadline, target=target)
        elif change.verb in BY_VERB and (back := BY_VERB[change.verb].undo):
            orders[change.engine] = wire.Command(command, "", "", deadline, back, target=target)
    if not orders:
        raise RejectedError(f"{target} changed nothing that can be undone: {'; '.join(map(_outcome, changes))}")
    return orders


def resolve_id(text: str, history: CommandHistory, also: Iterable[str] = ()) -> str:
    """The id of the command that ``text`` names, whole or by a prefix. Raises ``RejectedError``."""
    known = list(dict.fromkeys([*history.commands(), *also]))
    if text in known:
        return text
    requested = [command for command in known if not command.endswith("/revert")]
    matches = [command for command in requested if command.startswith(text)] if len(text) >= MIN_PREFIX else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RejectedError(f"{text!r} is ambiguous: {' or '.join(matches)}")
    short = f"; a prefix needs at least {MIN_PREFIX} characters" if len(text) < MIN_PREFIX else ""
    raise RejectedError(f"no command {text!r}; the last ones: {', '.join(known[-5:]) or 'none'}{short}")


def _progress(change: api.Change) -> str:
    who = f" by {api.signature(change.who, change.host, change.author)}" if change.who else ""
    return f"{change.command}{who} is {change.state}{f' ({change.reason})' if change.reason else ''}"


def _outcome(change: api.Change) -> str:
    return f"{change.engine} {change.state}{f' ({change.reason})' if change.reason else ''}"
