"""What people are told of commands: one sentence for each thing that happened. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.backend import api
from rltop.backend.commands import audit
from rltop.backend.util.durations import span
from rltop.collectors.contract.actions import BY_VERB, PROBE


@dataclass(frozen=True, slots=True)
class FlagEvent:
    """One event of the kind ``flag``."""

    severity: str
    text: str
    engine: str | None = None


def asked(question: api.AskCommand, engines: Sequence[str]) -> FlagEvent:
    """Somebody asked for something."""
    if isinstance(question, api.AskSet):
        what = f"{question.flag} {question.value}{' (strict)' if question.strict else ''}"
    elif isinstance(question, api.AskAct):
        what = BY_VERB[question.verb].word
    elif isinstance(question, api.AskProbe):
        what = f"{PROBE} {question.probe}"
    else:
        what = f"{'keep' if isinstance(question, api.AskKeep) else 'undo'} {question.command}"
    seconds = getattr(question, "revert_s", None)
    timed = f" for {span(seconds)}" if seconds is not None else ""
    everywhere = isinstance(question, api.AskSet | api.AskAct | api.AskProbe) and question.engines is None
    chosen = everywhere and getattr(question, "fraction", None) is None
    where = "all engines" if chosen else ", ".join(engines)
    who = f" ({question.who}@{question.host})" if question.who else ""
    why = f": {question.why}" if question.why else ""
    return FlagEvent("info", f"{what}{timed} asked of {where}{who}{why}")


def title(change: api.Change) -> str:
    """What a change is about: ``prefix_caching on > off``, ``pause running > paused``, ``keep 3fa0``."""
    if change.verb == "keep":
        return f"keep {change.target}"
    if change.verb == PROBE:
        return f"{PROBE} {change.probe}"
    name = change.flag or (BY_VERB[change.verb].word if change.verb in BY_VERB else change.verb)
    after = change.new if change.state == "applied" else change.wanted or change.new
    return f"{name} {change.old or '?'} > {after or change.wanted or '?'}"


def news_of(change: api.Change) -> FlagEvent:
    """A change was closed."""
    event = audit.event_of(change).replace("_", " ")
    text = f"{title(change)} {event}"
    if change.detail:
        text += f" ({change.detail})"
    if change.state == "applied" and change.lost_requests is not None:
        text += f" at engine step {change.engine_step}, {change.in_flight} in flight, {change.lost_requests} lost"
    if change.reason:
        text += f": {change.reason}"
    failed_revert = audit.is_own_revert(change) and change.state not in ("applied", "superseded")
    severity = "error" if failed_revert else "info" if change.state in ("applied", "superseded") else "warn"
    return FlagEvent(severity, text, change.engine)


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to type after a command that did not go through on all its engines, and what that does."""

    type: str
    does: str


def remedy(changes: Sequence[api.Change]) -> Remedy | None:
    """How to make the fleet one again; None where nothing was changed, or nothing can be taken back."""
    first = changes[0]
    moved = [change.engine for change in changes if api.changed_engine(change)]
    if first.reverts and any(change.state in ("refused", "timed_out") for change in changes):
        return Remedy(f"rltop undo {first.reverts}", "tries the rest again")
    if not moved or first.verb == "keep" or (first.verb in BY_VERB and not BY_VERB[first.verb].undo):
        return None
    return Remedy(f"rltop undo {first.command}", f"brings back {', '.join(moved)}")


def half_switched(changes: Sequence[api.Change]) -> FlagEvent | None:
    """What to know, and to type, when a closed command holds on some of its engines and not on the others."""
    first = changes[0]
    done = [change for change in changes if change.state == "applied"]
    rest = [change for change in changes if change.state != "applied" and change.new != change.wanted]
    if not done or not rest or not first.wanted or first.verb == "keep":
        return None
    readings: dict[str, list[str]] = {}
    for change in changes:
        readings.setdefault(change.new or change.old or "?", []).append(change.engine)
    values = "; ".join(f"{value} on {', '.join(engines)}" for value, engines in readings.items())
    why = "; ".join(f"{change.engine} {change.state.replace('_', ' ')}: {change.reason}" for change in rest)
    what = first.flag or BY_VERB[first.verb].subject
    found = remedy(changes)
    advice = f". `{found.type}` {found.does}" if found else ""
    return FlagEvent("warn", f"{what} is half switched: {values} ({why}){advice}")
