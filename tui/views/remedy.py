"""The fix of a cause as a switch: its target, its progress, and the alternative where it can't be applied. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from rltop.backend.api import TERMINAL, Change, Snapshot
from rltop.backend.api.alarm import CLEAR_AFTER, Alarm, short_name
from rltop.backend.api.verdict import HEALTHY, Cause, Verdict
from rltop.backend.evidence.diagnosis_input import last_mixed
from rltop.collectors.contract.flags import BY_NAME as FLAGS
from rltop.tui.dialogs.switch_dialog import CommandRequest, Scope, scopes
from rltop.tui.model.key_commands import NEEDS_CONTROL
from rltop.tui.model.switchable import Target, targets
from rltop.tui.widgets import theme

CURED_WITHIN = 10
"""Steps without tokens from before the fix, after which a cured cause is no longer reported. The check of the head's
lattice looks at this many steps; the other checks recover earlier (docs/incidents.md)."""

READBACK_S = 3.0
"""Seconds after a switch within which an engine may not have reported the new value of its flag yet."""

MAX_ENGINES = 3
"""Engines whose host and pid are shown; the fleet table has all."""

APPLIED, REQUESTED = "applied", "requested"
"""Labels of a fix that was sent: in effect on all its engines, or not (yet)."""

LabelledLines = list[tuple[str, str]]
"""Pairs of label and text; an empty label continues the line before."""


@dataclass(frozen=True)
class FixCommand:
    """A parsed ``rltop`` command: ``flag`` and its value in ``word``, or an action; ``engines`` is empty for all."""

    flag: str
    word: str
    engines: tuple[str, ...]

    @staticmethod
    def parse(line: str) -> FixCommand:
        """Parse ``line``."""
        words = shlex.split(line)[1:]
        engines = tuple(word for before, word in pairwise(words) if before == "--engine")
        return FixCommand(words[1], words[2], engines) if words[0] == "set" else FixCommand("", words[0], engines)

    def matches(self, target: Target) -> bool:
        """Whether the command goes to this row of the Control view."""
        if target.engine != (self.engines[0] if len(self.engines) == 1 else None):
            return False
        if self.flag:
            return target.subject.name == self.flag
        return any(choice.word == self.word and choice.verb != "set" for choice in target.subject.choices)


def fix_of(cause: Cause, snapshot: Snapshot) -> tuple[Target, CommandRequest]:
    """The switch that fixes the cause.

    Raises:
        ValueError: there is none, or it can't be applied now; the message says why.
    """
    if cause.in_place:
        raise ValueError(f"`{cause.in_place}` is applied already")
    if not cause.command:
        raise ValueError(f"{cause.id}: no switch of rltop fixes this; {cause.remedy}")
    command = FixCommand.parse(cause.command)
    target = next(filter(command.matches, targets(snapshot)), None)
    if target is None:
        raise ValueError(f"`{cause.command}` can't be applied from here")
    if target.refusal:
        raise ValueError(f"{target.where}: {target.refusal}{_launch_option(command)}")
    choice = next((choice for choice in target.choices if choice.word == command.word), None)
    if choice is None or target.value == command.word:
        engines = ", ".join(command.engines) or "all engines"
        raise ValueError(f"{command.flag or command.word} is {target.now} on {engines} already")
    reason = f"{cause.code} {cause.id}"
    if len(command.engines) > 1:
        live = tuple(engine for engine in command.engines if engine in target.engines)
        return replace(target, engines=live), CommandRequest(choice, Scope(", ".join(live), live), reason=reason)
    return target, CommandRequest(choice, scopes(target)[0], reason=reason)


def _launch_option(command: FixCommand) -> str:
    """The launch option with the same effect."""
    arguments = FLAGS[command.flag].launch_args.get(command.word) if command.flag in FLAGS else None
    return f"; or restart the engine with {arguments}" if arguments else ""


def fix_status(cause: Cause, snapshot: Snapshot, verdict: Verdict, *, control: bool) -> LabelledLines:
    """State of the fix, what happens next, and how to apply it: the most urgent first."""
    line = cause.command or cause.in_place
    if not line:
        return [("command", f"no switch of rltop fixes this: {_place_of_fix(cause)}"), *_engine_lines(cause, snapshot)]
    command = FixCommand.parse(line)
    changes = changes_by(command, snapshot)
    lines = _progress(command, changes, snapshot, verdict) if changes else []
    if changes and all(change.state not in ("refused", "timed_out") for change in changes):
        return lines
    if cause.in_place:
        return [*lines, ("command", f"`{line}` is applied already and did not fix it; {_place_of_fix(cause)}")]
    if not control:
        return [*lines, ("command", f"{line} --run {verdict.run}"), ("", f"(r) {NEEDS_CONTROL}")]
    try:
        fix_of(cause, snapshot)
    except ValueError as error:
        return [*lines, ("command", f"can't be switched: {error}")]
    return [*lines, ("command", f"{line} --run {verdict.run}   (r{' again' if changes else ''})")]


def _place_of_fix(cause: Cause) -> str:
    """Where the fix has to be made by hand."""
    if cause.layer in ("trainer", "objective", "record"):
        return "apply the fix in the trainer"
    return "apply the fix where engines are launched, updated and fed"


def _engine_lines(cause: Cause, snapshot: Snapshot) -> LabelledLines:
    """Host and pid of the affected engines, if only some are affected."""
    engines = [snapshot.engines[engine] for engine in cause.engines if engine in snapshot.engines]
    trainer = theme.whole(snapshot.trainer.policy_version)
    return [
        ("where", f"{e.id} is pid {e.pid} on {e.host}, at policy {theme.whole(e.policy_version)} of {trainer}")
        for e in engines[:MAX_ENGINES]
    ]


def changes_by(command: FixCommand, snapshot: Snapshot) -> list[Change]:
    """Per engine the last change of the command's flag, if it was this command and is still in effect or running."""
    last: dict[str, Change] = {}
    for change in snapshot.changes.values():
        concerned = change.verb == "set" and change.flag == command.flag
        concerned = concerned and change.engine in (command.engines or snapshot.engines)
        if concerned and not (change.reverts and change.state == "superseded"):
            last[change.engine] = change
    return [c for c in last.values() if c.wanted == command.word and _in_effect(c, command, snapshot)]


