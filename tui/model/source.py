"""The source of the dashboard's snapshots: a live client or a replay."""

from __future__ import annotations

from typing import Protocol

import msgspec

from rltop.backend.api import Answer, Question, Snapshot


class SnapshotSource(Protocol):
    """The part of ``rltop.backend.client.live.Client`` that the dashboard uses; see there."""

    @property
    def view(self) -> Snapshot | None:
        """The latest snapshot; None before the first."""

    @property
    def state(self) -> str:
        """``connecting``, ``live`` or ``lost``; ``replay`` for a stored run."""

    @property
    def age_s(self) -> float:
        """Seconds since the last message of the hub."""

    @property
    def answers(self) -> dict[str, Answer]:
        """Answers by question id."""

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Receive what has arrived; True if the snapshot changed."""

    def ask(self, question: Question) -> None:
        """Send a question; never blocks."""


def copy_of(snapshot: Snapshot) -> Snapshot:
    """A copy that later frames do not change."""
    return msgspec.structs.replace(
        snapshot,
        engines=dict(snapshot.engines),
        steps=dict(snapshot.steps),
        events=list(snapshot.events),
        changes=dict(snapshot.changes),
        counters=dict(snapshot.counters),
        alarms=dict(snapshot.alarms),
    )
