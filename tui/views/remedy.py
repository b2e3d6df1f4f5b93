"""The order that cures a cause: what it would switch, how far it is, what to do where it can't be given. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from rltop.backend.api import TERMINAL, Change, Snapshot
from rltop.backend.api.alarm import CLEAR_AFTER, Alarm
from rltop.backend.api.verdict import HEALTHY, Cause, Verdict
from rltop.backend.evidence.diagnosis_input import last_mixed
from rltop.collectors.contract.flags import BY_NAME as FLAGS
from rltop.tui.dialogs.switch_dialog import CommandRequest, Scope, places
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.switchable import Target, targets
from rltop.tui.widgets import theme

GONE_WITHIN = 10
"""Steps without a token of before an order, after which what it cures is not told any more: the lattice of a head looks
at so many, the other tests have let go by then (docs/incidents.md)."""

HEARD_S = 3.0
"""For so long after a switch an engine may not have said yet what its flag reads now."""

MOST_PLACES = 3
"""Engines of which it is said where they run; the fleet's table has all."""

Sayings = list[tuple[str, str]]
"""Words for what is said, with what is said."""


@dataclass(frozen=True)
class FixCommand:
    """A line of ``rltop``: the flag that it sets, or none; the value, or an action's word; engines, or none: all."""

    flag: str
    word: str
    engines: tuple[str, ...]

    @staticmethod
    def of(line: str) -> FixCommand:
        """The order that was written down as ``line``."""
        words = shlex.split(line)[1:]
        engines = tuple(word for before, word in pairwise(words) if before == "--engine")
        return FixCommand(words[1], words[2], engines) if words[0] == "set" else FixCommand("", words[0], engines)


def remedy_of(cause: Cause, view: Snapshot) -> tuple[Target, CommandRequest]:
    """What the cause's order would switch, and to what.

    Raises:
        ValueError: it has none, or it can't be given now; says why.
    """
    if cause.in_place:
        raise ValueError(f"`{cause.in_place}` is in place already")
    if not cause.command:
        raise ValueError(f"{cause.id}: no switch of rltop's cures this; {cause.remedy}")
    order = FixCommand.of(cause.command)
    found = [
        target
        for target in targets(view)
        if target.engine == (order.engines[0] if len(order.engines) == 1 else None)
        and (
            target.subject.name == order.flag
            if order.flag
            else any(choice.word == order.word and choice.verb != "set" for choice in target.subject.choices)
        )
    ]
    if not found:
        raise ValueError(f"`{cause.command}` can't be given from here")
    target = found[0]
    if target.refusal:
        raise ValueError(f"{target.where}: {target.refusal}{_launch(order)}")
    choice = next((choice for choice in target.choices if choice.word == order.word), None)
    if choice is None or target.value == order.word:
        on = ", ".join(order.engines) or "all engines"
        raise ValueError(f"{order.flag or order.word} is {target.now} on {on} already")
    why = f"{cause.code} {cause.id}"
    if len(order.engines) > 1:
        live = tuple(engine for engine in order.engines if engine in target.engines)
        return replace(target, engines=live), CommandRequest(choice, Scope(", ".join(live), live), why=why)
    return target, CommandRequest(choice, places(target)[0], why=why)


def _launch(order: FixCommand) -> str:
    """What has the same effect on an engine that is started anew."""
    arguments = FLAGS[order.flag].launch_args.get(order.word) if order.flag in FLAGS else None
    return f"; or start the engine anew with {arguments}" if arguments else ""


def standing(cause: Cause, view: Snapshot, verdict: Verdict, *, allowed: bool) -> Sayings:
    """How far the order is, what comes next, and whether it can be given: the most urgent first."""
    line = cause.command or cause.in_place
    if not line:
        return [("live", f"nothing that rltop switches cures this: {_elsewhere(cause)}"), *_where(cause, view)]
    order = FixCommand.of(line)
    given = given_of(order, view)
    said = _given(order, given, view, verdict) if given else []
    if given and all(change.state not in ("refused", "timed_out") for change in given):
        return said
    if cause.in_place:
        return [*said, ("live", f"`{line}` is in place already, and has not cured it; {_elsewhere(cause)}")]
    if not allowed:
        return [*said, ("live", f"{line} --run {verdict.run}"), ("", f"(r) {NEEDS_CONTROL}")]
    try:
        remedy_of(cause, view)
    except ValueError as why_not:
        return [*said, ("live", f"can't be switched: {why_not}")]
    return [*said, ("live", f"{line} --run {verdict.run}   (r{' again' if given else ''})")]


