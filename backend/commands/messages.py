"""The wording of command events, one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.backend import api
from rltop.backend.commands.events import (
    ChangeClosed,
    CommandEvent,
    CommandRequested,
    is_own_revert,
    lags_behind,
    outcome,
)
from rltop.backend.util.durations import span
from rltop.collectors.contract.actions import BY_VERB, PROBE


@dataclass(frozen=True, slots=True)
class FlagEvent:
    """One event of the kind ``flag``."""

    severity: str
    text: str
    engine: str | None = None


def describe(event: CommandEvent) -> FlagEvent:
    """The event that people read."""
    if isinstance(event, CommandRequested):
        return _requested(event)
    if isinstance(event, ChangeClosed):
        return _closed(event.change)
    return FlagEvent("warn", half_switched(event.changes))


def _requested(event: CommandRequested) -> FlagEvent:
    question = event.question
    if isinstance(question, api.AskSet):
        subject = f"{question.flag} {question.value}{' (strict)' if question.strict else ''}"
    elif isinstance(question, api.AskAct):
        subject = BY_VERB[question.verb].word
    elif isinstance(question, api.AskProbe):
        subject = f"{PROBE} {question.probe}"
    else:
        subject = f"{'keep' if isinstance(question, api.AskKeep) else 'undo'} {question.command}"
    seconds = getattr(question, "revert_s", None)
    timer = f" for {span(seconds)}" if seconds is not None else ""
    all_live = isinstance(question, api.AskSet | api.AskAct | api.AskProbe) and question.engines is None
    all_live = all_live and getattr(question, "fraction", None) is None
    where = "all engines" if all_live else ", ".join(change.engine for change in event.changes)
    who = f" by {api.signature(question.who, question.host, question.author)}" if question.who else ""
    why = f": {question.why}" if question.why else ""
    return FlagEvent("info", f"{subject}{timer} requested on {where}{who}{why}")


def _closed(change: api.Change) -> FlagEvent:
    text = f"{title(change)} {outcome(change).replace('_', ' ')}"
    if change.detail:
        text += f" ({change.detail})"
    if change.state == "applied" and change.lost_requests is not None:
        text += f" at engine step {change.engine_step}, {change.in_flight} in flight, {change.lost_requests} lost"
    if change.reason:
        text += f": {change.reason}"
    failed_revert = is_own_revert(change) and change.state not in ("applied", "superseded")
    severity = "error" if failed_revert else "info" if change.state in ("applied", "superseded") else "warn"
    return FlagEvent(severity, text, change.engine)


def title(change: api.Change) -> str:
    """Subject and values: ``prefix_caching on → off``, ``pause running → paused``, ``keep 3fa0``."""
    if change.verb == "keep":
        return f"keep {change.target}"
    if change.verb == PROBE:
        return f"{PROBE} {change.probe}"
    name = change.flag or (BY_VERB[change.verb].word if change.verb in BY_VERB else change.verb)
    after = change.new if change.state == "applied" else change.wanted or change.new
    return f"{name} {change.old or '?'} → {after or change.wanted or '?'}"


def half_switched(changes: Sequence[api.Change]) -> str:
    """Which engine has which value and why, and the command line that resolves it."""
    by_value: dict[str, list[str]] = {}
    for change in changes:
        by_value.setdefault(change.new or change.old or "?", []).append(change.engine)
    values = "; ".join(f"{value} on {', '.join(engines)}" for value, engines in by_value.items())
    rest = [change for change in changes if lags_behind(change)]
    why = "; ".join(f"{change.engine} {change.state.replace('_', ' ')}: {change.reason}" for change in rest)
    subject = changes[0].flag or BY_VERB[changes[0].verb].subject
    found = remedy(changes)
    advice = f". `{found.command}` {found.effect}" if found else ""
    return f"{subject} is half switched: {values} ({why}){advice}"


@dataclass(frozen=True, slots=True)
class Remedy:
    """The command line that makes a half-switched fleet uniform again, and its effect."""

    command: str
    effect: str


def remedy(changes: Sequence[api.Change]) -> Remedy | None:
    """How to make the fleet uniform after a command that failed on some engines; None if it changed nothing."""
    first = changes[0]
    moved = [change.engine for change in changes if api.changed_engine(change)]
    if first.reverts and any(change.state in ("refused", "timed_out") for change in changes):
        return Remedy(f"rltop undo {first.reverts}", "retries the rest")
    if not moved or first.verb == "keep" or (first.verb in BY_VERB and not BY_VERB[first.verb].undo):
        return None
    return Remedy(f"rltop undo {first.command}", f"reverts {', '.join(moved)}")