def _in_effect(change: Change, command: FixCommand, snapshot: Snapshot) -> bool:
    if change.state != "applied" or snapshot.time - (change.closed or 0.0) < READBACK_S:
        return True
    engine = snapshot.engines.get(change.engine)
    return engine is not None and command.flag in engine.flags and engine.flags[command.flag].value == command.word


def _progress(command: FixCommand, changes: list[Change], snapshot: Snapshot, verdict: Verdict) -> LabelledLines:
    """The state of the command by engine, and what it waits for."""
    states = dict.fromkeys(change.state for change in changes)
    by_state = []
    for state in states:
        engines = [change.engine for change in changes if change.state == state]
        on = "all engines" if len(engines) == len(snapshot.engines) > 1 else ", ".join(engines)
        by_state.append(f"{theme.OUTCOME.get(state, ('?', theme.WARN))[0]} {state.replace('_', ' ')} on {on}")
    first = changes[0]
    after = "" if first.step is None else f" after step {first.step}"
    who = f" by {first.who}" if first.who else ""
    label = APPLIED if {*states} == {"applied"} else REQUESTED
    lines = [(label, f"{command.flag} {command.word}{after}{who}: {'; '.join(by_state)}")]
    lines += [("", reason) for reason in dict.fromkeys(change.reason for change in changes if change.reason)]
    if any(change.state == "refused" for change in changes):
        return [*lines, ("status", f"refused: apply the fix by hand{_launch_option(command)}")]
    if any(change.state not in TERMINAL for change in changes):
        return [*lines, ("status", "engines switch between two of their steps, after a running weight update")]
    return lines + ([("status", _cure_status(changes, snapshot, verdict))] if {*states} == {"applied"} else [])


def _cure_status(changes: Iterable[Change], snapshot: Snapshot, verdict: Verdict) -> str:
    """How many steps an applied fix has been in effect, and when its cause should be gone."""
    after = max((change.step for change in changes if change.step is not None), default=-1)
    last = -1 if verdict.step is None else verdict.step
    if last < after:
        return "applied after the step shown"
    mixed = last_mixed((step for step in snapshot.steps.values() if step.step <= last), after)
    steps = sum(mixed < step <= last for step in snapshot.steps)
    sampled = f"{steps} steps sampled entirely after it"
    if steps > CURED_WITHIN:
        return (
            f"{sampled}, and the cause is still reported: this does not fix it. "
            "`u` in the log (@) undoes it; start the probe, or apply the fix by hand"
        )
    return (
        f"{sampled}; a cured cause is gone within {CURED_WITHIN} such steps, and {CLEAR_AFTER} healthy steps in a row "
        "clear the alarm"
    )


def alarm_status(alarm: Alarm | None, verdict: Verdict) -> LabelledLines:
    """For a healthy run: how close the last alarm is to clearing, or when it cleared."""
    if alarm is None or verdict.verdict != HEALTHY:
        return []
    name = f"{alarm.id} {short_name(alarm)}"
    if alarm.cleared is None:
        return [("alarm", f"{name} clears after {CLEAR_AFTER} healthy steps in a row; {alarm.well} so far")]
    return [("alarm", f"{name} cleared at step {alarm.cleared_step}; it was raised after step {alarm.raised_step}")]
