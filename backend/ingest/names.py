"""Which name a process gets whose name in its messages is that of another live process. Pure.

Engines that share one environment share ``RLTOP_ENGINE``, and a second trainer may be started under the name of a run.
A new process under a known name is a restart if the earlier one is dead, and a conflict if that one shows a sign of
life later. Until this is clear the new one waits: what it sends is held, and resent if it exceeds a bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from rltop.collectors.contract import wire

HELD_BYTES = 64 << 20
"""Bound on the messages of a process that waits for its name."""

EPOCH_LETTERS = 6
"""Letters of the epoch that name an engine whose pid is not known."""


class Holder(Protocol):
    """A process that has a name, with the clock of its last message."""

    @property
    def name(self) -> str:
        """Under which viewers see it."""

    @property
    def health(self) -> str:
        """``live``, ``silent`` or ``gone``."""

    @property
    def last_sent(self) -> float:
        """When it sent its latest message, by its own clock."""


@dataclass(slots=True)
class Newcomer:
    """A process that waits for a name.

    Attributes:
        since: when it sent its first message here, by the clock of the senders.
        pid: of the process, if an engine has reported it.
        held: what it has sent, with the sizes of the messages, up to a bound; the rest is resent.
        bye: that it has disconnected.
    """

    wire_name: str
    epoch: str
    since: float
    pid: int | None = None
    held: list[tuple[wire.Envelope, Any, int]] = field(default_factory=list)
    bye: wire.Bye | None = None

    def hold(self, envelope: wire.Envelope, message: Any, nbytes: int) -> None:
        """Keep a message until the process has a name."""
        if sum(size for _, _, size in self.held) + nbytes <= HELD_BYTES:
            self.held.append((envelope, message, nbytes))

    @property
    def own_name(self) -> str:
        """The name of an engine whose own is taken."""
        return f"{self.wire_name}-{self.pid or self.epoch[:EPOCH_LETTERS]}"

    def may_be(self, name: str) -> bool:
        """Whether a process of this wire name can have the name."""
        return name == self.wire_name or name.startswith(f"{self.wire_name}-")

    def dead(self, holders: Iterable[Holder]) -> str | None:
        """The name of a holder that has ended or fallen silent, the one that disconnected first."""
        dead = [holder for holder in holders if holder.health != "live"]
        return min(dead, key=lambda holder: holder.health != "gone").name if dead else None

    def is_conflict(self, holders: Iterable[Holder]) -> bool:
        """Whether all holders have sent something after this process began, so that none of them is dead."""
        return all(holder.last_sent > self.since for holder in holders)


def renamed(body: wire.DataBody, name: str) -> wire.DataBody:
    """The message of an engine under another name."""
    if isinstance(body, wire.EngineState):
        commands = [msgspec.structs.replace(update, engine=name) for update in body.commands]
        return msgspec.structs.replace(body, engine=name, commands=commands)
    if isinstance(body, wire.Rollouts | wire.ProbeReport | wire.RefitReport):
        return msgspec.structs.replace(body, engine=name)
    return body
