"""The states of a change and the allowed transitions. docs/protocols/command.md has the same table; a test compares.

A change is one command on one engine. The engine decides how it ends; the hub closes only those that an engine can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from rltop.backend.api import TERMINAL

States = frozenset[str]

NEW = "new"
"""Before the first state: the hub has no such change yet."""

CLOSED_BY_HUB = "closed by the hub"
"""A terminal state that the hub set in the engine's silence."""

CLOSED_BY_ENGINE = "closed by the engine"
"""A terminal state that an engine reported."""


@dataclass(frozen=True)
class Next:
    """The states that may follow, by who sets them."""

    hub: States = frozenset()
    engine: States = frozenset()


TRANSITIONS: Mapping[str, Next] = {
    NEW: Next(hub=frozenset({"requested"}), engine=frozenset({"accepted", "draining", "running"}) | TERMINAL),
    "requested": Next(
        hub=frozenset({"applied", "refused", "timed_out"}),
        engine=frozenset({"accepted", "draining", "running"}) | TERMINAL,
    ),
    "accepted": Next(hub=frozenset({"timed_out"}), engine=frozenset({"draining", "running"}) | TERMINAL),
    "draining": Next(hub=frozenset({"timed_out"}), engine=frozenset({"running"}) | TERMINAL),
    "running": Next(hub=frozenset({"timed_out"}), engine=TERMINAL),
    CLOSED_BY_HUB: Next(engine=TERMINAL),
    CLOSED_BY_ENGINE: Next(),
}


class HubClosure(Enum):
    """Why the hub closes a change itself: the state that it sets, and the reason that people read."""

    ANSWERED_BY_HUB = "applied", "the hub answers it"
    ENGINE_NOT_LIVE = "refused", "engine {engine}: {health}; nothing was sent"
    NOT_DELIVERED = "refused", "engine {engine} is not connected; nothing was sent"
    DISCONNECTED = "timed_out", "engine {engine} disconnected before the command was closed"
    RESTARTED = "timed_out", "engine {engine} was restarted before the command was closed"
    UNACKNOWLEDGED = "timed_out", "no answer from engine {engine}"
    NO_OUTCOME = "timed_out", "engine {engine} reported {state}, and no outcome"
    NOT_HEARD = "timed_out", "engine {engine} has not reported since the hub was restarted"
    UNKNOWN_TO_ENGINE = (
        "timed_out",
        "engine {engine} does not know the command: the last hub ended before it was delivered, or the engine is new",
    )

    def __init__(self, state: str, reason: str) -> None:
        self.state = state
        self._reason = reason

    def reason(self, engine: str, state: str, health: str) -> str:
        """The reason for a change that was in ``state``, on an engine of this ``health``."""
        return self._reason.format(engine=engine, state=state, health=health)
