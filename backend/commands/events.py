"""What happened to commands, as data. ``messages`` words them for people, ``audit`` for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rltop.backend import api


@dataclass(frozen=True, slots=True)
class CommandRequested:
    """A request was validated; ``changes`` has one entry per engine."""

    question: api.AskCommand
    changes: Sequence[api.Change]


@dataclass(frozen=True, slots=True)
class ChangeClosed:
    """A change reached a terminal state. ``corrects`` is the one that this hub had set in the engine's silence."""

    change: api.Change
    corrects: str = ""


@dataclass(frozen=True, slots=True)
class HalfSwitched:
    """A command was closed on all its engines, and some have the wanted value, others not."""

    changes: Sequence[api.Change]


CommandEvent = CommandRequested | ChangeClosed | HalfSwitched


def is_half_switched(changes: Sequence[api.Change]) -> bool:
    """Whether the changes of a closed command left the fleet with different values."""
    first = changes[0]
    if not first.wanted or first.verb == "keep":
        return False
    applied = [change.state == "applied" for change in changes]
    return any(applied) and any(lags_behind(change) for change in changes)


def lags_behind(change: api.Change) -> bool:
    """Whether a closed change left its engine without the wanted value."""
    return change.state != "applied" and change.new != change.wanted


def outcome(change: api.Change) -> str:
    """How a change ended, or the state it is in: a revert, an undo and a keep have a word of their own."""
    if change.state != "applied":
        return change.state
    if change.verb == "keep":
        return "kept"
    if change.reverts:
        return "reverted" if is_own_revert(change) else "undone"
    return "applied"


def is_own_revert(change: api.Change) -> bool:
    """Whether the engine issued this command itself, when a timer expired."""
    return bool(change.reverts) and change.command == f"{change.reverts}/revert"
