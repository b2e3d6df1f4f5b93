"""What an engine can be told to do beside switching a flag, as data; and what holds of every command.

The engine side, the hub, the CLI, the screens, the help and the docs all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from rltop.collectors.contract import probes

PROBE = "probe"
"""Verb of the command that begins a probe; which one, the command says."""

MAX_REVERT_S = 7 * 86_400.0
"""Longest time after which a flag is taken back; beyond it a switch is no experiment."""


@dataclass(frozen=True)
class Action:
    """One thing an engine does on command.

    Attributes:
        verb: on the wire.
        word: as people type it, ``rltop <word>``.
        subject: what it changes; of one subject an engine has one command under way, and one timer.
        value: what the subject reads afterwards; empty where it has no state to read.
        summary: one line, what it does.
        effect: what to expect of it, with its cost.
        undo: the verb that takes it back; empty if nothing does.
        guard_s: it is always taken back by itself, after so many seconds unless asked otherwise; None: never.
        max_guard_s: the longest that can be asked for.
    """

    verb: str
    word: str
    subject: str
    value: str
    summary: str
    effect: str
    undo: str = ""
    guard_s: float | None = None
    max_guard_s: float = 0.0


ACTIONS: tuple[Action, ...] = (
    Action(
        verb="flush_cache",
        word="flush",
        subject="prefix cache",
        value="",
        summary="forget the cached blocks that no request holds",
        effect="Prompts that come next are computed anew. Blocks that requests in flight hold stay, and can be hit "
        "until those end; what was left is told.",
    ),
    Action(
        verb="pause",
        word="pause",
        subject="generation",
        value="paused",
        summary="stop generating; requests in flight and new ones wait",
        effect="The engine goes on by itself when its guard timer ends, whatever became of the hub and the viewers.",
        undo="resume",
        guard_s=60.0,
        max_guard_s=600.0,
    ),
    Action(
        verb="resume",
        word="resume",
        subject="generation",
        value="running",
        summary="go on generating after `rltop pause`",
        effect="Only ends a pause that rltop began: one of the trainer or of another client is theirs to end.",
    ),
)

BY_VERB: dict[str, Action] = {action.verb: action for action in ACTIONS}
BY_WORD: dict[str, Action] = {action.word: action for action in ACTIONS}


def subject_of(verb: str, flag: str) -> str:
    """What a command of this verb changes: a flag, or the subject of an action; empty for ``keep``."""
    if verb == PROBE:
        return probes.SUBJECT
    return BY_VERB[verb].subject if verb in BY_VERB else flag if verb == "set" else ""
