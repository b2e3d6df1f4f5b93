"""Actions of an engine other than switching a flag, as data, and constants of all commands.

The engine side, the hub, the CLI, the dashboard and the docs all read this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from rltop.collectors.contract import probes

PROBE = "probe"
"""Verb of the command that starts a probe; the command names it."""

MAX_REVERT_S = 7 * 86_400.0
"""Longest timer of a flag, seconds; a longer change is not an experiment."""


@dataclass(frozen=True)
class Action:
    """One action of an engine.

    Attributes:
        verb: on the wire.
        word: as typed in a command line, ``rltop <word>``.
        subject: what it changes. An engine has one pending command and one timer per subject.
        value: the subject's value afterwards; empty if it has no value to read.
        summary: one line: what it does.
        effect: consequences and cost.
        undo: the verb that undoes it; empty if there is none.
        guard_s: default of its timer, seconds: the action always auto-reverts. None: it has no timer.
        max_guard_s: longest timer, seconds.
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
        summary="evict the cached blocks that no request uses",
        effect="The next prompts are prefilled completely. Blocks used by requests in flight stay and can be hit until "
        "these end; the answer says how many.",
    ),
    Action(
        verb="pause",
        word="pause",
        subject="generation",
        value="paused",
        summary="stop generating; requests in flight and new ones wait",
        effect="The engine resumes by itself when the timer expires, even without a hub.",
        undo="resume",
        guard_s=60.0,
        max_guard_s=600.0,
    ),
    Action(
        verb="resume",
        word="resume",
        subject="generation",
        value="running",
        summary="resume generating after `rltop pause`",
        effect="Only ends a pause by rltop: the trainer or another client has to end its own.",
    ),
)

BY_VERB: dict[str, Action] = {action.verb: action for action in ACTIONS}


def subject_of(verb: str, flag: str) -> str:
    """The subject of a command with this verb: a flag, or the subject of an action; empty for ``keep``."""
    if verb == PROBE:
        return probes.SUBJECT
    return BY_VERB[verb].subject if verb in BY_VERB else flag if verb == "set" else ""