def _elsewhere(cause: Cause) -> str:
    """Where a person has to go instead."""
    if cause.layer in ("trainer", "objective", "record"):
        return "what `do` says is done in the trainer"
    return "what `do` says is done where engines are started, updated and fed"


def _where(cause: Cause, view: Snapshot) -> Sayings:
    """The machines of the engines that have it, where they are some and not all."""
    found = [view.engines[engine] for engine in cause.engines if engine in view.engines]
    of = theme.whole(view.trainer.policy_version)
    said = [f"{e.id} is pid {e.pid} on {e.host}, at policy {theme.whole(e.policy_version)} of {of}" for e in found]
    return [("there", one) for one in said[:MOST_PLACES]]


def given_of(order: FixCommand, view: Snapshot) -> list[Change]:
    """Per engine the last change of the order's flag, where that was this order and nothing has taken it back."""
    last: dict[str, Change] = {}
    for change in view.changes.values():
        here = change.verb == "set" and change.flag == order.flag and change.engine in (order.engines or view.engines)
        if here and not (change.reverts and change.state == "superseded"):
            last[change.engine] = change
    return [change for change in last.values() if change.wanted == order.word and _stands(change, order, view)]


def _stands(change: Change, order: FixCommand, view: Snapshot) -> bool:
    if change.state != "applied" or view.time - (change.closed or 0.0) < HEARD_S:
        return True
    engine = view.engines.get(change.engine)
    return engine is not None and order.flag in engine.flags and engine.flags[order.flag].value == order.word


def _given(order: FixCommand, given: list[Change], view: Snapshot, verdict: Verdict) -> Sayings:
    """What became of the order, engine by engine, and what is to be waited for."""
    states = dict.fromkeys(change.state for change in given)
    each = []
    for state in states:
        engines = [change.engine for change in given if change.state == state]
        on = "all engines" if len(engines) == len(view.engines) > 1 else ", ".join(engines)
        each.append(f"{theme.OUTCOME.get(state, ('?', theme.WARN))[0]} {state.replace('_', ' ')} on {on}")
    first = given[0]
    after = "" if first.step is None else f" after step {first.step}"
    who = f" by {first.who}" if first.who else ""
    said = [("given", f"{order.flag} {order.word}{after}{who}: {'; '.join(each)}")]
    said += [("", reason) for reason in dict.fromkeys(change.reason for change in given if change.reason)]
    if any(change.state == "refused" for change in given):
        return [*said, ("then", f"it is for a person to do: what `do` says{_launch(order)}")]
    if any(change.state not in TERMINAL for change in given):
        return [*said, ("then", "an engine takes it between two steps of its own, after a weight update that is open")]
    return said + ([("then", _next(given, view, verdict))] if {*states} == {"applied"} else [])


def _next(given: Iterable[Change], view: Snapshot, verdict: Verdict) -> str:
    """What an order that holds is waited for, in steps."""
    after = max((change.step for change in given if change.step is not None), default=-1)
    last = -1 if verdict.step is None else verdict.step
    if last < after:
        return "it was given after the step that is read"
    mixed = last_mixed((step for step in view.steps.values() if step.step <= last), after)
    free = sum(mixed < step <= last for step in view.steps)
    if free > GONE_WITHIN:
        return (
            f"{free} steps since were sampled wholly after it, and the cause is still told: this does not cure it. "
            "`u` in the log (@) takes it back; start the probe, or do what `do` says"
        )
    return (
        f"{free} steps since were sampled wholly after it; what it cures is gone within {GONE_WITHIN} such steps, and "
        f"{CLEAR_AFTER} healthy ones in a row end the alarm"
    )


def alarm_sayings(alarm: Alarm | None, verdict: Verdict) -> Sayings:
    """Of a run that is healthy: how far the last alarm is from its end, or that it is over."""
    if alarm is None or verdict.verdict != HEALTHY:
        return []
    name = f"{alarm.id} {alarm.cause} ({alarm.code})"
    if alarm.cleared is None:
        return [("alarm", f"{name} is over after {CLEAR_AFTER} healthy steps in a row; {alarm.well} so far")]
    return [("alarm", f"{name} is over since step {alarm.cleared_step}; it was raised after step {alarm.raised_step}")]
