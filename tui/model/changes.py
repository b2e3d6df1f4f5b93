"""Changes as people read them: what was asked, what came of it, what can be kept or undone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rltop.backend.api import Change, Snapshot, changed_engine
from rltop.collectors.contract.actions import BY_VERB, PROBE
from rltop.collectors.contract.wire import Timer
from rltop.tui.widgets import theme


def deed(change: Change) -> str:
    """What was asked, in words: ``prefix_caching off``, ``pause``, ``keep 3f2a``."""
    said = _act(change)
    if change.verb == "set":
        form = " strict" if change.strict else f" ({change.detail})" if change.detail else ""
        said = f"{change.flag} {change.wanted or change.new or '?'}{form}"
    return f"↶ {said}" if change.reverts else said


def _act(change: Change) -> str:
    """Of what is no switch: its word, and of a keep what it keeps, of a probe its name."""
    if change.probe:
        return f"{PROBE} {change.probe}"
    word = BY_VERB[change.verb].word if change.verb in BY_VERB else change.verb
    return f"{word} {change.target}" if change.verb == "keep" else word


def label(change: Change) -> str:
    """The same in few characters, for charts and narrow columns: ``pc-``, ``pause``."""
    if change.verb != "set":
        return _act(change)
    return theme.flag_label(change.flag, change.new or change.wanted)


@dataclass(frozen=True)
class Entry:
    """One line of the log of changes: ``left_s`` until the engine takes it back, None if it will not."""

    change: Change
    left_s: float | None = None


def entries(view: Snapshot) -> list[Entry]:
    """Every change on every engine, the newest first."""
    timers = {(timer.command, engine.id): timer for engine in view.engines.values() for timer in engine.timers}
    found = []
    for change in reversed(view.changes.values()):
        timer = timers.get((change.command, change.engine))
        found.append(Entry(change, None if timer is None else timer.at - view.time))
    return found


def open_timers(view: Snapshot, command: str) -> list[tuple[str, Timer]]:
    """The engines that will take back what this command did, with their timers."""
    return [
        (engine.id, timer) for engine in view.engines.values() for timer in engine.timers if timer.command == command
    ]


def together(view: Snapshot, command: str) -> list[Change]:
    """The changes of one command, one per engine."""
    return [change for change in view.changes.values() if change.command == command]


def undoable(changes: Iterable[Change]) -> list[Change]:
    """Those that changed something which can be brought back."""
    return [
        change
        for change in changes
        if changed_engine(change) and (change.verb == "set" or (change.verb in BY_VERB and BY_VERB[change.verb].undo))
    ]
