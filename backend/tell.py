"""What people are told of commands: one sentence for each thing that happened. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.backend import audit, view
from rltop.collectors.actions import BY_VERB


@dataclass(frozen=True, slots=True)
class News:
    """One event of the kind ``flag``."""

    severity: str
    text: str
    engine: str | None = None


def span(seconds: float) -> str:
    """A duration as people type it.

    >>> span(90), span(600), span(4000), span(0.5)
    ('90s', '10m', '1h06m', '0.5s')
    """
    if seconds < 120:
        return f"{seconds:.3g}s" if seconds % 60 or seconds < 60 else f"{seconds / 60:.0f}m"
    minutes = seconds / 60
    if minutes < 60:
        return f"{minutes:.0f}m"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours}h{rest:02}m" if rest else f"{hours}h"


def asked(question: view.AskCommand, engines: Sequence[str]) -> News:
    """Somebody asked for something."""
    if isinstance(question, view.AskSet):
        what = f"{question.flag} {question.value}{' (strict)' if question.strict else ''}"
    elif isinstance(question, view.AskAct):
        what = BY_VERB[question.verb].word
    else:
        what = f"{'keep' if isinstance(question, view.AskKeep) else 'undo'} {question.command}"
    seconds = getattr(question, "revert_s", None)
    timed = f" for {span(seconds)}" if seconds is not None else ""
    everywhere = isinstance(question, view.AskSet | view.AskAct) and question.engines is None
    chosen = everywhere and getattr(question, "fraction", None) is None
    where = "all engines" if chosen else ", ".join(engines)
    who = f" ({question.who}@{question.host})" if question.who else ""
    why = f": {question.why}" if question.why else ""
    return News("info", f"{what}{timed} asked of {where}{who}{why}")


def title(change: view.Change) -> str:
    """What a change is about: ``prefix_caching on > off``, ``pause running > paused``, ``keep 3fa0``."""
    if change.verb == "keep":
        return f"keep {change.target}"
    name = change.flag or (BY_VERB[change.verb].word if change.verb in BY_VERB else change.verb)
    after = change.new if change.state == "applied" else change.wanted or change.new
    return f"{name} {change.old or '?'} > {after or change.wanted or '?'}"


def news_of(change: view.Change) -> News:
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
    return News(severity, text, change.engine)


def half_switched(changes: Sequence[view.Change]) -> News | None:
    """What to know, and to type, when a closed command holds on some of its engines and not on the others."""
    first = changes[0]
    done = [change for change in changes if change.state == "applied"]
    rest = [c for c in changes if c.state != "applied" and c.new != c.wanted]
    if not done or not rest or not first.wanted or first.verb == "keep":
        return None
    what = first.flag or BY_VERB[first.verb].subject
    by_value: dict[str, list[str]] = {}
    for change in changes:
        by_value.setdefault((change.new if change.state == "applied" else change.new or change.old) or "?", []).append(
            change.engine
        )
    values = "; ".join(f"{value} on {', '.join(engines)}" for value, engines in by_value.items())
    why = "; ".join(f"{change.engine} {change.state.replace('_', ' ')}: {change.reason}" for change in rest)
    return News("warn", f"{what} is half switched: {values} ({why}). {remedy(changes)}")


def remedy(changes: Sequence[view.Change]) -> str:
    """What to type after a command that was not applied on all its engines."""
    first = changes[0]
    moved = [c.engine for c in changes if c.state == "applied" and c.old is not None and c.old != c.new]
    if first.reverts:
        return f"`rltop undo {first.reverts}` tries the rest again"
    if not moved or (first.verb in BY_VERB and not BY_VERB[first.verb].undo):
        return ""
    return f"`rltop undo {first.command}` brings back {', '.join(moved)}"
