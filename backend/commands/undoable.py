"""Which changes can be undone, and the last one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rltop.backend.api import Change, Engine, changed_engine
from rltop.collectors.contract.actions import BY_VERB


def undoable(changes: Iterable[Change]) -> list[Change]:
    """The changes that had an effect which can be reverted."""
    return [
        change
        for change in changes
        if changed_engine(change) and (change.verb == "set" or (change.verb in BY_VERB and BY_VERB[change.verb].undo))
    ]


def last_undoable(changes: Iterable[Change], engines: Mapping[str, Engine]) -> list[Change]:
    """The changes of the last command that is still in effect somewhere, and reverts nothing; empty if there is none.

    Args:
        changes: of the run, oldest first.
        engines: of the run, with their flags.
    """
    every = list(changes)
    reverted = {change.reverts for change in every if change.state == "applied" and change.reverts}
    for last in reversed(undoable(every)):
        if last.reverts or last.command in reverted or not _in_effect(last, engines.get(last.engine)):
            continue
        return [change for change in undoable(every) if change.command == last.command]
    return []


def _in_effect(change: Change, engine: Engine | None) -> bool:
    """Whether the engine still has what the change made."""
    if engine is None or engine.health != "live":
        return False
    if change.verb != "set":
        return engine.paused
    flag = engine.flags.get(change.flag)
    return flag is not None and flag.value == change.new
