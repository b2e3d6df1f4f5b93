"""Changes of a run in words, with the timers and the undo that belong to them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rltop.backend.api import Change, Snapshot
from rltop.collectors.contract.actions import BY_VERB, PROBE
from rltop.collectors.contract.wire import Timer
from rltop.tui.widgets import theme


def describe(change: Change) -> str:
    """The request in words: ``prefix_caching off``, ``pause``, ``keep 3f2a``."""
    text = _action(change)
    if change.verb == "set":
        form = " strict" if change.strict else f" ({change.detail})" if change.detail else ""
        text = f"{change.flag} {change.wanted or change.new or '?'}{form}"
    return f"↶ {text}" if change.reverts else text


def _action(change: Change) -> str:
    """The word of a change that is no switch; with the target of a keep, and the name of a probe."""
    if change.probe:
        return f"{PROBE} {change.probe}"
    word = BY_VERB[change.verb].word if change.verb in BY_VERB else change.verb
    return f"{word} {change.target}" if change.verb == "keep" else word


def label(change: Change) -> str:
    """A short form for charts and narrow columns: ``pc-``, ``pause``."""
    if change.verb != "set":
        return _action(change)
    return theme.flag_label(change.flag, change.new or change.wanted)


@dataclass(frozen=True)
class Entry:
    """One line of the log of changes. ``left_s``: seconds until the change auto-reverts; None if it does not."""

    change: Change
    left_s: float | None = None


def log_entries(snapshot: Snapshot) -> list[Entry]:
    """Every change on every engine, newest first."""
    timers = {(timer.command, engine.id): timer for engine in snapshot.engines.values() for timer in engine.timers}
    entries = []
    for change in reversed(snapshot.changes.values()):
        timer = timers.get((change.command, change.engine))
        entries.append(Entry(change, None if timer is None else timer.at - snapshot.time))
    return entries


def open_timers(snapshot: Snapshot, command: str) -> list[tuple[str, Timer]]:
    """The engines on which ``command`` will auto-revert, with their timers."""
    return [
        (engine.id, timer)
        for engine in snapshot.engines.values()
        for timer in engine.timers
        if timer.command == command
    ]


def changes_of(snapshot: Snapshot, command: str) -> list[Change]:
    """The changes of one command, one per engine."""
    return [change for change in snapshot.changes.values() if change.command == command]
