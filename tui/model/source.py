"""Where the picture comes from, as far as the dashboard needs to know."""

from __future__ import annotations

from typing import Protocol

import msgspec

from rltop.backend.api import Answer, Question, Snapshot


class SnapshotSource(Protocol):
    """The part of ``rltop.backend.client.live.Client`` that the dashboard uses; see there."""

    @property
    def view(self) -> Snapshot | None:
        """The picture so far."""

    @property
    def state(self) -> str:
        """``connecting``, ``live`` or ``lost``; ``replay`` of a stored run."""

    @property
    def age_s(self) -> float:
        """Seconds since the hub was last heard of."""

    @property
    def answers(self) -> dict[str, Answer]:
        """Answers by id of the question."""

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Take in what is there; True if the picture changed."""

    def ask(self, question: Question) -> None:
        """Send a question; never waits."""


def hold(view: Snapshot) -> Snapshot:
    """The picture as it is now, untouched by later frames."""
    return msgspec.structs.replace(
        view,
        engines=dict(view.engines),
        steps=dict(view.steps),
        events=list(view.events),
        changes=dict(view.changes),
        counters=dict(view.counters),
        alarms=dict(view.alarms),
    )
